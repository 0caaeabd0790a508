"""A release is refused unless the tree is a commit that says this version everywhere, and the refusal says what to do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from release_trees import copy_tree, git, make_release

from release import versions
from release.__main__ import compare
from release.errors import ReleaseError

pytestmark = pytest.mark.xdist_group("release")

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n### Fixed\n\n- A thing.\n\n## [0.9.0] - 2026-01-02\n\n- Older.\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that say the version: 1.0.0."""
    (tmp_path / "csi_driver").mkdir()
    (tmp_path / "csi_driver" / "__init__.py").write_text('"""Text."""\n\n__version__ = "1.0.0"\nDRIVER_NAME = "x"\n')
    (tmp_path / "charts" / "tidemark").mkdir(parents=True)
    chart = "apiVersion: v2\nname: tidemark\n# Together.\nversion: 1.0.0\nappVersion: 1.0.0\n"
    (tmp_path / "charts" / "tidemark" / "Chart.yaml").write_text(chart)
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


def test_two_runs_that_differ_are_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
        (directory / "same").write_text("same")
    compare(first, second)
    (first / "image").write_text("a")
    (second / "image").write_text("b")
    with pytest.raises(ReleaseError, match="two runs differ in image:"):
        compare(first, second)
    (second / "image").unlink()
    with pytest.raises(ReleaseError, match="two runs differ in image:"):
        compare(first, second)


def test_each_file_that_disagrees_is_named(tree: Path) -> None:
    with pytest.raises(ReleaseError) as refused:
        versions.check(tree, "1.1.0")
    for line in (
        "csi_driver/__init__.py: __version__ is 1.0.0, not 1.1.0",
        "Chart.yaml: version is 1.0.0, not 1.1.0",
        "Chart.yaml: appVersion is 1.0.0, not 1.1.0",
        "CHANGELOG.md: there is no section `## [1.1.0] - DATE`",
        "make release VERSION=1.1.0 ARGS=--prepare",
    ):
        assert line in str(refused.value)


def test_prepare_changes_these_and_nothing_else(tree: Path) -> None:
    assert versions.prepare(tree, "1.1.0", date(2026, 11, 30)) == [
        *("CHANGELOG.md", "charts/tidemark/Chart.yaml", "csi_driver/__init__.py"),
    ]
    versions.check(tree, "1.1.0")
    assert versions.section(tree, "1.1.0") == "### Fixed\n\n- A thing."
    assert versions.section(tree, "0.9.0") == "- Older."
    dated = "## [Unreleased]\n\n## [1.1.0] - 2026-11-30"
    assert (tree / "CHANGELOG.md").read_text() == CHANGELOG.replace("## [Unreleased]", dated)
    assert (tree / "csi_driver" / "__init__.py").read_text().count("1.1.0") == 1
    assert versions.prepare(tree, "1.1.0", date(2027, 1, 1)) == []


def test_a_release_without_changes_is_refused(tree: Path) -> None:
    versions.prepare(tree, "1.1.0", date(2026, 11, 30))
    with pytest.raises(ReleaseError, match="nothing below '## \\[Unreleased\\]'"):
        versions.prepare(tree, "1.2.0", date(2026, 12, 1))
    (tree / "CHANGELOG.md").write_text("## [1.1.0] - 2026-11-30\n\n## [1.0.0] - 2026-11-29\n\n- It.\n")
    with pytest.raises(ReleaseError, match=r"the section of 1\.1\.0 is empty"):
        versions.check(tree, "1.1.0")


@pytest.mark.parametrize("text", ["", "v1.0.0", "1.0", "1.0.0-rc.1", "1.0.0\n", "01.0.0", "1.0.0+a"])
def test_a_version_is_three_numbers(text: str) -> None:
    with pytest.raises(ReleaseError, match="give three numbers"):
        versions.parse(text)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree as a repository, which can be released as 7.8.9."""
    tree = copy_tree(tmp_path_factory.mktemp("tree"))
    versions.prepare(tree, "7.8.9", date(2026, 11, 30))
    git(tree, "commit", "--quiet", "--all", "--message", "Release")
    return tree


def change_a_file(tree: Path) -> str:
    (tree / "README.md").write_text("changed")
    return "the tree differs from its commit: README.md"


def add_files(tree: Path) -> str:
    for number in range(7):
        (tree / f"new{number}").write_text("new")
    return "new0, new1, new2, new3, new4 and 2 more"


def make_the_directory(tree: Path) -> str:
    (tree / "dist" / "tidemark-7.8.9").mkdir(parents=True)
    return "dist/tidemark-7.8.9 exists: remove it, or name another directory by --output"


@pytest.mark.parametrize("disturb", [change_a_file, add_files, make_the_directory])
def test_a_tree_that_is_not_its_commit_is_refused(released: Path, disturb: Callable[[Path], str]) -> None:
    try:
        expected = disturb(released)
        refused = make_release(released, "--version", "7.8.9", "--no-image")
        assert refused.returncode == 1
        assert expected in refused.stderr
        assert "Traceback" not in refused.stderr
        assert not list((released / "dist").glob("*/*"))
    finally:
        git(released, "reset", "--quiet", "--hard")
        git(released, "clean", "--quiet", "-fdx", "dist", "new*")

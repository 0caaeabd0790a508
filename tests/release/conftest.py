"""A release without the image, made twice from one commit: in two directories, in two time zones, under two umasks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from release_trees import TREE, VERSION, commit_all, copy_tree, git, make_release


@pytest.fixture(scope="session")
def helm() -> Path:
    """The program; in CI it is an error if it cannot be built."""
    argv = ["sh", str(TREE / "tests" / "tools" / "kubernetes.sh"), "helm"]
    run = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if run.returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no helm: {run.stderr.strip()[-500:]}")
    return Path(run.stdout.strip()) / "helm"


@pytest.fixture(scope="session")
def releases(helm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories of the two releases."""
    tree = copy_tree(tmp_path_factory.mktemp("tree"))
    prepared = make_release(tree, "--version", VERSION, "--prepare")
    assert prepared.returncode == 0, prepared.stderr
    commit_all(tree)
    other = tmp_path_factory.mktemp("another-place") / "with" / "a-longer-path"
    other.parent.mkdir()
    git(tree, "clone", "--quiet", tree, other)
    made = []
    for place, umask, zone in ((tree, 0o022, "UTC"), (other, 0o077, "Pacific/Auckland")):
        run = make_release(place, "--version", VERSION, "--no-image", umask=umask, TZ=zone)
        assert run.returncode == 0, run.stderr
        made.append(place / "dist" / f"tidemark-{VERSION}")
    return made[0], made[1]


@pytest.fixture(scope="session")
def files(releases: tuple[Path, Path]) -> Path:
    """The directory of one of them."""
    return releases[0]

"""The forge's workflow asks `make release` for the version of the tag, and offers every file: its lines run here, with stand-ins."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from release_trees import TREE

from release.checksums import checksums

WORKFLOW: dict[Any, Any] = yaml.safe_load((TREE / ".github" / "workflows" / "release.yaml").read_text())


def lines(job: str, name: str) -> str:
    """What a step runs."""
    (step,) = [step for step in WORKFLOW["jobs"][job]["steps"] if step.get("name") == name]
    return str(step["run"])


def run(script: str, directory: Path, *programs: str) -> list[str]:
    """Run a step as the forge does, with programs that only write down their arguments. Returns these."""
    stands_in = directory.parent / "bin"
    stands_in.mkdir()
    for program in programs:
        (stands_in / program).write_text(f'#!/bin/sh\nfor word; do echo "$word"; done >>{stands_in}/{program}.words\n')
        (stands_in / program).chmod(0o755)
    variables = {"GITHUB_REF_NAME": "v1.2.3", "GITHUB_REPOSITORY": "someone/tidemark"}
    environment = {**os.environ, **variables, "PATH": f"{stands_in}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-e", "-c", script], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return (stands_in / f"{programs[-1]}.words").read_text().splitlines()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_it_makes_the_version_of_the_tag(work: Path) -> None:
    assert run(lines("files", "Make the files"), work, "git", "make") == ["release", "VERSION=1.2.3"]


def test_it_offers_every_file(work: Path) -> None:
    files = work / "files"
    files.mkdir()
    for name in ("CHANGES.md", "images.txt", "tidemark-1.2.3.tgz"):
        (files / name).write_text(name)
    (files / "SHA256SUMS").write_text(checksums(files))
    words = run(lines("draft", "Make a draft of the release"), work, "gh")
    assert words[:3] == ["release", "create", "v1.2.3"]
    assert "--draft" in words
    assert sorted(words[words.index("--") + 1 :]) == sorted(path.name for path in files.iterdir())


def test_only_tags_of_versions_start_it() -> None:
    (tag,) = WORKFLOW[True]["push"]["tags"]  # YAML 1.1 reads "on" as true
    for name, starts in (
        ("v1.2.3", True),
        ("v10.20.30", True),
        ("1.2.3", False),
        ("v1.2", False),
        ("v1.2.3-rc.1", False),
    ):
        assert bool(re.fullmatch(tag.replace(".", r"\."), name)) is starts, name


def test_only_the_draft_may_write_and_every_action_has_its_version() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "permissions" not in WORKFLOW["jobs"]["files"]
    used = [step["uses"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", name) for name in used)

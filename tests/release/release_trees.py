"""Trees to make releases of: copies of this one, as repositories of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
VERSION = "7.8.9"


def command(*argv: object, directory: Path, umask: int = 0o022, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in argv],
        cwd=directory,
        umask=umask,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def make_release(tree: Path, *words: object, **options: str | int) -> subprocess.CompletedProcess[str]:
    """What `make release` runs, in another tree than this one."""
    return command(sys.executable, "-m", "release", *words, directory=tree, **options)  # type: ignore[arg-type]


def git(tree: Path, *words: object) -> str:
    """Git without the user's settings, at a fixed time."""
    who = {
        **{
            f"GIT_{role}_{field}": "release@example.com"
            for role in ("AUTHOR", "COMMITTER")
            for field in ("NAME", "EMAIL")
        },
        **{f"GIT_{role}_DATE": "2026-11-05T06:07:08+02:00" for role in ("AUTHOR", "COMMITTER")},
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
    }
    run = command("git", *words, directory=tree, **who)
    assert run.returncode == 0, run.stderr
    return run.stdout


def commit_all(tree: Path) -> None:
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "A commit")


def copy_tree(target: Path) -> Path:
    """This tree as it is now, changes included, as a repository with one commit."""
    listed = git(TREE, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    files = [name for name in listed if name and (TREE / name).exists()]
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((TREE / name).read_bytes())
        (target / name).chmod(0o755 if os.access(TREE / name, os.X_OK) else 0o644)
    git(target, "init", "--quiet")
    commit_all(target)
    return target

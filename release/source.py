"""The commit that a release is made from: git alone says what belongs to it."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from release.commands import output
from release.errors import ReleaseError

MOST_NAMED = 5
"""Changed files that a refusal names."""


@dataclass(frozen=True)
class Commit:
    """A commit and the time at which it was made, in seconds of Unix time: the one time that a release contains."""

    id: str
    seconds: int

    @property
    def time(self) -> datetime:
        """The time of the commit, in UTC."""
        return datetime.fromtimestamp(self.seconds, UTC)

    @property
    def environment(self) -> dict[str, str]:
        """Variables for programs that write times into files."""
        return {"SOURCE_DATE_EPOCH": str(self.seconds), "TZ": "UTC", "LC_ALL": "C.UTF-8"}


def head(tree: Path) -> Commit:
    """Return the commit that is checked out in a tree without changes. Raises ReleaseError if there are changes."""
    changed = output("git", "-C", tree, "status", "--porcelain", "--untracked-files=normal").decode().splitlines()
    if changed:
        names = ", ".join(line[3:] for line in changed[:MOST_NAMED])
        more = f" and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
        raise ReleaseError(
            f"the tree differs from its commit: {names}{more}. A release is made from a commit alone; "
            "commit these files, or remove them"
        )
    commit, seconds = output("git", "-C", tree, "log", "-1", "--format=%H %ct").decode().split()
    return Commit(commit, int(seconds))


def export(tree: Path, commit: Commit, target: Path) -> None:
    """Write the files of the commit to an empty directory, with the commit's time and modes that no umask changes."""
    archive = output("git", "-C", tree, "archive", "--format=tar", commit.id)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for entry in files:
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            files.extract(entry, target, set_attrs=True, filter="data")

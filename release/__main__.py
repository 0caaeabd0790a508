"""`make release VERSION=...`: makes all files of a release from the commit that is checked out."""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from release import source, versions
from release.errors import ReleaseError
from release.files import make

TREE = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("amd64", "arm64")


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(prog="make release", description="Make the files of a release from a commit.")
    parser.add_argument("--version", required=True, help="three numbers, e.g. 0.2.0, as the tree has it")
    parser.add_argument("--output", type=Path, help="new directory for the files (dist/tidemark-VERSION)")
    parser.add_argument(
        "--arch",
        action="append",
        choices=ARCHITECTURES,
        help="architecture of the image, once for each (amd64 and arm64)",
    )
    parser.add_argument("--no-image", action="store_true", help="everything but the image and what is in it")
    parser.add_argument("--prepare", action="store_true", help="set the version in the tree, make nothing")
    parser.add_argument("--twice", action="store_true", help="make everything twice, and compare every byte")
    return parser.parse_args(words)


def compare(first: Path, second: Path) -> None:
    """Raise ReleaseError unless two directories have the same files with the same bytes."""
    names = sorted({path.name for directory in (first, second) for path in directory.iterdir()})
    _, different, missing = filecmp.cmpfiles(first, second, names, shallow=False)
    if different or missing:
        raise ReleaseError(f"two runs differ in {', '.join([*different, *missing])}: see {first} and {second}")


def run(options: argparse.Namespace) -> str:
    """Do what the command line asks for, and return what to tell about it. Raises ReleaseError."""
    version = versions.parse(options.version)
    if options.prepare:
        changed = versions.prepare(TREE, version, datetime.now(UTC).date())
        return f"Set version {version} in {', '.join(changed)}: review, and commit" if changed else "Nothing to change"
    versions.check(TREE, version)
    commit = source.head(TREE)
    target: Path = options.output or TREE / "dist" / f"tidemark-{version}"
    if target.exists():
        raise ReleaseError(f"{target} exists: remove it, or name another directory by --output")
    architectures = () if options.no_image else tuple(options.arch or ARCHITECTURES)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tidemark-release-") as scratch:
        first = Path(scratch, "files")
        make(TREE, commit, version, first, architectures)
        if options.twice:
            second = Path(scratch, "again")
            make(TREE, commit, version, second, architectures)
            try:
                compare(first, second)
            except ReleaseError:
                shutil.copytree(first, f"{target}.first")
                shutil.copytree(second, f"{target}.second")
                raise
        shutil.copytree(first, target)
    return f"{target}: {len(list(target.iterdir()))} files of version {version}, commit {commit.id[:12]}"


def main() -> int:
    """Run, and print the result or the reason of a refusal."""
    try:
        print(run(arguments(sys.argv[1:])))
    except ReleaseError as error:
        print(f"make release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

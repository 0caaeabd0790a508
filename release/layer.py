"""A layer of an image from files on this machine, the same bytes for the same content."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

EMPTY = ("dev", "proc", "run", "sys", "tmp", "var/tmp", "root")
"""Directories whose content is the machine's, or of the build: only they themselves are in the image."""

BARE = ("var/log", "var/cache", "var/lib/apt/lists")
"""Directories of which only those below are in the image: without them, apt refuses to work in an image made from this one."""

ABSENT = ("etc/tidemark-build", "etc/pip.conf", "etc/apt/apt.conf.d/00tidemark-build", "etc/.pwd.lock")
"""What tests/image/build.sh lends to the build, and a lock."""

BLANK = ("etc/hostname", "etc/hosts", "etc/machine-id", "etc/resolv.conf")
"""Files of the machine that built it: container engines put their own in their places."""


def _paths(root: Path, top: str, without: tuple[str, ...]) -> Iterator[str]:
    """Yield paths below root, sorted, directories before their content."""
    if top in without:
        return
    if top:
        yield top
    directory = root / top
    if top in EMPTY or directory.is_symlink() or not directory.is_dir():
        return
    for name in sorted(os.listdir(directory)):
        path = f"{top}/{name}" if top else name
        left_out = path in ABSENT or path.endswith(("-old", ".dpkg-new"))
        bare = path.startswith(tuple(f"{one}/" for one in BARE)) and not (root / path).is_dir()
        if not left_out and not bare:
            yield from _paths(root, path, without)


def _content(root: Path, name: str) -> bytes | None:
    """Return what is written instead of a file's content; None if that is as it is."""
    if name in BLANK:
        return b""
    if name == "etc/shadow":
        # The third field is the day on which a password was set, which is the day of the build.
        rows = [line.split(":") for line in (root / name).read_text().splitlines()]
        return "".join(":".join([*row[:2], "", *row[3:]]) + "\n" for row in rows).encode()
    return None


def _entry(archive: tarfile.TarFile, root: Path, name: str, seconds: int) -> tarfile.TarInfo | None:
    entry = archive.gettarinfo(root / name, arcname=name)
    if entry is None:  # a socket
        return None
    entry.mtime = min(int(entry.mtime), seconds)
    entry.uname = entry.gname = ""
    if entry.isreg():
        entry.pax_headers = {
            f"SCHILY.xattr.{attribute}": os.getxattr(root / name, attribute).decode("utf-8", "surrogateescape")
            for attribute in sorted(os.listxattr(root / name))
        }
    return entry


def tar(root: Path, seconds: int, *, top: str = "", without: tuple[str, ...] = ()) -> bytes:
    """Return the files below a directory as a tar archive.

    Args:
        root: where the files of the image lie.
        seconds: no file is newer than this Unix time.
        top: only this path and what is below it, with the directories that lead to it.
        without: paths that are left out, with all below them.
    """
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
        parents = [str(path) for path in reversed(Path(top).parents) if str(path) != "."]
        for name in [*parents, *_paths(root, top, without)]:
            entry = _entry(archive, root, name, seconds)
            if entry is None:
                continue
            if not entry.isreg():
                archive.addfile(entry)
                continue
            data = _content(root, name)
            if data is None:
                data = (root / name).read_bytes()
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def compress(archive: bytes) -> tuple[bytes, str]:
    """Return an archive as a compressed layer, and the digest of its content, by which an image names it."""
    return gzip.compress(archive, compresslevel=6, mtime=0), f"sha256:{hashlib.sha256(archive).hexdigest()}"

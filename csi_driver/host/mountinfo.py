"""What is mounted where, from /proc/self/mountinfo. Never a stat: on a dead file system it does not return."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

_ESCAPE = re.compile(rb"\\([0-7]{3})")
_NODE_FILE_SYSTEMS = ("devtmpfs", "tmpfs", "ramfs")
_DELETED = "//deleted"


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo, unescaped. `root`: the directory or file inside the file system that is seen at `point`.

    `options` are of this mount, `super_options` of the file system; both in the kernel's order.
    """

    id: int
    parent: int
    major: int
    minor: int
    root: str
    point: str
    options: tuple[str, ...]
    fs_type: str
    source: str
    super_options: tuple[str, ...]
    shared: bool = False
    """Whether what is mounted below it appears in the peers of this mount too: in the host's namespace, and in pods."""

    @property
    def read_only(self) -> bool:
        """Whether files cannot be written through this mount: it or its file system is read-only."""
        return "ro" in self.options or "ro" in self.super_options


def read(path: str = "/proc/self/mountinfo") -> list[Mount]:
    """Read all mounts of this process's namespace, in the kernel's order. Raises OSError.

    One pass is enough: since 5.8 the kernel keeps its place with a cursor, so that no line is lost while others mount.
    """
    with open(path, "rb", buffering=1 << 20) as file:
        return parse(file.read())


def parse(text: bytes) -> list[Mount]:
    """Parse the text of a mountinfo file. Raises ValueError at a bad line: a mount overlooked is a hazard."""
    return [_parse_line(line) for line in text.split(b"\n") if line]


def _parse_line(line: bytes) -> Mount:
    left, separator, right = line.partition(b" - ")
    fields, rest = left.split(b" "), right.split(b" ")
    if not separator or len(fields) < 6 or len(rest) < 3:
        raise ValueError(f"not a line of mountinfo: {line!r}")
    major, _, minor = fields[2].partition(b":")
    return Mount(
        id=int(fields[0]),
        parent=int(fields[1]),
        major=int(major),
        minor=int(minor),
        root=_unescape(fields[3]),
        point=_unescape(fields[4]),
        options=tuple(_unescape(fields[5]).split(",")),
        fs_type=_unescape(rest[0]),
        source=_unescape(rest[1]),
        super_options=tuple(_unescape(rest[2]).split(",")),
        shared=any(field.startswith(b"shared:") for field in fields[6:]),
    )


def _unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))


def mounts_of(major: int, minor: int, name: str, mounts: Iterable[Mount] | None = None) -> list[Mount]:
    """Find every mount that a block device is behind: file systems on it, and bind mounts of its node /dev/`name`.

    A node is known by its place at the root of a devtmpfs or tmpfs, also when it was unlinked since. So a file called
    `name` at the top of some tmpfs, bind-mounted, is taken for it too: wrong on the safe side. `mounts`: what `read`
    gave, or it is read.
    """
    return [mount for mount in (read() if mounts is None else mounts) if _is_of(mount, major, minor, name)]


def _is_of(mount: Mount, major: int, minor: int, name: str) -> bool:
    if (mount.major, mount.minor) == (major, minor):
        return True
    if mount.fs_type == "btrfs" and mount.source == f"/dev/{name}":
        return True  # btrfs shows a device number of its own
    return mount.fs_type in _NODE_FILE_SYSTEMS and mount.root.removesuffix(_DELETED) == f"/{name}"


def at(point: str | os.PathLike[str], mounts: Iterable[Mount] | None = None) -> Mount | None:
    """Find the topmost mount at exactly `point`, an absolute path without symbolic links; None: no mount point."""
    wanted = os.path.normpath(os.fspath(point))
    found = [mount for mount in (read() if mounts is None else mounts) if mount.point == wanted]
    if not found:
        return None
    # Of mounts at one point the topmost is the one that no other is mounted on.
    covered = {mount.parent for mount in found}
    return next((mount for mount in reversed(found) if mount.id not in covered), found[-1])


def holding(path: str | os.PathLike[str]) -> Mount:
    """Find the mount through which `path`, an existing file or directory, is seen. Raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            wanted = next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(fd)
    return next(mount for mount in read() if mount.id == wanted)

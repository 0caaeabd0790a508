"""What is mounted where, from /proc/self/mountinfo. Never a stat: on a dead file system it does not return."""

import os
import re
from collections.abc import Iterable, Sequence
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
    group: int = 0
    """The number of its peer group, 0: private. What is mounted below one mount of a group appears below the others."""
    master: int = 0
    """The number of the peer group that it is a slave of, 0: none. What is mounted there appears here, not the reverse."""

    @property
    def shared(self) -> bool:
        """Whether what is mounted below it appears in the peers of this mount too: in the host's namespace, and in pods."""
        return bool(self.group)

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


def read_with(word: bytes, path: str = "/proc/self/mountinfo") -> list[Mount]:
    """Read the mounts whose line holds `word`, as the kernel writes it. Raises OSError.

    Most lines are skipped unread: a tree of a thousand disks asks a thousand times.
    """
    with open(path, "rb", buffering=1 << 20) as file:
        return [_parse_line(line) for line in file.read().split(b"\n") if word in line]


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
        group=_numbered(b"shared:", fields[6:]),
        master=_numbered(b"master:", fields[6:]),
    )


def _numbered(word: bytes, fields: Sequence[bytes]) -> int:
    """The number that an optional field gives, 0: the field is not there."""
    return next((int(field.removeprefix(word)) for field in fields if field.startswith(word)), 0)


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


def places(found: Iterable[Mount], mounts: Iterable[Mount]) -> list[list[Mount]]:
    """Group mounts by place: several lines that are views of one mount are one place. In the order of `found`.

    A mount is made at a directory of its parent's file system, and the kernel makes it below every peer and every slave of
    the parent too. So lines are views of one mount where the same thing is mounted, at the same directory of the same file
    system, and their parents belong to one peer group. A line of its own in each is what a kubelet's directory has that is
    bind-mounted, on itself or elsewhere. `mounts`: all of the namespace. A place taken for two is one use too many; two
    taken for one are told apart by nobody: to unmount one unmounts the other.
    """
    parents = {mount.id: mount for mount in mounts}
    placed: list[_Place] = []
    for mount in found:
        place = _place(mount, parents.get(mount.parent))
        same = [one for one in placed if one.is_that_of(place)]
        if not same:
            placed.append(place)
            continue
        same[0].views.append(mount)
        same[0].groups |= place.groups
        for other in same[1:]:  # this one has shown that the two are one
            same[0].views += other.views
            same[0].groups |= other.groups
            placed.remove(other)
    return [place.views for place in placed]


@dataclass(eq=False, slots=True)
class _Place:
    """What is mounted at which directory, the peer groups that lead there, and the lines that show it."""

    key: tuple[object, ...]
    groups: set[int]
    views: list[Mount]

    def is_that_of(self, other: "_Place") -> bool:
        return self.key == other.key and bool(self.groups & other.groups)


def _place(mount: Mount, parent: Mount | None) -> _Place:
    if parent is None or not lies_below(mount.point, parent.point):
        return _Place((), set(), [mount])  # seen through this line alone
    inside = parent.root.rstrip("/") + "/" + mount.point.removeprefix(parent.point).lstrip("/")
    key = (mount.major, mount.minor, mount.root, parent.major, parent.minor, inside)
    return _Place(key, {parent.group, parent.master} - {0}, [mount])


def lies_below(path: str, directory: str) -> bool:
    """Whether a path is the directory or lies below it, by their names alone."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


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

"""Who keeps a mount busy: other mounts below it, loop devices of files on it, and processes, as far as this pid namespace shows.

Asked after the kernel has refused an unmount, so it may take a while; but it may not hang where the mount's file system does.
So links below /proc are read, never followed: what a stat does on a dead file system, readlink does not.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from csi_driver.host.block import loop_ioctl
from csi_driver.host.fs import mountinfo
from csi_driver.host.fs.mountinfo import Mount, lies_below

MOST = 8
"""So many are named; an error message has room for about as many."""
_DELETED = " (deleted)"


def users(point: str) -> list[str]:
    """Name what uses the topmost mount at `point`, which may be nobody that is seen from here. Raises OSError."""
    mounts = mountinfo.read()
    mount = mountinfo.at(point, mounts)
    if mount is None:
        return []
    views = next(place for place in mountinfo.places(_alike(mount, mounts), mounts) if mount in place)
    found = [*_mounts_below(views, mounts), *_loop_devices(views), *_processes(mount, views)]
    # A file that is mapped and not open any more is seen in `maps` alone, whose reader waits for a process that is in a page
    # fault. So it comes last, and only where nothing else explains the refusal.
    found = found or list(_mappers(mount))
    return found if len(found) <= MOST else [*found[:MOST], f"{len(found) - MOST} more"]


def _alike(mount: Mount, mounts: Sequence[Mount]) -> list[Mount]:
    return [one for one in mounts if (one.major, one.minor, one.root) == (mount.major, mount.minor, mount.root)]


def _mounts_below(views: Sequence[Mount], mounts: Sequence[Mount]) -> Iterator[str]:
    ids = {view.id for view in views}
    return (f"a mount at {mount.point}" for mount in mounts if mount.parent in ids)


def _loop_devices(views: Sequence[Mount]) -> Iterator[str]:
    for number in loop_ioctl.numbers():
        backing = (loop_ioctl.sysfs(number, "loop/backing_file") or "").removesuffix(_DELETED)
        if any(lies_below(backing, view.point) for view in views):
            yield f"/dev/loop{number}, which holds {backing}"


def _processes(mount: Mount, views: Sequence[Mount]) -> Iterator[str]:
    """Processes that have a file, a directory or their program on the mount, or on a copy of it in a namespace of their own."""
    own, known = os.readlink("/proc/self/ns/mnt"), dict[str, list[Mount]]()
    for pid in _pids():
        with suppress(OSError, ValueError):
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in known:
                known[namespace] = mountinfo.read(f"/proc/{pid}/mountinfo")
            theirs = known[namespace]
            ours = {one.id for one in theirs if (one in views if namespace == own else _is_copy(one, mount))}
            if ours and any(_is_on(path, theirs, ours) for path in _paths(pid)):
                yield _named(pid)


def _is_copy(other: Mount, mount: Mount) -> bool:
    """Whether a mount of another namespace is the copy that keeps ours busy: what is unmounted here is unmounted there too."""
    same = (other.major, other.minor, other.root) == (mount.major, mount.minor, mount.root)
    return same and mount.group in {other.group, other.master} - {0}


def _is_on(path: str, mounts: Sequence[Mount], wanted: set[int]) -> bool:
    """Whether a path leads through one of the mounts `wanted`, by what covers what. No file is looked at."""
    if not any(mount.id in wanted and lies_below(path, mount.point) for mount in mounts):
        return False
    above = [mount for mount in mounts if lies_below(path, mount.point)]
    length = max(len(mount.point) for mount in above)
    top = mountinfo.at(next(mount.point for mount in above if len(mount.point) == length), above)
    return top is not None and top.id in wanted


def _paths(pid: str) -> Iterator[str]:
    with suppress(OSError):
        names = ["cwd", "root", "exe", *(f"fd/{number}" for number in os.listdir(f"/proc/{pid}/fd"))]
        for name in names:
            with suppress(OSError):
                yield os.readlink(f"/proc/{pid}/{name}").removesuffix(_DELETED)


def _mappers(mount: Mount) -> Iterator[str]:
    device = f"{mount.major:02x}:{mount.minor:02x}"
    for pid in _pids():
        with suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            if any(line.split(maxsplit=4)[3] == device for line in file):
                yield _named(pid)


def _pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdecimal()]


def _named(pid: str) -> str:
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return f"pid {pid} ({file.read().strip()})"

"""Disks on a thin pool that are frozen and suspended, and a fork server whose processes die at a chosen call."""

import asyncio
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from support.freezing import is_frozen
from support.freezing import thaw as thaw_mount
from support.paused_freezes import in_pause
from support.waiting import until
from thin_rig import POOL, dm_name, field, node_of, sh, thin_pool, thin_volume

from csi_driver.backends.freeze_session import FreezeSession, MountedVolume
from csi_driver.backends.volume_helpers import VolumeHelpers
from csi_driver.domain.ids import ObjectId
from csi_driver.domain.model import Volume, VolumeRequest
from csi_driver.host.block.device import BlockDevice
from csi_driver.host.dm import ioctl
from csi_driver.host.dm.ioctl import DeviceInfo
from csi_driver.host.freeze import journal
from csi_driver.host.freeze.journal import Journal
from csi_driver.host.helper.client import HelperPool
from csi_driver.host.helper.process import Process

DEADLINE, LONG, PAUSE, TIMEOUT = 30.0, 100.0, 110.0, 120.0
"""As in host/freeze_rig.py: whoever thaws must come long before the deadline of a freeze that a test interferes with."""
SIZES = {"xfs": "304m", "ext4": "64m", "": "64m"}
BLOCK = 4096
_FIRST_ID = 10_000
"""Of the snapshots that tests make: far from those that lvm gives."""


@dataclass
class ThinDisk:
    """An active thin volume: with a file system that is mounted, or raw (`fs` is empty)."""

    name: str
    fs: str
    point: Path
    info: DeviceInfo
    id: int

    @property
    def node(self) -> Path:
        return node_of(self.name)

    @property
    def mount(self) -> dict[str, Any]:
        return {"point": str(self.point), "major": self.info.major, "minor": self.info.minor}

    @property
    def device(self) -> dict[str, Any]:
        return {"uuid": self.info.uuid, "major": self.info.major, "minor": self.info.minor}

    @property
    def fact(self) -> dict[str, Any]:
        number = self.info.major, self.info.minor
        point = str(self.point) if self.fs else ""
        return journal.entry_for(point, *number, identity=self.info.uuid, dm_uuid=self.info.uuid)

    def is_suspended(self) -> bool:
        return ioctl.info(uuid=self.info.uuid).suspended

    def is_free(self) -> bool:
        """Whether nobody keeps it frozen or suspended."""
        return not self.is_suspended() and not (self.fs and is_frozen(self.point))

    def write(self, text: str) -> None:
        """Write, durably; in a process, since what is frozen would let that wait for ever."""
        subprocess.run([sys.executable, "-I", "-S", "-c", _WRITE, self._data, text], check=True, timeout=DEADLINE)

    @property
    def _data(self) -> str:
        return str(self.point / "data" if self.fs else self.node)

    def read(self) -> str:
        return read_first(self._data)


_WRITE = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)
os.pwrite(fd, sys.argv[2].encode().ljust(4096, b"."), 0)
os.fsync(fd)
"""


def read_first(path: str | Path) -> str:
    """The text in the first block, past the page cache, which may be another device's of before."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, BLOCK) as buffer:
            os.preadv(fd, [buffer], 0)
            return buffer[:].rstrip(b".").decode()
    finally:
        os.close(fd)


def make_disk(name: str, fs: str, place: Path) -> ThinDisk:
    node = thin_volume(name, SIZES[fs])
    point = place / name
    point.mkdir()
    if fs:
        sh(f"mkfs.{fs}", "-q", node)
        sh("mount", node, point)
    return ThinDisk(name, fs, point, ioctl.info(name=dm_name(name)), int(field(name, "thin_id")))


def remove_disk(disk: ThinDisk) -> None:
    """Free it first, whatever happened: nothing else works on what is frozen."""
    with suppress(OSError):
        ioctl.resume(disk.info.uuid)
    if disk.fs:
        with suppress(OSError):
            thaw_mount(disk.point)
        sh("umount", disk.point, check=False)
    sh("lvremove", "-q", "-y", f"fast/{disk.name}", check=False)


def pool_uuid() -> str:
    return ioctl.info(name=f"{dm_name(POOL)}-tpool").uuid


def snapshots(*disks: ThinDisk, delete: bool = False) -> dict[str, Any]:
    """The action that takes a snapshot of each disk, under a number that lvm does not know."""
    messages = []
    for index, disk in enumerate(disks):
        messages += [f"delete {_FIRST_ID + index}"] if delete else []
        messages += [f"create_snap {_FIRST_ID + index} {disk.id}"]
    return {"kind": "thin_messages", "pool": pool_uuid(), "messages": messages}


def forget_snapshots(count: int) -> None:
    for index in range(count):
        with suppress(OSError):
            ioctl.message(pool_uuid(), f"delete {_FIRST_ID + index}")


@contextmanager
def shown(index: int, like: ThinDisk) -> Iterator[Path]:
    """The device of a snapshot."""
    sectors = int(sh("blockdev", "--getsz", like.node))
    pool = f"/dev/mapper/{dm_name(POOL)}-tpool"
    sh("dmsetup", "create", "look", "--table", f"0 {sectors} thin {pool} {_FIRST_ID + index}")
    sh("dmsetup", "mknodes", "look")  # no udev does it
    try:
        yield Path("/dev/mapper/look")
    finally:
        sh("dmsetup", "remove", "--retry", "look")


def snapshot_of(index: int, like: ThinDisk, place: Path) -> str:
    """What a snapshot holds. Its log is not replayed: what was frozen lies in its place."""
    with shown(index, like) as node:
        if not like.fs:
            return read_first(node)
        options = "ro,norecovery,nouuid" if like.fs == "xfs" else "ro,noload"
        place.mkdir(exist_ok=True)
        sh("mount", "-o", options, node, place)
        try:
            return read_first(place / "data")
        finally:
            sh("umount", place)


def arguments(*disks: ThinDisk, deadline: float = DEADLINE, **more: Any) -> dict[str, Any]:
    """What the job `cut` takes to freeze and suspend these disks."""
    mounts = [disk.mount for disk in disks if disk.fs]
    devices = [disk.device for disk in disks]
    action = snapshots(*disks)
    return {
        "mounts": mounts,
        "devices": devices,
        "action": action,
        "deadline": deadline,
        "sync_timeout": DEADLINE,
    } | more


async def cut(children: HelperPool, *disks: ThinDisk, **more: Any) -> Any:
    return await asyncio.wait_for(children.run("cut", TIMEOUT, **arguments(*disks, **more)), TIMEOUT)


async def paused(children: HelperPool, *disks: ThinDisk, deadline: float = LONG) -> "asyncio.Task[Any]":
    """Start a snapshot whose action sleeps, and return once all is frozen and suspended."""
    task = asyncio.create_task(cut(children, *disks, deadline=deadline, test_pause=PAUSE))
    await until(lambda: in_pause(children.server_pid) or task.done())
    assert not task.done()
    assert all(disk.is_suspended() for disk in disks)
    return task


@contextmanager
def three_disks(place: Path) -> Iterator[list[ThinDisk]]:
    """A thin pool, and on it a disk of XFS, one of ext4 and a raw one."""
    with thin_pool(size="1g"):
        made: list[ThinDisk] = []
        try:
            for fs in ("xfs", "ext4", ""):
                made.append(make_disk(f"disk-{fs or 'raw'}", fs, place))
            yield made
        finally:
            for disk in made:
                remove_disk(disk)


def free_all(disks: Sequence[ThinDisk]) -> list[str]:
    """Free what is frozen or suspended, for the tests that follow; return the names of those disks."""
    left = [disk.name for disk in disks if not disk.is_free()]
    for disk in disks:
        with suppress(OSError):
            ioctl.resume(disk.info.uuid)
        if disk.fs:
            with suppress(OSError):
                thaw_mount(disk.point)
    return left


# ---- dying at a chosen call

Call = Literal["freeze", "suspend", "message", "resume", "thaw"]
Victim = Literal["itself", "server", "all", "agent", "everybody"]


@dataclass(frozen=True)
class Death:
    """At the first such call of a snapshot, before or after it, these processes are killed. `mark` says that it happened."""

    call: Call
    when: Literal["before", "after"]
    victim: Victim
    mark: Path


def begin_with(death: Death) -> Any:
    """Return what starts a fork server in which that happens, once."""
    root = str(Path(__file__).parents[2])
    plan = json.dumps([death.call, death.when, death.victim, str(death.mark)])

    def begin(control: Any) -> Process:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _DYING, root, plan, str(control.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(control.fileno(),),
            start_new_session=True,
        )

    return begin


_DYING = """
import fcntl, json, os, signal, sys
sys.path.append(sys.argv[1])
from csi_driver.host.dm import control
from csi_driver.host.freeze import state
from csi_driver.host.helper.server import main

call, when, victim, mark = json.loads(sys.argv[2])
agent, server = os.getppid(), os.getpid()
numbers = {state.FIFREEZE: "freeze", state.FITHAW: "thaw"}
ioctl, dm = fcntl.ioctl, control.call

def die(what, moment):
    if (what, moment) != (call, when):
        return
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    workers = [server, os.getppid(), os.getpid()]
    victims = {
        "itself": [os.getpid()],
        "server": [server],
        "all": workers,
        "agent": [agent],
        "everybody": [agent, *workers],
    }[victim]
    for pid in victims:  # none is to see the end of another
        if pid != os.getpid():
            os.kill(pid, signal.SIGSTOP)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)

def around(what, function, *arguments, **more):
    die(what, "before")
    result = function(*arguments, **more)
    die(what, "after")
    return result

def mount_call(fd, request, *arguments):
    return around(numbers.get(request, ""), ioctl, fd, request, *arguments)

def device_call(text, command, *arguments, **more):
    what = {control.TARGET_MESSAGE: "message"}.get(command, "")
    if command == control.SUSPEND:
        what = "suspend" if more.get("flags") else "resume"
    return around(what, dm, text, command, *arguments, **more)

fcntl.ioctl, control.call = mount_call, device_call
main(int(sys.argv[3]))
"""


# ---- an agent


def session(children: HelperPool) -> FreezeSession:
    """The freezes of a pool, as an agent has them."""

    async def explain(_: Sequence[Volume]) -> str:
        return "no reason"

    return FreezeSession("fast", VolumeHelpers(children), DEADLINE, asyncio.to_thread, explain)


def member(disk: ThinDisk) -> MountedVolume:
    volume = Volume(
        ObjectId("node1", "fast", f"{disk.id:032x}"), disk.name, "uid", 1, 1 << 26, VolumeRequest(disk.name)
    )
    number = disk.info.major, disk.info.minor
    device = BlockDevice(str(disk.node), f"dm-{disk.info.minor}", *number, disk.info.uuid)
    return MountedVolume(volume, device, str(disk.point) if disk.fs else "", suspend=True)


async def agent(death: Death, place: Path, disks: Sequence[ThinDisk]) -> None:
    """Be an agent that takes a snapshot, records it in `place`, and dies with others."""
    children = HelperPool(grace=20.0, begin=begin_with(death))
    await children.start()
    freezes = session(children)
    await freezes.open(Journal(str(place)))
    await freezes.run([member(disk) for disk in disks], snapshots(*disks))


def run_agent(death: Death, place: Path, disks: Sequence[ThinDisk]) -> None:
    """Run such an agent in a process of its own, until its end. Its fork server may live longer."""
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(agent(death, place, disks))
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "it did not die"

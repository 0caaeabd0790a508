"""The process that is killed. A server of one thread, with everything imported, forks one child for each run.

Reads from its standard input lines of JSON: {"scenario", "pool", "place", "stop", "how", "deep"}. The child opens the pool,
operates, and dies at the point `stop` (0: nowhere). Answers: {"points": [names passed], "acknowledged": bool, "status": n},
when the child and everything that it started are gone.
"""

import asyncio
import ctypes
import fcntl
import json
import os
import signal
import struct
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

from crash_scenarios import BY_NAME, DISK, Scenario
from support import fork_servers
from support.lvm_rig import LvmRig
from support.node_rig import Rig
from support.pool_disk import Disk

from csi_driver.host import syscalls
from csi_driver.host.fs import allocation
from csi_driver.host.helper import job_table
from csi_driver.host.helper.client import HelperPool

LOOKING = {
    "loop_identities",
    "statvfs",
    "ping",
    "find_lvm",
    "find_pool_devices",
    "resume_pool",
    "content_format",
    "probe_thin",
}
"""Jobs that change nothing."""
REPORTS = {"lvs", "vgs", "pvs"}
"""Commands of lvm of which the same is true."""
allocation.STEP = DISK // 2  # space is taken in several steps, and there are gaps between them
_GOINGDOWN = 0x8004587D
_NO_LOG_FLUSH = 2


RIGS: dict[str, type[Rig]] = {"reflink": Rig, "lvm": LvmRig}


class Points:
    """Counts what is passed, tells it at once, and ends the process at the one that was asked for."""

    def __init__(self, out: int, stop: int, how: str, pool: str) -> None:
        self._out, self._stop, self._how, self._pool = out, stop, how, pool
        self._count = 0
        self._lock = threading.Lock()
        self.on = False

    def __call__(self, name: str) -> None:
        if not self.on:
            return
        with self._lock:
            self._count += 1
            os.write(self._out, f"{name}\n".encode())
            if self._count == self._stop:
                self._end()

    def acknowledged(self) -> None:
        with self._lock:
            os.write(self._out, b"!acknowledged\n")

    def _end(self) -> None:
        if self._how == "power" and os.path.isdir(self._pool):
            # What was not synced to the disk is gone, as after a power cut; the parent mounts it again.
            fd = os.open(self._pool, os.O_RDONLY)
            fcntl.ioctl(fd, _GOINGDOWN, struct.pack("I", _NO_LOG_FLUSH))
        os.kill(os.getpid(), signal.SIGKILL)


def watch(points: Points) -> None:
    """Every call that changes a file system is a point of its own."""
    for name in ("mkdir", "rename", "fsync", "unlink", "rmdir", "ftruncate", "chmod", "fchmod"):
        _wrap(os, name, points)
    _wrap(syscalls, "call", points)
    real = fcntl.ioctl

    def ioctl(fd: Any, request: int, *args: Any) -> Any:
        if request == 0x40049409:
            points("before FICLONE")
        return real(fd, request, *args)

    fcntl.ioctl = ioctl  # type: ignore[assignment]
    opened = os.open

    def open_(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            points("before creating a file")
        return opened(path, flags, *args, **kwargs)

    os.open = open_  # type: ignore[assignment]


def _wrap(module: Any, name: str, points: Points) -> None:
    real = getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        what = args[0].split()[0].rstrip(",") if name == "call" else name
        if name != "call" or what in {"renameat2", "fallocate"}:
            points(f"before {what}")
        return real(*args, **kwargs)

    setattr(module, name, call)


def watch_jobs(points: Points, children: HelperPool) -> None:
    """Before, during and after everything that runs in a child of the fork server."""
    real = children.run

    async def run(job: str, timeout: float, **args: Any) -> Any:
        words = args.get("args", ())  # of lvm
        if job in LOOKING or (words and words[0] in REPORTS):
            return await real(job, timeout, **args)
        name = " ".join([job, *words[:1]])
        points(f"before {name}")
        work = asyncio.ensure_future(real(job, timeout, **args))
        for delay in (0.002, 0.02) if job == "make_file_system" else (0.002,):
            await asyncio.sleep(delay)
            if not work.done():
                points(f"during {name}")
        result = await work
        points(f"after {name}")
        return result

    children.run = run  # type: ignore[method-assign]


async def operate(order: dict[str, Any], points: Points) -> None:
    scenario = BY_NAME[order["scenario"]]
    children: Any = HelperPool(begin=fork_servers.begin_as_child) if order["children"] else InProcess()
    if order["children"]:
        await children.start()
    disk = Disk(Path("/nowhere"), Path(order["pool"]), None)  # type: ignore[arg-type]
    rig = RIGS[order["kind"]](Path(order["place"]), disk, children, options={"init": True})
    if order["deep"]:
        watch(points)
    if order["jobs"]:
        watch_jobs(points, children)
    points.on = isinstance(scenario, Scenario) and scenario.recovers
    await open_with(rig, points)
    points.on = True
    await scenario.operate(rig)
    points.acknowledged()
    points("acknowledged")
    # The trash is emptied in the background: to its end, so that there are as many points each time.
    if isinstance(rig, LvmRig):
        await (rig.backend._janitor or asyncio.sleep(0))
    else:
        await asyncio.get_running_loop().run_in_executor(rig.backend._janitor, int)
    await rig.close()
    points.on = False
    await children.stop()


class InProcess:
    """Jobs of volumes that nobody uses: looking for their devices, which needs no process that can be killed."""

    stuck = 0

    async def run(self, job: str, timeout: float, **args: Any) -> Any:
        return job_table.TABLE[job](**args)

    async def stop(self) -> None:
        pass


async def open_with(rig: Rig, points: Points) -> None:
    """As Rig.open, with the hook in place before the pool is opened."""
    if isinstance(rig, LvmRig):
        make = rig.make_backend

        def hooked(options: dict[str, Any]) -> Any:
            backend = make(options)
            backend.changes.crash_point = points
            return backend

        rig.make_backend = hooked  # type: ignore[method-assign]
        await rig.open()
        return
    from csi_driver.backends.reflink import layout

    made = layout.Layout.__init__

    def init(self: Any, *args: Any) -> None:
        made(self, *args)
        self.crash_point = points

    layout.Layout.__init__ = init  # type: ignore[method-assign]
    await rig.open()


def child(order: dict[str, Any], out: int) -> NoReturn:
    status = 1
    try:
        asyncio.run(operate(order, Points(out, order["stop"], order["how"], order["pool"])))
        status = 0
    except BaseException as error:
        import traceback

        os.write(out, f"!failed {error!r} {traceback.format_exc()}".replace("\n", " | ").encode() + b"\n")
    finally:
        os._exit(status)


def serve() -> None:
    # What the child leaves behind, its fork server above all, becomes ours: the answer waits for its end.
    ctypes.CDLL(None).prctl(36, 1)
    for line in sys.stdin:
        order = json.loads(line)
        said, out = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(said)
            child(order, out)
        os.close(out)
        with os.fdopen(said, "rb") as file:
            passed = file.read().decode().splitlines()
        _, status = os.waitpid(pid, 0)
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        answer = {
            "points": [name for name in passed if not name.startswith("!")],
            "acknowledged": "!acknowledged" in passed,
            "failed": [name for name in passed if name.startswith("!failed")],
            "status": os.waitstatus_to_exitcode(status),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()

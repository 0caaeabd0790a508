"""Runs a command in a kernel of its own that has the device mapper and LVM: user-mode Linux on the host's root, read-only.

    python tests/lvm/machine.py [-m MEMORY] [-d SIZE]... [-t SECONDS] COMMAND...

Inside, /dev/ubda, /dev/ubdb ... are empty sparse disks of the sizes given with -d (one of 20G by default), lvm sees these and
nothing else, no udev runs, and TMPDIR is /run, a file system in memory. /run/host is a directory that host and machine share. The
status is the command's, 124 at the limit of time, 125 if the machine ended without it. A system call takes about 50 us there.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from string import ascii_lowercase

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from support.uml_boot import BASELINE, BOOT  # noqa: E402 - run as a program, the line before finds it
from support.uml_boot import why_not as why_no_machine  # noqa: E402

INSIDE = "TIDEMARK_TEST_MACHINE"
"""Set in the environment of what runs inside."""
TIMED_OUT, DIED = 124, 125
_TOOLS = {"lvm": "lvm2", "thin_check": "thin-provisioning-tools", "dmsetup": "dmsetup"}
_MODULES = Path("/usr/lib/uml/modules")


def why_not() -> str:
    """Return why no such machine can be had here; empty where it can."""
    if reason := why_no_machine():
        return reason
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if missing := [package for tool, package in _TOOLS.items() if shutil.which(tool, path=path) is None]:
        return f"needs LVM inside user-mode Linux: install Debian's {', '.join(missing)}"
    if not list(_MODULES.glob("*/kernel/drivers/md/dm-thin-pool.ko")):
        return f"needs the device mapper inside user-mode Linux: {_MODULES} has no dm-thin-pool.ko"
    if os.geteuid():
        return "needs root: the machine's root is the host's own, and its files are read as this user"
    return ""


@contextmanager
def booted(
    command: Sequence[str], shared: Path, memory: str = "2G", disks: Sequence[str] = ("20G",), **options: object
) -> Iterator["subprocess.Popen[bytes]"]:
    """Boot a machine that runs `command` and goes off; it is killed at the end of the context.

    `shared`: an empty directory, which is /run/host inside; its file `status` tells the command's, if it came to that.
    """
    arguments = []
    for letter, size in zip(ascii_lowercase, disks, strict=False):
        disk = shared.parent / f"{shared.name}-ubd{letter}.img"
        subprocess.run(("truncate", "--size", size, disk), check=True)
        arguments.append(f"ubd{letter}={disk}")
    (shared / "disks").write_text(
        "".join(f"/dev/ubd{letter}\n" for letter, _ in zip(ascii_lowercase, disks, strict=False))
    )
    (shared / "directory").write_text(str(Path.cwd()))
    (shared / "command").write_text(f"{INSIDE}=1 {shlex.join(('env', *command))}")
    environment = {"SHARED": str(shared), **BASELINE}
    argv = [sys.executable, str(BOOT), "linux.uml", f"mem={memory}", *arguments]
    argv += ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={HERE / 'machine_init.sh'}"]
    argv += [f"uml_dir={shared}/", "con=null", "con0=null,fd:1", "quiet"]
    argv += [f"{name}={value}" for name, value in environment.items()]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # every process inside is one of the host's too, of the same group
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for disk in shared.parent.glob(f"{shared.name}-ubd?.img"):
            disk.unlink()


def run(command: Sequence[str], shared: Path, limit: float, **options: object) -> int:
    """Run a command in a machine; return its status. What it prints comes to this process's standard output."""
    with booted(command, shared, **options) as process:  # type: ignore[arg-type]
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return TIMED_OUT
    status = shared / "status"
    return int(status.read_text()) if status.exists() else DIED


def main() -> int:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--memory", default="2G", help="the machine's memory (2G)")
    parser.add_argument("-d", "--disk", action="append", help="the size of a disk (20G); may be given several times")
    parser.add_argument("-t", "--limit", type=float, default=600.0, help="seconds after which it is switched off (600)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if reason := why_not():
        raise SystemExit(reason)
    if not given.command:
        parser.error("no command")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="machine-") as place:
        shared = Path(place, "shared")
        shared.mkdir()
        return run(given.command, shared, given.limit, memory=given.memory, disks=given.disk or ["20G"])


if __name__ == "__main__":
    sys.exit(main())

"""e2fsck, detached from the agent's life: it goes on when the agent ends, and whoever comes later finds it by the lock it holds.

It is given a copy of the image. So whatever ends it in the middle after all (a container takes all its processes with it, and so
does a power cut) costs the time that it took, and harms nothing: killed on the volume itself, it would leave what no check
mends. A small runner waits for it and notes how it ended.

In the directory of a check: `lock`, held by the runner and by e2fsck as long as one of them lives; `e2fsck.log`, what it says;
`status.json`, written durably after its end.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import csi_driver
from csi_driver.host import commands
from csi_driver.host.errors import Busy
from csi_driver.host.fs import files

LOG = "e2fsck.log"
_LOCK, _STATUS = "lock", "status.json"
_READ = 1 << 20
_SAID = 300
"""Characters of what e2fsck said that go into a record and into messages: its last ones say how it ended."""

_MENDED, _BEYOND, _FAILED, _CANCELLED = 1 | 2, 4, 8, 32
"""Bits of e2fsck's exit status: errors corrected; errors left; it could not work; ended by its user."""

_BOOTSTRAP = (
    "import sys; sys.path.append(sys.argv[1]); from csi_driver.host.fs.fsck import main; "
    "main(sys.argv[2], sys.argv[3], int(sys.argv[4]))"
)

_started: list["subprocess.Popen[bytes]"] = []
_starting = threading.Lock()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a check stands. interrupted: it was ended in the middle; failed: it could not do its work, and `said` tells why."""

    result: Literal["running", "interrupted", "mended", "damaged", "failed"]
    said: str = ""


def start(directory: str, image: str) -> None:
    """Check and mend the ext4 in the file `image`, whose check has this directory. Returns once it is begun.

    Raises Busy where one is at work there, OSError.
    """
    lock = files.lock_pool(os.path.join(directory, _LOCK))
    try:
        root = os.path.dirname(os.path.dirname(os.path.abspath(csi_driver.__file__)))
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, root, directory, image, str(lock)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            pass_fds=(lock,),  # taken here and handed over: at no moment is it free
            start_new_session=True,  # a terminal's or a supervisor's signals are for the agent
        )
    finally:
        os.close(lock)
    with _starting:
        _started.append(process)


def look(directory: str) -> Outcome:
    """How the check of this directory stands. Raises OSError."""
    with _starting:  # those that have ended are reaped
        _started[:] = [process for process in _started if process.poll() is None]
    # The lock first: what is noted after it was found free is final.
    try:
        lock = files.lock_pool(os.path.join(directory, _LOCK))
    except Busy:
        return Outcome("running")
    os.close(lock)
    try:
        noted = json.loads(files.read_small(os.path.join(directory, _STATUS)))
        status, said = int(noted["status"]), str(noted["said"])
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return Outcome("interrupted", "it and its runner were killed")
    result = _result(status)
    return Outcome(result, f"exit status {status}" if result == "interrupted" else said)


def _result(status: int) -> Literal["interrupted", "mended", "damaged", "failed"]:
    if status < 0 or status & _CANCELLED:
        return "interrupted"
    if status & _BEYOND:
        return "damaged"
    return "failed" if status & ~_MENDED else "mended"


def main(directory: str, image: str, lock: int) -> None:
    """The runner: start e2fsck, wait for it, and note how it ended."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    path = os.path.join(directory, LOG)
    try:
        with open(path, "wb") as log:
            # Forced: without -f it goes by one bit of the superblock, and leaves the kernel's count of errors as it is.
            process = subprocess.Popen(
                (commands.resolve("e2fsck") or "e2fsck", "-f", "-p", image),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=commands.ENVIRONMENT,
                pass_fds=(lock,),  # whoever kills the runner does not make its work look ended
            )
            status = process.wait()
        with open(path, "rb") as log:
            text = log.read(_READ).decode(errors="replace")
        said = _told(text, image)
        if status > _MENDED and any(os.strerror(code) in text for code in (errno.ENOSPC, errno.EIO)):
            status = _FAILED  # of the pool below, whatever e2fsck takes it for
    except OSError as error:
        status, said = _FAILED, f"e2fsck does not run: {error}"
    with suppress(OSError):  # given up meanwhile, with its directory
        files.write_durably(os.path.join(directory, _STATUS), json.dumps({"status": status, "said": said}).encode())


def _told(text: str, image: str) -> str:
    """The end of what e2fsck said, in one line, without the image's name before each."""
    said = " ".join(text.replace(f"{image}: ", "").split())
    return said if len(said) <= _SAID else "..." + said[-(_SAID - 3) :]

"""e2fsck, detached from the agent: it continues when the agent ends, and the next agent finds it by the lock that it holds.

It works on a copy of the image. A container takes all its processes with it, and so does a power cut: that costs the time of
the check and harms nothing. Killed on the volume itself, e2fsck would leave damage that no check repairs. A small runner in a
session of its own, started by the agent and not by a helper, waits for e2fsck and notes how it ended.

In the directory of a check: `lock`, held by the runner and by e2fsck as long as one of them lives; `e2fsck.log`, its output;
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
_MESSAGE_LENGTH = 300
"""Characters of e2fsck's output that go into a record and into messages: the last ones say how it ended."""

_CORRECTED, _LEFT, _FAILED, _CANCELLED = 1 | 2, 4, 8, 32
"""Bits of e2fsck's exit status: errors corrected; errors left; it could not work; ended by its user."""

_BOOTSTRAP = (
    "import sys; sys.path.append(sys.argv[1]); from csi_driver.host.fs.fsck import main; "
    "main(sys.argv[2], sys.argv[3], int(sys.argv[4]))"
)

_started: list["subprocess.Popen[bytes]"] = []
_starting = threading.Lock()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The state of a check. interrupted: it was ended in the middle; failed: it could not work, and `message` says why."""

    result: Literal["running", "interrupted", "mended", "damaged", "failed"]
    message: str = ""


def start(directory: str, image: str) -> None:
    """Start to check and repair the ext4 in the file `image`, in this directory.

    Raises Busy if a check is running there, OSError.
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


def outcome(directory: str) -> Outcome:
    """Return the state of the check in this directory. Raises OSError."""
    with _starting:  # reap those that have ended
        _started[:] = [process for process in _started if process.poll() is None]
    # The lock first: what is noted after it was found free is final.
    try:
        lock = files.lock_pool(os.path.join(directory, _LOCK))
    except Busy:
        return Outcome("running")
    os.close(lock)
    try:
        record = json.loads(files.read_small(os.path.join(directory, _STATUS)))
        status, message = int(record["status"]), str(record["said"])
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return Outcome("interrupted", "e2fsck and its runner were killed")
    result = _result(status)
    return Outcome(result, f"exit status {status}" if result == "interrupted" else message)


def _result(status: int) -> Literal["interrupted", "mended", "damaged", "failed"]:
    if status < 0 or status & _CANCELLED:
        return "interrupted"
    if status & _LEFT:
        return "damaged"
    return "failed" if status & ~_CORRECTED else "mended"


def main(directory: str, image: str, lock: int) -> None:
    """The runner: start e2fsck, wait for it, and note how it ended."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    path = os.path.join(directory, LOG)
    try:
        with open(path, "wb") as log:
            # Without -f it trusts one bit of the superblock, and leaves the kernel's count of errors as it is.
            process = subprocess.Popen(
                (commands.resolve("e2fsck") or "e2fsck", "-f", "-p", image),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=commands.ENVIRONMENT,
                pass_fds=(lock,),  # if the runner is killed, its work does not look ended
            )
            status = process.wait()
        with open(path, "rb") as log:
            text = log.read(_READ).decode(errors="replace")
        message = _last_words(text, image)
        if status > _CORRECTED and any(os.strerror(code) in text for code in (errno.ENOSPC, errno.EIO)):
            status = _FAILED  # an error of the pool below, whatever e2fsck makes of it
    except OSError as error:
        status, message = _FAILED, f"e2fsck does not run: {error}"
    with suppress(OSError):  # the check was dropped meanwhile, with its directory
        files.write_durably(os.path.join(directory, _STATUS), json.dumps({"status": status, "said": message}).encode())


def _last_words(text: str, image: str) -> str:
    """Return the end of e2fsck's output as one line, without the image's name."""
    message = " ".join(text.replace(f"{image}: ", "").split())
    return message if len(message) <= _MESSAGE_LENGTH else "..." + message[-(_MESSAGE_LENGTH - 3) :]

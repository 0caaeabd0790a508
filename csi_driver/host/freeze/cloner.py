"""The process that makes a cut's clones, since only a process can be killed."""

import errno
import fcntl
import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

from csi_driver.host.freeze.state import FreezeError

_FICLONE = 0x40049409


class Cloner:
    """The process that makes the clones: forked before the freeze with all files open, so that the freeze waits for FICLONE alone.

    A process, since only a process can be killed: FICLONE looks for fatal signals after each extent, and a FITHAW waits for it.
    It keeps the job's socket: as long as that is open, somebody who could hold a thaw up is alive.
    """

    def __init__(self, clones: Sequence[dict[str, str]], pause: float) -> None:
        self.total, self.done, self.alive = len(clones), 0, True
        self._clones = clones
        self._lines: list[bytes] = []
        start, self._start = os.pipe()
        self._reports, report = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self._start)
                os.close(self._reports)
                self._clone(clones, start, report, pause)
                code = 0
            finally:
                os._exit(code)
        os.close(start)
        os.close(report)
        self._pidfd = os.pidfd_open(self.pid)

    @staticmethod
    def _clone(clones: Sequence[dict[str, str]], start: int, report: int, pause: float) -> None:
        index = 0
        try:
            files = []
            for clone in clones:
                source = os.open(clone["source"], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                target = os.open(clone["target"], os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                if os.fstat(target).st_size:
                    raise OSError(errno.EEXIST, "the target is not empty")
                files.append((source, target))
                index += 1
            index = 0
            os.write(report, b"ready\n")
            if os.read(start, 1) != b"!":
                return  # the cut has died or given up
            if pause:
                # A test ends it when it has seen what it wanted to see, and need not guess how long that takes.
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
                signal.sigtimedwait({signal.SIGUSR1}, pause)
            for source, target in files:
                fcntl.ioctl(target, _FICLONE, source)
                os.write(report, b"cloned\n")
                index += 1
        except OSError as error:
            os.write(report, f"failed {index} {error.errno or 0}\n".encode())

    def wait_ready(self, until: float) -> None:
        """Wait until all files are open. Raises FreezeError CloneFailed."""
        if self._line(until) != b"ready":
            raise FreezeError("CloneFailed", "the images could not be opened in time", errno.ETIMEDOUT)

    def run(self, until: float) -> bool:
        """Let it clone; True when all is done, False at the time `until`. Raises FreezeError CloneFailed."""
        with suppress(BrokenPipeError):  # it is dead: its reports end, which says so
            os.write(self._start, b"!")
        while self.done < self.total:
            line = self._line(until)
            if line is None:
                return False
            self.done += 1
        return True

    def _line(self, until: float) -> bytes | None:
        poller = select.poll()
        poller.register(self._reports, select.POLLIN)
        while not self._lines:
            left = until - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000 + 1):
                return None
            data = os.read(self._reports, 65536)
            if not data:
                raise FreezeError("CloneFailed", "the cloning process died", errno.EIO)
            self._lines = data.splitlines()  # whole lines: each is one small write to a pipe
        line = self._lines.pop(0)
        if line.startswith(b"failed"):
            index, code = map(int, line.split()[1:])
            pair = "{source} to {target}".format_map(self._clones[index])
            raise FreezeError("CloneFailed", f"cloning {pair}: {os.strerror(code)}", code, index=index)
        return line

    def kill(self, grace: float) -> bool:
        """Kill it; True once it is dead, False where it is stuck in the kernel beyond `grace` seconds."""
        if self.alive:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            if poller.poll(grace * 1000):
                self.reap()
        return not self.alive

    def reap(self) -> None:
        """Wait for its end, as long as that takes."""
        if self.alive:
            os.waitpid(self.pid, 0)
            self.alive = False

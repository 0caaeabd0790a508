"""One job as the agent sees it, from its sending until its child is gone, and the errors that it can end with."""

import asyncio
import errno
import socket
import time
from collections.abc import Callable
from typing import Any

from csi_driver.host.helper.messages import Failure, decode_answer

_MAX_ANSWER = 16 << 20
"""Bytes of one answer."""


class JobEnded(asyncio.Event):
    """Set once no process works on a job any longer, and every freeze of it is undone or given up."""

    frozen = False
    """Whether a freeze was given up: its file system may still be frozen, and nobody tries to thaw it any longer."""


class JobFailed(Exception):
    """A job ended with an error, or could not be run.

    `type`: the kind or class of the error inside the job (FreezeError's kinds for a snapshot); or, from this side: Crashed (the
    child died without an answer), ForkFailed, TooLarge, NoServer, ServerDied, Busy (no slot in time), Stopped,
    TooManyStuck, StillFrozen (given up by the watchdog). `errno`: 0 where no system call failed. `gone` is nearly always
    set already.
    """

    def __init__(
        self,
        job: str,
        errno_: int,
        message: str,
        type_: str,
        details: dict[str, Any] | None = None,
        gone: JobEnded | None = None,
    ) -> None:
        super().__init__(f"{job}: {message}")
        self.job, self.errno, self.message, self.type = job, errno_, message, type_
        self.details = details or {}
        self.gone = gone or _set_event()


class JobStuck(Exception):
    """A job passed its deadline of `timeout` seconds and was killed. `gone`: as for JobFailed; not set means that it hangs on.

    Until `gone` is set the caller must treat what the job worked on as still being worked on (keep its lock).
    """

    def __init__(self, job: str, timeout: float, gone: JobEnded) -> None:
        fate = "killed" if gone.is_set() else "killed, but it hangs in the kernel"
        super().__init__(f"{job}: no answer within {timeout:g} s; {fate}")
        self.job, self.timeout, self.gone = job, timeout, gone


class Job:
    """One job until its child is gone. `on_eof`: nobody works on it any more who could answer."""

    def __init__(self, number: int, name: str, args: dict[str, Any], on_eof: Callable[["Job"], None]) -> None:
        self.number, self.name, self.args = number, name, args
        self.started = time.monotonic()
        self.pid = 0
        self.slots: asyncio.Semaphore | None = None  # whose place it holds
        self.open = False  # a process lives that has the other end of the channel
        self.ending = ""  # how its child ended, once that is reaped; a tool or a cloner of it may live on
        self.orphan = False  # its fork server has died
        self.killed = False
        self.abandoned = False
        self.outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()  # the result, or a JobFailed
        self.gone = JobEnded()
        self._on_eof = on_eof
        self._buffer = bytearray()

    def connect(self) -> socket.socket:
        """Make the channel. Returns the end of the child, which is to be closed when it is sent. Raises OSError."""
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        self.open = True
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self.read)
        return theirs

    @property
    def failure_type(self) -> str | None:
        """The type of its failure; empty for a result, None while there is no answer."""
        if not self.outcome.done():
            return None
        outcome = self.outcome.result()
        return outcome.type if isinstance(outcome, JobFailed) else ""

    def resolve(self, outcome: Any) -> None:
        """Take the first answer; later ones are ignored."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def fail(self, type_: str, message: str, code: int = 0, details: dict[str, Any] | None = None) -> None:
        """Answer with an error."""
        self.resolve(JobFailed(self.name, code, message, type_, details, self.gone))

    def leave_frozen(self, message: str) -> None:
        """Note that a freeze of this job was given up, whatever it has answered."""
        self.gone.frozen = True
        self.fail("StillFrozen", message)

    def free_slot(self) -> None:
        """Let another job have this one's slot, if it still holds one."""
        if self.slots:
            self.slots.release()
            self.slots = None

    def read(self) -> None:
        """Take what the channel has."""
        while self.open:
            try:
                data = self._channel.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                self._on_eof(self)
                return
            self._buffer += data
            if b"\n" in data:
                answer = decode_answer(self._buffer)
                if isinstance(answer, Failure):
                    self.fail(answer.type, answer.message, answer.errno, answer.details)
                else:
                    self.resolve(answer)
                self._buffer.clear()
            elif len(self._buffer) > _MAX_ANSWER:
                self.fail("TooLarge", f"an answer of more than {_MAX_ANSWER} bytes", errno.E2BIG)
                self._buffer.clear()

    def close(self) -> None:
        """Close the channel."""
        if self.open:
            self.open = False
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._channel.close()


def _set_event() -> JobEnded:
    event = JobEnded()
    event.set()
    return event

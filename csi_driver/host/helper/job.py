"""One job from its sending until its child is gone, one life of the fork server, and what can be told of a job's end."""

import asyncio
import os
import socket
import time
from collections import deque
from typing import Any, Protocol


class JobEnded(asyncio.Event):
    """Set once no process works on a job any more, and every freeze of it is undone or given up."""

    frozen = False
    """Whether a freeze was given up: its file system may be frozen still, and nobody tries any more."""


class JobFailed(Exception):
    """A job ended with an error, or could not be run.

    `type`: the kind or class of the error inside the job (FreezeError's kinds for a cut); or, from this side: Crashed (the
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
    """One job from its sending until its child is gone."""

    def __init__(self, number: int, name: str, args: dict[str, Any], channel: socket.socket) -> None:
        self.number, self.name, self.args, self.channel = number, name, args, channel
        self.buffer = bytearray()
        self.started = time.monotonic()
        self.taken = False  # the server has it: a child may exist
        self.pid = 0
        self.open = True  # somebody holds the other end of the channel
        self.ending = ""  # how its child ended, once that is reaped; a tool or a cloner of it may live on
        self.orphan = False  # its fork server has died
        self.killed = False
        self.written_off = False
        self.holds_slot = True
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.gone = JobEnded()

    def resolve(self, message: dict[str, Any]) -> None:
        """Take the first answer; later ones are not heard."""
        if not self.answer.done():
            self.answer.set_result(message)

    def fail(self, type_: str, message: str, code: int = 0) -> None:
        """Answer with an error of this side's own."""
        self.resolve({"error": {"type": type_, "errno": code, "message": message, "details": {}}})

    def leave_frozen(self, message: str) -> None:
        """Note that a freeze of this job was given up, whatever it has answered."""
        self.gone.frozen = True
        self.fail("StillFrozen", message)


class Process(Protocol):
    """The fork server's process, as `subprocess.Popen` has it."""

    pid: int

    def kill(self) -> None:
        """Kill it, if it lives."""

    def poll(self) -> int | None:
        """Reap it if it has ended. Returns its status, None while it lives."""


class Server:
    """One life of the fork server."""

    def __init__(self, process: Process, control: socket.socket) -> None:
        self.process, self.control = process, control
        self.outbox: deque[tuple[bytes, socket.socket | None]] = deque()
        self.hello = asyncio.Event()
        self.exited = asyncio.Event()
        self.up = self.dead = False
        self.pidfd = os.pidfd_open(process.pid)


def _set_event() -> JobEnded:
    event = JobEnded()
    event.set()
    return event

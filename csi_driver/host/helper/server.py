"""The fork server: a small process that runs in children of its own whatever may hang in the kernel, and undoes freezes.

The agent starts it before it imports gRPC (whose threads do not survive a fork) and before it locks its pool (a child that
hangs forever would hold an inherited lock forever). It has one thread and waits for its socket and its children only.

It talks to the agent in the packets of messages.py over a SOCK_SEQPACKET pair. Each job has a socket of its own besides, on
which its child answers. That is open exactly as long as a process lives that works on the job: the child, a cloner, a tool.
A process that does not die when its group is killed (it sleeps in the kernel) is noticed by that, whoever reaps it.

As the watchdog of freezes the server thaws what a `cut` left frozen: when its child ends with another status than 0, when it
is killed, when it is late by more than LATE_SECONDS, and when the agent goes away. A thaw is a fresh child, which may itself
hang. If the agent is pid 1 of its pid namespace, the kernel kills the server with it (host/pid1.py avoids that): then the
journal of freezes and the next agent's start remain.
"""

import _socket as socket  # the C half alone: `socket` brings selectors and enumerations, 0.5 MiB
import errno
import fcntl
import gc
import os
import select
import signal
import struct
import time
from collections.abc import Callable
from contextlib import suppress

from csi_driver.host import syscalls
from csi_driver.host.helper import messages
from csi_driver.host.helper.child import LATE_SECONDS, RunningJob, log_to_stderr, run_job, run_thaw
from csi_driver.host.helper.messages import MAX_MESSAGE, Message

_TICK = 0.25
_MAX_THAW_ATTEMPTS = 5
_THAW_PAUSE = 0.5
_THAW_WAIT = 60.0
"""Seconds that the server stays for thaws that hang after the agent has gone."""
_KILL_WAIT = 2.0
"""Seconds that it stays for other jobs to die."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The agent decides when to stop: it gets the same signals, and may be in the middle of a freeze."""
_PR_SET_NAME = 15


class Server:
    """The server's loop and its jobs."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._jobs: dict[int, RunningJob] = {}
        self._children: dict[int, tuple[RunningJob, bool]] = {}  # by pid; True: a thaw of the job, False: its own child
        self._outbox: list[bytes] = []
        self._agent_gone_at = 0.0  # 0: it lives
        self._wake, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def run(self) -> None:
        """Serve until the agent is gone and all is thawed."""
        self._send(messages.ServerReady())
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        while not self._agent_gone_at or self._has_work_left():
            if not self._agent_gone_at:
                poller.register(self._control, select.POLLIN | (select.POLLOUT if self._outbox else 0))
            ticking = bool(self._agent_gone_at) or any(job.page is not None for job in self._jobs.values())
            events = dict(poller.poll(_TICK * 1000 if ticking else None))
            if self._wake in events:
                os.read(self._wake, 4096)
            self._reap()
            if not self._agent_gone_at and self._control.fileno() in events:
                self._flush()
                if not self._receive():
                    poller.unregister(self._control)
                    self._on_agent_gone()
            self._watch_freezes()

    # ---- messages

    def _send(self, message: Message) -> None:
        self._outbox.append(messages.encode(message))
        self._flush()

    def _flush(self) -> None:
        while self._outbox:
            try:
                self._control.send(self._outbox[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:  # the agent is gone: the next receive notices that, or has
                self._outbox.clear()
                return
            del self._outbox[0]

    def _log(self, text: str) -> None:
        if self._agent_gone_at:
            log_to_stderr(text)
        else:
            self._send(messages.LogLine(text))

    def _receive(self) -> bool:
        """Take one message. False: the agent is gone."""
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            packet, control, _, _ = self._control.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(4), flags)
        except BlockingIOError:
            return True
        except OSError:
            return False
        fd = struct.unpack("i", control[0][2])[0] if control else -1
        try:
            message = messages.decode(packet) if packet else None
            if isinstance(message, messages.KillJob):
                self._kill(self._jobs.get(message.number))
            elif isinstance(message, messages.RunJob):
                self._start(message, fd)
        except ValueError as error:
            self._log(str(error))
        finally:
            if fd >= 0:
                os.close(fd)
        return bool(packet)

    # ---- children

    def _start(self, request: messages.RunJob, fd: int) -> None:
        try:
            if fd < 0:
                raise OSError(errno.EMFILE, "no descriptor for it")
            job = RunningJob(request)
            job.pid = self._fork(job, False, lambda: run_job(job, socket.socket(fileno=fd)))
        except OSError as error:
            self._send(messages.HelperExited(request.number, 1, True, f"no process for the job: {error}"))
            return
        self._jobs[job.number] = job
        self._send(messages.JobStarted(job.number, job.pid))

    def _fork(self, job: RunningJob, thaws: bool, work: Callable[[], bool]) -> int:
        """Fork a child that does `work` and ends with status 0 if that returns True. Raises OSError."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self._detach_from_server()
                if work():
                    status = 0
            finally:
                os._exit(status)
        self._children[pid] = (job, thaws)
        _lead_group(pid)  # parent and child do it, since either may be first
        return pid

    def _detach_from_server(self) -> None:
        """In a fresh child: release all that is the server's."""
        _lead_group(0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *_SIGNALS):
            signal.signal(number, signal.SIG_DFL)
        for fd in (self._control.detach(), self._wake, self._wake_write):
            if fd >= 0:
                os.close(fd)

    def _kill(self, job: RunningJob | None) -> None:
        """Kill a job's process group, and thaw at once what a freeze of it that hangs does not delay."""
        if job is None or job.status is not None:
            return
        job.killed = True
        _kill_group(job.pid)
        if job.may_be_frozen():
            self._thaw(job)

    def _thaw(self, job: RunningJob) -> None:
        job.thaw_attempts += 1
        try:
            self._fork(job, True, lambda: run_thaw(job))
        except OSError:
            job.next_thaw_at = time.monotonic() + _THAW_PAUSE
        else:
            job.thaws_running += 1

    def _reap(self) -> None:
        while True:
            try:
                # Look first and reap later: until it is reaped, its pid names its group and cannot be another's.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            job, thaws = self._children.pop(ended.si_pid)
            status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            if status or job.killed:
                _kill_group(ended.si_pid)  # its tool, or the cloner of a snapshot
            os.waitpid(ended.si_pid, 0)
            (self._on_thaw_exit if thaws else self._on_job_exit)(job, status)
            self._finish(job)

    def _on_thaw_exit(self, job: RunningJob, status: int) -> None:
        job.thaws_running -= 1
        if job.status is not None:
            job.thawed = status == 0
            if status != 0 and job.thaw_attempts < _MAX_THAW_ATTEMPTS:
                job.next_thaw_at = time.monotonic() + _THAW_PAUSE

    def _on_job_exit(self, job: RunningJob, status: int) -> None:
        job.status = status
        job.thaw_attempts = 0
        if status != 0 and job.may_be_frozen():
            # A FIFREEZE that was under way at the kill has returned by now: only this thaw is final.
            self._log(
                f"a snapshot job ended inside its freeze ({messages.describe_status(status)}): thawing {job.points}"
            )
            self._thaw(job)

    def _finish(self, job: RunningJob) -> None:
        """Forget a job whose child is reaped and whose freezes are undone or given up."""
        if job.status is None or job.thaws_running or job.next_thaw_at:
            return
        thawed = job.status == 0 or job.thawed or not job.may_be_frozen()
        if not thawed:
            self._log(f"thaw given up: {job.points} may still be frozen")
        del self._jobs[job.number]
        self._send(messages.HelperExited(job.number, job.status, thawed))

    def _watch_freezes(self) -> None:
        now = time.monotonic()
        for job in list(self._jobs.values()):
            if job.next_thaw_at and now >= job.next_thaw_at:
                job.next_thaw_at = 0.0
                self._thaw(job)
            if job.is_late(now):
                job.late = True
                self._log(
                    f"a snapshot job is late by more than {LATE_SECONDS:g} s: killing it and thawing {job.points}"
                )
                self._kill(job)

    # ---- the end

    def _on_agent_gone(self) -> None:
        """Kill all jobs: no clone has a reader any more, no freeze a reason. Thaws that the agent asked for go on."""
        self._agent_gone_at = time.monotonic()
        self._control.close()
        for job in list(self._jobs.values()):
            if not job.is_thaw:
                self._kill(job)

    def _has_work_left(self) -> bool:
        """Whether there is still something to thaw, or to wait for until that is known."""
        passed = time.monotonic() - self._agent_gone_at
        thawing = any(job.page is not None or job.is_thaw for job in self._jobs.values())
        return passed < _THAW_WAIT if thawing else bool(self._jobs) and passed < _KILL_WAIT


def _ignore(*_: object) -> None:
    """Do nothing: a handler is needed so that the signal writes to the wake-up descriptor."""


def _lead_group(pid: int) -> None:
    with suppress(OSError):  # it has ended, or did it itself
        os.setpgid(pid, pid)


def _kill_group(pid: int) -> None:
    with suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def main(fd: int) -> None:
    """Serve the agent at the other end of the socket `fd`; return when it is gone and everything is thawed."""
    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    syscalls.call("PR_SET_NAME", "prctl", _PR_SET_NAME, b"tidemark-fork")
    gc.collect()
    gc.freeze()  # the children share these pages
    Server(socket.socket(fileno=fd)).run()

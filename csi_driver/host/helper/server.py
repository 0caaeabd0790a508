"""The fork server: a small process that runs in children of its own whatever may hang in the kernel, and undoes freezes.

It is started before the agent imports gRPC (whose threads do not survive a fork) and before the agent locks its pool (what
hangs forever would hold an inherited lock forever). It has one thread and waits for nothing but its socket and its children.

Protocol, JSON over a SOCK_SEQPACKET pair whose other end is the agent's (children.py):
  agent to server   {"id", "job", "args"} with one descriptor, the job's socket; {"kill": id}
  server to agent   {"hello": pid}; {"log": text}; {"taken": id}: a child may exist from now on; {"id", "pid"}: it does;
                    {"gone": id, "status", "thawed"}: the child is reaped, its process group killed where it failed, and
                    every freeze of it undone (`thawed` false: given up);
                    {"refused": id, "errno", "message"}: no child could be made
  job's socket      one line of JSON from the child: {"ok": result} or {"error": {"type", "errno", "message", "details"}}.
                    It is open exactly as long as somebody lives who works on the job: the child, a cloner, a tool. What
                    does not die when its group is killed (it sleeps in the kernel) is seen by that, whoever reaps it.

As the watchdog of freezes it thaws what a `cut` left frozen: when its child ends with another status than 0, when it is
killed, when it is late by more than LATE seconds, and when the agent goes away. A thaw is a fresh child, which may itself hang.
An agent that is pid 1 of its pid namespace takes the server with it when it dies (the kernel kills the namespace): there only
the announcements and the next agent's sweep are left.
"""

import _socket as socket  # the C half alone: `socket` brings selectors and enumerations, 0.5 MiB
import errno
import fcntl
import gc
import json
import mmap
import os
import select
import signal
import struct
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

from csi_driver.host import commands, syscalls
from csi_driver.host.freeze import state as freeze_state
from csi_driver.host.freeze import thaw
from csi_driver.host.helper import job_table

MAX_MESSAGE = 192 << 10
"""Bytes of one request; a group of 64 members needs 40 KiB."""

LATE = 3.0
"""Seconds after a cut's deadline when the watchdog does not believe any more that its child will thaw (it needs 2 at worst)."""

_TICK = 0.25
_THAW_TRIES = 5
_THAW_PAUSE = 0.5
_LAST_WAIT = 60.0
"""Seconds that the server stays for thaws that hang when the agent is gone."""
_LAST_KILL_WAIT = 2.0
"""Seconds that it stays for other jobs to die."""

_PR_SET_NAME = 15


class _Job:
    """A child at work and, for a cut, what has to be undone after it."""

    def __init__(self, number: int, name: str, args: dict[str, Any]) -> None:
        self.number, self.name, self.args = number, name, args
        mounts = args.get("mounts")
        self.mounts: list[dict[str, object]] = mounts if isinstance(mounts, list) else []
        self.pid = 0
        self.status: int | None = None
        self.killed = self.late = False
        self.thaws = 0  # children that thaw for it now
        self.tries = 0
        self.again = 0.0  # when to try the next thaw
        self.thawed = False
        self.states: mmap.mmap | None = mmap.mmap(-1, freeze_state.STATES_BYTES) if name == "cut" else None

    def frozen(self, *states: int) -> bool:
        """Whether one of its mounts is in one of these states."""
        if self.states is None:
            return False
        return any(self.states[index] in states for index in range(min(len(self.mounts), freeze_state.MAX_MOUNTS)))


class Server:
    """The server's loop and everything it remembers."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._jobs: dict[int, _Job] = {}
        self._children: dict[int, tuple[_Job, str]] = {}  # pid: job, and what the child is to it: work, thaw
        self._outbox: list[bytes] = []
        self._orphaned = 0.0  # since when the agent is gone
        self._wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake_write = wake
        signal.signal(signal.SIGCHLD, _ignore)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        # The agent decides: it is told to stop by the same signals, and may be in the middle of a freeze.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def run(self) -> None:
        """Serve until the agent is gone and all is thawed."""
        self._send({"hello": os.getpid()})
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        while not self._orphaned or self._care():
            if not self._orphaned:
                poller.register(self._control, select.POLLIN | (select.POLLOUT if self._outbox else 0))
            watched = bool(self._orphaned) or any(job.states is not None for job in self._jobs.values())
            events = dict(poller.poll(_TICK * 1000 if watched else None))
            if self._wake in events:
                os.read(self._wake, 4096)
            self._reap()
            if not self._orphaned and self._control.fileno() in events:
                self._flush()
                if not self._receive():
                    poller.unregister(self._control)
                    self._orphan()
            self._watch()

    # ---- the agent's socket

    def _send(self, message: dict[str, Any]) -> None:
        if not self._orphaned:
            self._outbox.append(json.dumps(message).encode())
            self._flush()

    def _flush(self) -> None:
        while self._outbox:
            try:
                self._control.send(self._outbox[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:  # the agent is gone: the next receive says so
                self._outbox.clear()
                return
            del self._outbox[0]

    def _report(self, text: str) -> None:
        if self._orphaned:
            _log(text)
        else:
            self._send({"log": text})

    def _receive(self) -> bool:
        """Take one message; False: the agent is gone."""
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            data, control, _, _ = self._control.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(4 * 4), flags)
        except BlockingIOError:
            return True
        except OSError:
            return False
        fds: list[int] = []
        for level, kind, payload in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds += struct.unpack(f"{len(payload) // 4}i", payload[: len(payload) // 4 * 4])
        try:
            if not data:
                return False
            message = json.loads(data)
            if "kill" in message:
                self._kill(self._jobs.get(message["kill"]))
            elif not fds:  # no room for another descriptor
                self._send({"refused": message["id"], "errno": errno.EMFILE, "message": "no descriptor for the job"})
            else:
                self._start(message["id"], message["job"], message["args"], fds[0])
        except ValueError as error:
            self._report(f"not a message: {error}")
        finally:
            for fd in fds:
                os.close(fd)
        return True

    # ---- jobs

    def _start(self, number: int, name: str, args: dict[str, Any], fd: int) -> None:
        self._send({"taken": number})
        try:
            job = _Job(number, name, args)
            pid = os.fork()
        except OSError as error:
            self._send({"refused": number, "errno": error.errno, "message": f"no process for the job: {error}"})
            return
        if pid == 0:
            self._child(job, fd)
        self._jobs[number] = job
        self._adopt(pid, job, "work")
        job.pid = pid
        self._send({"id": number, "pid": pid})

    def _adopt(self, pid: int, job: _Job, role: str) -> None:
        self._children[pid] = (job, role)
        _own_group(pid)  # both sides do it, since either may be first

    def _leave(self) -> None:
        """In a fresh child: let go of all that is the server's."""
        _own_group(0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        for fd in (self._control.detach(), self._wake, self._wake_write):
            if fd >= 0:
                os.close(fd)

    def _child(self, job: _Job, fd: int) -> NoReturn:
        status = 1
        try:
            self._leave()
            channel = socket.socket(fileno=fd)
            commands.hold_open(channel)
            if _work(job, channel):
                status = 0
        finally:
            os._exit(status)

    def _kill(self, job: _Job | None) -> None:
        """Kill the whole group of a job and, where it froze something, thaw at once what a hanging freeze of it does not hold up."""
        if job is None or job.status is not None:
            return
        job.killed = True
        _kill_group(job.pid)
        if job.frozen(freeze_state.FREEZING, freeze_state.FROZEN):
            self._thaw(job)

    def _thaw(self, job: _Job) -> None:
        job.tries += 1
        try:
            pid = os.fork()
        except OSError:
            job.again = time.monotonic() + _THAW_PAUSE
            return
        if pid == 0:
            status = 1
            try:
                self._leave()
                thaw.thaw(job.mounts, states=job.states)
                status = 0
            except BaseException as error:
                _log(f"{error}")
            finally:
                os._exit(status)
        job.thaws += 1
        self._adopt(pid, job, "thaw")

    def _reap(self) -> None:
        while True:
            try:
                # Seen first, reaped later: until it is reaped its pid is its group's name and cannot be anybody else's.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            known = self._children.pop(ended.si_pid, None)
            failed = ended.si_code != os.CLD_EXITED or ended.si_status != 0
            if known and (failed or known[0].killed):
                _kill_group(ended.si_pid)  # a tool of a helper, the cloner of a cut
            os.waitpid(ended.si_pid, 0)
            if known:
                self._ended(*known, -ended.si_status if ended.si_code != os.CLD_EXITED else ended.si_status)

    def _ended(self, job: _Job, role: str, status: int) -> None:
        if role == "thaw":
            job.thaws -= 1
            if job.status is not None:
                job.thawed = status == 0
                if status != 0 and job.tries < _THAW_TRIES:
                    job.again = time.monotonic() + _THAW_PAUSE
        else:
            job.status = status
            job.tries = 0
            if status != 0 and job.frozen(freeze_state.FREEZING, freeze_state.FROZEN):
                # A FIFREEZE under way at the kill has come back by now: only this thaw is the final one.
                self._report(f"a cut ended inside its freeze ({_ending(status)}): thawing {_points(job)}")
                self._thaw(job)
        if job.status is None or job.thaws or job.again:
            return
        thawed = job.status == 0 or job.thawed or not job.frozen(freeze_state.FREEZING, freeze_state.FROZEN)
        if not thawed:
            self._report(f"given up: {_points(job)} may still be frozen")
        del self._jobs[job.number]
        self._send({"gone": job.number, "status": job.status, "thawed": thawed})
        if job.states is not None:
            job.states.close()
            job.states = None

    def _watch(self) -> None:
        now = time.monotonic()
        for job in list(self._jobs.values()):
            if job.again and now >= job.again:
                job.again = 0.0
                self._thaw(job)
            if job.states is None or job.late or job.status is not None or not job.frozen(freeze_state.FROZEN):
                continue
            (since,) = struct.unpack_from("d", job.states, freeze_state.SINCE)
            if now > since + float(job.args.get("deadline", 0.0)) + LATE:
                job.late = True
                self._report(f"a cut is late by more than {LATE:g} s: killing it and thawing {_points(job)}")
                self._kill(job)

    # ---- the end

    def _orphan(self) -> None:
        """The agent is gone: no clone has a reader any more, no freeze a reason. What it asked to be thawed goes on."""
        self._orphaned = time.monotonic()
        self._outbox.clear()
        self._control.close()
        for job in list(self._jobs.values()):
            if not job.name.startswith("thaw"):
                self._kill(job)

    def _care(self) -> bool:
        """Whether there is still something to thaw, or to wait for before it is known."""
        passed = time.monotonic() - self._orphaned
        thawing = any(job.states is not None or job.name.startswith("thaw") for job in self._jobs.values())
        return passed < _LAST_WAIT if thawing else bool(self._jobs) and passed < _LAST_KILL_WAIT


def _work(job: _Job, channel: socket.socket) -> bool:
    """Do the job and answer. False: the watchdog must look after it."""
    answered = False

    def answer(message: dict[str, object]) -> None:
        nonlocal answered
        if not answered:
            data = json.dumps(message).encode() + b"\n"
            answered = True
            with suppress(OSError):  # the agent is gone, or does not care any more
                channel.sendall(data)

    function = job_table.TABLE.get(job.name)
    try:
        if function is None:
            raise freeze_state.FreezeError("UnknownJob", f"no job is called {job.name!r}")
        if job.states is not None:
            function(**job.args, states=job.states, answer=answer)
        else:
            answer({"ok": function(**job.args)})
    except BaseException as error:
        answer({"error": freeze_state.describe_error(error)})
        return False
    return True


def _ignore(*_: object) -> None:
    """A handler that does nothing, so that the wake-up descriptor is written to."""


def _own_group(pid: int) -> None:
    with suppress(OSError):  # ended already, or did it itself
        os.setpgid(pid, pid)


def _kill_group(pid: int) -> None:
    with suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


def _points(job: _Job) -> str:
    return ", ".join(str(mount.get("point")) for mount in job.mounts)


def _log(text: str) -> None:
    # Only where it cannot block: a full pipe that nobody reads must not keep a file system frozen.
    poller = select.poll()
    poller.register(2, select.POLLOUT)
    with suppress(OSError):
        if dict(poller.poll(0)).get(2) == select.POLLOUT:
            os.write(2, f"tidemark fork server: {text}\n".encode()[:4000])


def main(fd: int) -> None:
    """Serve the agent at the other end of the socket `fd`; returns when it is gone and everything is thawed."""
    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    syscalls.call("PR_SET_NAME", "prctl", _PR_SET_NAME, b"tidemark-fork")
    gc.collect()
    gc.freeze()  # the children share these pages
    Server(socket.socket(fileno=fd)).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))

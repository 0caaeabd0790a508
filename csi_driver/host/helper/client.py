"""The agent's side of the fork server: jobs that may hang, awaited with a deadline that holds.

Whatever a job's child does, `Children.run` answers by its deadline: a child that cannot be killed (it sleeps in the kernel)
is written off and counted, and is forgotten when it ends after all. No thread is used; every wait is the event loop's.
"""

import asyncio
import errno
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import csi_driver
from csi_driver.host.helper.job import Job, JobFailed, JobStuck, Process, Server
from csi_driver.host.helper.server import MAX_MESSAGE

__all__ = ["HelperPool", "JobFailed", "JobStuck"]

_LOG = logging.getLogger(__name__)

_START_TIMEOUT = 10.0
_GRACE = 0.5
_THAW_TIMEOUT = 30.0
_MAX_ANSWER = 16 << 20
_RESTART_PAUSES = (0.0, 0.1, 0.5, 2.0, 5.0)

_BOOTSTRAP = (
    "import sys; sys.path.append(sys.argv[1]); from csi_driver.host.helper.server import main; main(int(sys.argv[2]))"
)


def begin(control: socket.socket) -> Process:
    """Start a fork server that serves the other end of `control`. Raises OSError."""
    # Where this package lies, installed or checked out; -I -S: nothing of the environment or of site is loaded.
    root = os.path.dirname(os.path.dirname(os.path.abspath(csi_driver.__file__)))
    return subprocess.Popen(  # returns at exec, and must not inherit what comes later
        [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, root, str(control.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        close_fds=True,
        pass_fds=(control.fileno(),),
        start_new_session=True,  # a terminal's or a supervisor's signals are for the agent
    )


class HelperPool:
    """Runs jobs (see jobs.py) in children of a fork server.

    Start it before gRPC is imported and before the pool is locked, in the event loop that will use it. `limit`: jobs at work
    at a time, others wait; `stuck_limit`: jobs written off and still alive beside those, above which new ones are refused.
    `grace`: seconds for a killed child to die before it is written off. `begin`: what starts the server.
    """

    def __init__(
        self,
        limit: int = 32,
        stuck_limit: int = 16,
        grace: float = _GRACE,
        begin: Callable[[socket.socket], Process] = begin,
    ) -> None:
        self._begin = begin
        self._stuck_limit, self._grace = stuck_limit, grace
        self._slots = asyncio.Semaphore(limit)
        self._runs: dict[int, Job] = {}
        self._next = 1
        self._server: Server | None = None
        self._ready = asyncio.Event()
        self._stopping = False
        self._restart: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures = 0
        self.written_off_total = 0
        """Jobs written off since the start."""

    @property
    def stuck(self) -> int:
        """Jobs written off whose child is still alive."""
        return sum(1 for run in self._runs.values() if run.written_off)

    @property
    def stuck_jobs(self) -> list[str]:
        """The same in words, oldest first: name and age."""
        now = time.monotonic()
        return [f"{run.name} ({now - run.started:.0f} s)" for run in self._runs.values() if run.written_off]

    @property
    def server_pid(self) -> int:
        """The fork server's pid, 0 while there is none."""
        return self._server.process.pid if self._server and not self._server.dead else 0

    # ---- life of the fork server

    async def start(self) -> None:
        """Start the fork server. Raises OSError, or TimeoutError where it does not come up within 10 seconds."""
        self._stopping = False
        await self._launch()

    async def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            try:
                process = self._begin(theirs)
            except BaseException:
                ours.close()
                raise
        server = Server(process, ours)
        loop = asyncio.get_running_loop()
        loop.add_reader(ours.fileno(), self._on_control, server)
        loop.add_reader(server.pidfd, self._on_exit, server)
        self._server = server
        try:
            await asyncio.wait_for(server.hello.wait(), _START_TIMEOUT)
            if server.dead:
                raise OSError(errno.ECHILD, "the fork server died at its start")
        except BaseException:
            server.process.kill()
            self._on_server_exit(server, restart=False)
            raise
        server.up = True
        self._ready.set()

    def _on_exit(self, server: Server) -> None:
        server.process.poll()
        asyncio.get_running_loop().remove_reader(server.pidfd)
        os.close(server.pidfd)
        server.exited.set()
        self._on_server_exit(server, restart=server.up and not self._stopping)

    def _on_server_exit(self, server: Server, *, restart: bool) -> None:
        """The control socket of this server is of no more use."""
        if server.dead:
            return
        if restart:
            self._on_control(server)  # what it still said counts
            if server.dead:
                return
        server.dead = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(server.control.fileno())
        loop.remove_writer(server.control.fileno())
        server.control.close()
        server.hello.set()
        for _, channel in server.outbox:
            if channel:
                channel.close()
        server.outbox.clear()
        self._ready.clear()
        if restart:
            _LOG.error("the fork server (pid %d) died; starting another one", server.process.pid)
            self._restart = asyncio.create_task(self._relaunch(), name="fork server restart")
            for run in list(self._runs.values()):
                if not run.orphan:
                    self._orphaned(run)

    async def _relaunch(self) -> None:
        while not self._stopping:
            await asyncio.sleep(_RESTART_PAUSES[min(self._failures, len(_RESTART_PAUSES) - 1)])
            self._failures += 1
            try:
                await self._launch()
            except (OSError, TimeoutError) as error:
                _LOG.error("the fork server does not start: %s", error)
            else:
                return

    def _orphaned(self, run: Job) -> None:
        """The server of a job has died. Its child lives on, as long as the job's socket is open.

        A cut goes on to its end: it thaws by itself, and nobody else would know when. Anything else is killed.
        """
        self._read(run)  # an answer that was given counts
        run.orphan = True
        if run.name != "cut":
            run.fail("ServerDied", "the fork server died while the job was running", errno.ECHILD)
            self._kill_orphan(run)
        if not run.open:
            self._orphan_gone(run)

    def _kill_orphan(self, run: Job) -> None:
        self._read(run)
        if run.open and run.pid:  # open: somebody of its group is alive, so the number is still its own
            with suppress(OSError):
                os.killpg(run.pid, signal.SIGKILL)

    def _orphan_gone(self, run: Job) -> None:
        """Nobody works on an orphan any more. A cut that died inside its freeze has no watchdog left: thaw it from here."""
        if self._stopping:
            return
        left = not run.answer.done() or _error_type(run.answer.result()) in ("Deadline", "StillFrozen", "ThawFailed")
        if not run.taken:
            run.fail("ServerDied", "the fork server died before it took the job", errno.ECHILD)
            self._end(run)
        elif run.name == "cut" and left:
            task = asyncio.create_task(self._thaw_orphan(run), name="thaw after the fork server's death")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._end(run)

    async def _thaw_orphan(self, run: Job) -> None:
        try:
            await self.run("thaw", _THAW_TIMEOUT, mounts=run.args["mounts"])
        except (JobFailed, JobStuck) as error:
            _LOG.error("a cut died with its watchdog, and its file systems may be frozen: %s", error)
            run.leave_frozen(f"the cut died with its watchdog: {error}")
        self._end(run)

    async def stop(self) -> None:
        """Stop the fork server, and wait up to 10 seconds until it is gone. Running jobs are killed, running cuts thawed."""
        self._stopping = True
        if self._restart:
            self._restart.cancel()
            await asyncio.wait({self._restart})
            self._restart = None
        for run in self._runs.values():
            run.fail("Stopped", "the agent is stopping", errno.ECANCELED)
        server = self._server
        if server:
            self._on_server_exit(server, restart=False)  # its end of the socket reads EOF: that is the order to end
            with suppress(TimeoutError):
                await asyncio.wait_for(server.exited.wait(), 10.0)
            if not server.exited.is_set():
                _LOG.error("the fork server (pid %d) stays, for a thaw that hangs", server.process.pid)
        for run in list(self._runs.values()):
            # The server ends when all is thawed; of an orphan, or where the server stays, nobody knows.
            self._end(run, gone=server is not None and server.exited.is_set() and not run.orphan)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._server = None

    # ---- messages

    def _on_control(self, server: Server) -> None:
        while not server.dead:
            try:
                data = server.control.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                if not server.exited.is_set():
                    server.process.kill()  # it is dying, or of no use; its exit is noticed through the pidfd
                    asyncio.get_running_loop().remove_reader(server.control.fileno())
                return
            self._on_message(server, json.loads(data))

    def _on_message(self, server: Server, message: dict[str, Any]) -> None:
        if "hello" in message:
            server.hello.set()
        elif "log" in message:
            _LOG.error("%s", message["log"])
        elif "taken" in message:
            if run := self._runs.get(message["taken"]):
                run.taken = True
        elif "pid" in message:
            if run := self._runs.get(message["id"]):
                run.pid = message["pid"]
            self._failures = 0
        elif "refused" in message:
            if run := self._runs.get(message["refused"]):
                run.fail("ForkFailed", message["message"], message["errno"] or 0)
                self._end(run)
        elif run := self._runs.get(message["gone"]):
            run.ending = _ending(message["status"])
            if not message["thawed"]:
                run.leave_frozen(f"a file system may still be frozen after the cut's end ({run.ending})")
            self._read(run)  # all that the child said is here by now
            if not run.open:
                self._end(run)

    def _send(self, server: Server, message: bytes, channel: socket.socket | None = None) -> None:
        """Send, or keep for later, a message with a descriptor, which is closed here in any case."""
        server.outbox.append((message, channel))
        self._flush(server)

    def _flush(self, server: Server) -> None:
        loop = asyncio.get_running_loop()
        while server.outbox:
            data, channel = server.outbox[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", channel.fileno()))] if channel else []
            try:
                server.control.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                loop.add_writer(server.control.fileno(), self._flush, server)
                return
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    return  # it is dying; `_lose` clears the rest
                if run := self._runs.get(json.loads(data).get("id")):
                    run.fail("TooLarge", "the kernel takes no messages of this size", errno.EMSGSIZE)
                    self._end(run)
            server.outbox.popleft()
            if channel:
                channel.close()
        loop.remove_writer(server.control.fileno())

    # ---- jobs

    async def run(self, job: str, timeout: float, **args: Any) -> Any:
        """Run a job of jobs.TABLE and return its result (JSON). `timeout`: seconds for the job, and as many for its turn to come.

        Raises JobFailed for an error inside the job, and JobStuck past its deadline: its processes are killed, and where
        they do not die within the grace they are written off. A cancelled call kills its job, waits for its end as
        long, and lets nothing leak. A cut that is killed is thawed by the watchdog before it counts as gone. Thaws have no
        limit of number: they must always be possible.
        """
        thaw = job.startswith("thaw")
        if not thaw:
            await self._take_slot(job, timeout)
        try:
            run = await self._submit(job, timeout, args, holds_slot=not thaw)
        except BaseException:
            if not thaw:
                self._slots.release()
            raise
        try:
            await asyncio.wait({run.answer}, timeout=timeout)
            if not run.answer.done():
                await self._kill_run(run)
        except asyncio.CancelledError:
            await self._kill_run(run)
            raise
        finally:
            if not run.gone.is_set():
                # Answered and not gone yet: usually a matter of microseconds.
                asyncio.get_running_loop().call_later(self._grace, self._on_grace_expired, run)
        if not run.answer.done() or (run.killed and _error_type(run.answer.result()) in ("Crashed", "ServerDied")):
            raise JobStuck(job, timeout, run.gone)
        message = run.answer.result()
        if "error" in message:
            error = message["error"]
            raise JobFailed(job, error["errno"], error["message"], error["type"], error["details"], run.gone)
        return message["ok"]

    async def _take_slot(self, job: str, timeout: float) -> None:
        stuck = self.stuck_jobs
        if len(stuck) > self._stuck_limit:
            message = f"{len(stuck)} jobs hang in the kernel, and no more are started: {', '.join(stuck)}"
            raise JobFailed(job, errno.EAGAIN, message, "TooManyStuck")
        try:
            async with asyncio.timeout(timeout):
                await self._slots.acquire()
        except TimeoutError:
            message = f"no free place among the running jobs within {timeout:g} s"
            raise JobFailed(job, errno.EAGAIN, message, "Busy") from None

    async def _submit(self, job: str, timeout: float, args: dict[str, Any], *, holds_slot: bool) -> Job:
        if self._stopping or (self._server is None and self._restart is None):
            raise JobFailed(job, errno.ESRCH, "the fork server is not running", "Stopped")
        try:
            async with asyncio.timeout(timeout):
                await self._ready.wait()
        except TimeoutError:
            raise JobFailed(job, errno.ESRCH, "the fork server does not start", "NoServer") from None
        server = self._server
        if server is None or server.dead:
            raise JobFailed(job, errno.ESRCH, "the fork server is gone", "NoServer")
        message = json.dumps({"id": self._next, "job": job, "args": args}).encode()
        if len(message) > MAX_MESSAGE:
            raise JobFailed(job, errno.E2BIG, "too many arguments for one job", "TooLarge")
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise JobFailed(job, error.errno or 0, str(error), "ForkFailed") from error
        ours.setblocking(False)
        run = Job(self._next, job, args, ours)
        run.holds_slot = holds_slot
        self._next += 1
        self._runs[run.number] = run
        asyncio.get_running_loop().add_reader(ours.fileno(), self._read, run)
        self._send(server, message, theirs)
        return run

    async def _kill_run(self, run: Job) -> None:
        """Kill a job and wait a moment for its end; what does not end is written off."""
        run.killed = True
        try:
            if run.orphan:
                self._kill_orphan(run)
            elif self._server and not run.gone.is_set() and not self._unsend(self._server, run):
                self._send(self._server, json.dumps({"kill": run.number}).encode())
            with suppress(TimeoutError):
                await asyncio.wait_for(run.gone.wait(), self._grace)
        finally:
            self._on_grace_expired(run)

    def _unsend(self, server: Server, run: Job) -> bool:
        """Take a request back that the server has not received yet."""
        for index, (data, channel) in enumerate(server.outbox):
            if channel and json.loads(data)["id"] == run.number:
                channel.close()
                del server.outbox[index]
                self._end(run)
                return True
        return False

    def _on_grace_expired(self, run: Job) -> None:
        if run.gone.is_set() or run.written_off:
            return
        run.written_off = True
        self.written_off_total += 1
        self._free_slot(run)
        _LOG.warning("written off: %s (pid %d) does not end", run.name, run.pid)

    def _free_slot(self, run: Job) -> None:
        if run.holds_slot:
            run.holds_slot = False
            self._slots.release()

    def _read(self, run: Job) -> None:
        """Take what the job's socket has."""
        while run.open:
            try:
                data = run.channel.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                run.open = False
                asyncio.get_running_loop().remove_reader(run.channel.fileno())
                if run.ending:
                    self._end(run)
                elif run.orphan:
                    self._orphan_gone(run)
                return
            run.buffer += data
            if data.endswith(b"\n"):
                try:
                    run.resolve(json.loads(run.buffer))
                except ValueError as error:
                    run.fail("Crashed", f"not an answer: {error}")
                run.buffer.clear()
            elif len(run.buffer) > _MAX_ANSWER:
                run.fail("TooLarge", f"an answer of more than {_MAX_ANSWER} bytes", errno.E2BIG)
                run.buffer.clear()

    def _end(self, run: Job, *, gone: bool = True) -> None:
        """Forget a job. `gone`: it has no process any more, and what it froze is thawed or given up."""
        if self._runs.pop(run.number, None) is None:
            return
        if run.open:
            asyncio.get_running_loop().remove_reader(run.channel.fileno())
            run.open = False
        run.channel.close()
        self._free_slot(run)
        run.fail("Crashed", f"the child ended without an answer ({run.ending})")
        if gone:
            run.gone.set()


def _error_type(message: dict[str, Any]) -> str:
    return str(message["error"]["type"]) if "error" in message else ""


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"

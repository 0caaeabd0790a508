"""The agent's side of the fork server: jobs that may hang, awaited with a deadline that holds.

Whatever a job's child does, `HelperPool.run` answers by its deadline: a child that cannot be killed (it sleeps in the kernel)
is abandoned and counted, and is dropped from the count when it ends after all. No thread is used; every wait is the event loop's.
"""

import asyncio
import errno
import itertools
import logging
import os
import signal
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from csi_driver.host.helper import messages
from csi_driver.host.helper.job import Job, JobFailed, JobStuck
from csi_driver.host.helper.messages import Message
from csi_driver.host.helper.process import Begin, ServerProcess, begin
from csi_driver.host.helper.supervisor import Supervisor

__all__ = ["HelperPool", "JobFailed", "JobStuck"]

_LOG = logging.getLogger(__name__)

_THAW_TIMEOUT = 30.0
_UNTHAWED = (None, "Deadline", "StillFrozen", "ThawFailed")
"""The answer of a snapshot job that may have left something frozen: none, or one of these failures."""


class HelperPool:
    """Runs jobs (see job_table.py) in children of a fork server.

    Start it before gRPC is imported and before the pool is locked, in the event loop that will use it. `limit`: jobs at work
    at a time, others wait; `stuck_limit`: abandoned jobs that still live beside those, above which new ones are refused.
    `grace`: seconds for a killed child to die before it is abandoned. `begin`: what starts the server.
    """

    def __init__(self, limit: int = 32, stuck_limit: int = 16, grace: float = 0.5, begin: Begin = begin) -> None:
        self._supervisor = Supervisor(begin, self._on_message, self._on_server_death)
        self._stuck_limit, self._grace = stuck_limit, grace
        self._slots = asyncio.Semaphore(limit)
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self.abandoned_total = 0
        """Jobs abandoned since the start."""

    @property
    def stuck(self) -> int:
        """Abandoned jobs that still have a living process."""
        return sum(1 for job in self._jobs.values() if job.abandoned)

    @property
    def stuck_jobs(self) -> list[str]:
        """The same in words, oldest first: name and age."""
        now = time.monotonic()
        return [f"{job.name} ({now - job.started:.0f} s)" for job in self._jobs.values() if job.abandoned]

    @property
    def server_pid(self) -> int:
        """The fork server's pid, 0 while there is none."""
        return self._supervisor.server.process.pid if self._supervisor.server else 0

    async def start(self) -> None:
        """Start the fork server. Raises OSError, or TimeoutError if it does not come up within 10 seconds."""
        await self._supervisor.start()

    async def stop(self) -> None:
        """Stop the fork server, and wait up to 10 seconds until it is gone. Running jobs are killed, running cuts thawed."""
        for job in self._jobs.values():
            job.fail("Stopped", "the agent is stopping", errno.ECANCELED)
        exited = await self._supervisor.stop()
        for job in list(self._jobs.values()):
            # The server ends when all is thawed; of an orphan, or if the server stays, nobody knows.
            self._forget(job, gone=exited and not job.orphan)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # ---- what comes from the server and from the jobs

    def _on_message(self, server: ServerProcess, message: Message) -> None:
        match message:
            case messages.ServerReady() if not server.ready.done():
                server.ready.set_result(None)
            case messages.LogLine(text):
                _LOG.error("%s", text)
            case messages.JobStarted(number, pid):
                self._supervisor.failures = 0
                if job := self._jobs.get(number):
                    job.pid = pid
            case messages.HelperExited(number, status, thawed, refusal) if job := self._jobs.get(number):
                job.ending = messages.describe_status(status)
                if refusal:
                    job.fail("ForkFailed", refusal)
                if not thawed:
                    job.leave_frozen(f"a file system may still be frozen after the snapshot job's end ({job.ending})")
                job.read()  # all that the child said is here by now
                self._settle(job)

    def _settle(self, job: Job) -> None:
        """Forget a job that no process works on any longer. What one left frozen that lost its watchdog is thawed before."""
        if job.open or not (job.ending or job.orphan):
            return
        if not job.orphan:
            self._forget(job)
        elif self._supervisor.running:
            if job.name == "cut" and job.failure_type in _UNTHAWED:
                self._spawn(self._thaw_orphan(job))
            else:
                self._forget(job)

    # ---- jobs whose server has died

    def _on_server_death(self) -> None:
        """Go on without the server. The processes of its jobs live on, as long as the jobs' sockets are open.

        A snapshot job goes on to its end: it thaws by itself, and nobody else would know when. Anything else is killed.
        """
        for job in list(self._jobs.values()):
            job.read()  # an answer that has come counts
            if job.orphan or job.number not in self._jobs:
                continue
            job.orphan = True
            if job.name != "cut":
                job.fail("ServerDied", "the fork server died while the job was running", errno.ECHILD)
                self._kill_orphan(job)
            self._settle(job)

    def _kill_orphan(self, job: Job) -> None:
        job.read()
        if job.open and job.pid:  # open: a process of its group lives, so the number is still its own
            with suppress(OSError):
                os.killpg(job.pid, signal.SIGKILL)

    async def _thaw_orphan(self, job: Job) -> None:
        try:
            await self.run("thaw", _THAW_TIMEOUT, mounts=job.args["mounts"], devices=job.args.get("devices", []))
        except (JobFailed, JobStuck) as error:
            _LOG.error("a snapshot job died with its watchdog, and its file systems may be frozen: %s", error)
            job.leave_frozen(f"the snapshot job died with its watchdog: {error}")
        self._forget(job)

    # ---- jobs

    async def run(self, name: str, timeout: float, **args: Any) -> Any:
        """Run a job of job_table.TABLE and return its result (JSON). `timeout`: seconds for it, and as many for its turn.

        Raises JobFailed for an error inside the job, and JobStuck past its deadline: its processes are killed, and if
        they do not die within the grace they are abandoned. A cancelled call kills its job, waits for its end as
        long, and leaks nothing. A snapshot job that is killed is thawed by the watchdog before it counts as gone. Thaws have no
        limit of number: they must always be possible.
        """
        job = Job(next(self._numbers), name, args, self._settle)
        try:
            if not name.startswith("thaw"):
                await self._take_slot(job, timeout)
            await self._submit(job, timeout)
        except BaseException:
            job.close()
            job.free_slot()
            raise
        try:
            await asyncio.wait({job.outcome}, timeout=timeout)
            if not job.outcome.done():
                await self._kill(job)
        except asyncio.CancelledError:
            await self._kill(job)
            raise
        finally:
            if not job.gone.is_set():
                # Answered and not gone yet: usually a matter of microseconds.
                asyncio.get_running_loop().call_later(self._grace, self._on_grace_expired, job)
        if job.failure_type is None or (job.killed and job.failure_type in ("Crashed", "ServerDied")):
            raise JobStuck(name, timeout, job.gone)
        outcome = job.outcome.result()
        if isinstance(outcome, JobFailed):
            raise outcome
        return outcome

    async def _take_slot(self, job: Job, timeout: float) -> None:
        stuck = self.stuck_jobs
        if len(stuck) > self._stuck_limit:
            message = f"{len(stuck)} helper processes hang in the kernel, so no more are started: {', '.join(stuck)}"
            raise JobFailed(job.name, errno.EAGAIN, message, "TooManyStuck")
        try:
            async with asyncio.timeout(timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise JobFailed(job.name, errno.EAGAIN, f"all helper slots were busy for {timeout:g} s", "Busy") from None
        job.slots = self._slots

    async def _submit(self, job: Job, timeout: float) -> None:
        if not self._supervisor.running:
            raise JobFailed(job.name, errno.ESRCH, "the fork server is not running", "Stopped")
        try:
            async with asyncio.timeout(timeout):
                server = await self._supervisor.wait_server()
                with job.connect() as theirs:
                    await server.send(messages.RunJob(job.number, job.name, job.args), theirs)
        except TimeoutError:
            message = f"the fork server took no job for {timeout:g} s"
            raise JobFailed(job.name, errno.ESRCH, message, "NoServer") from None
        except OSError as error:
            kind = "TooLarge" if error.errno == errno.EMSGSIZE else "ForkFailed"
            raise JobFailed(job.name, error.errno or 0, f"not sent to the fork server: {error}", kind) from error
        self._jobs[job.number] = job

    async def _kill(self, job: Job) -> None:
        """Kill a job and wait a moment for its end; abandon it if it does not end."""
        job.killed = True
        if job.orphan:
            self._kill_orphan(job)
        elif (server := self._supervisor.server) and not job.gone.is_set():
            self._spawn(self._order_kill(server, job.number))
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(job.gone.wait(), self._grace)
        finally:
            self._on_grace_expired(job)

    async def _order_kill(self, server: ServerProcess, number: int) -> None:
        with suppress(OSError):  # it is dying
            await server.send(messages.KillJob(number))

    def _on_grace_expired(self, job: Job) -> None:
        if job.gone.is_set() or job.abandoned:
            return
        job.abandoned = True
        self.abandoned_total += 1
        job.free_slot()
        _LOG.warning("helper process abandoned: %s (pid %d) does not end", job.name, job.pid)

    def _forget(self, job: Job, *, gone: bool = True) -> None:
        """Forget a job. `gone`: it has no process any longer, and what it froze is thawed or given up."""
        if self._jobs.pop(job.number, None) is None:
            return
        job.close()
        job.free_slot()
        job.fail("Crashed", f"the child ended without an answer ({job.ending or 'so did its fork server'})")
        if gone:
            job.gone.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

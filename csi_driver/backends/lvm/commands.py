"""The lvm commands of one pool: one after the other, each in a helper process that is killed at its deadline.

lvm locks a whole volume group, so two at once would only wait for each other where nobody sees it. An lvm that was killed may
have left a device suspended: that is resumed before anything else. While one hangs in the kernel it may hold the group's lock:
then changes are refused, and what the agent knows of the pool is still served from memory.
"""

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from csi_driver.backends.lvm import refusals
from csi_driver.backends.volume_helpers import finish_despite_cancel, translate
from csi_driver.domain.errors import Busy, Damaged, DriverError, Unavailable
from csi_driver.host.helper.client import HelperPool, JobFailed, JobStuck
from csi_driver.host.lvm import jobs, reports
from csi_driver.host.lvm.program import LvmProgram

_Row = TypeVar("_Row")
_LOG = logging.getLogger(__name__)

READ_SECONDS, CHANGE_SECONDS = 15.0, 120.0
_TURN_SECONDS = 60.0
"""How long a command waits for those before it; a caller that tries again later finds its place free."""
_MARGIN = 5.0
"""Seconds after lvm's deadline until its helper is killed, too: it answers in order if it can."""
_RESUME_SECONDS = 20.0
_EXIT_SECONDS = 1.0
_BATCH = 32
"""Logical volumes in one lvremove: four at once take as long as one (measured: 2.5 s)."""
_KILLED = {"Crashed", "ServerDied", "Stopped"}
"""Failures of a helper of which nobody knows how far its lvm came."""


@dataclass(frozen=True, slots=True)
class _Hung:
    what: str
    since: float
    gone: asyncio.Event


class Commands:
    """Runs lvm for the volume group `vg`.

    `open` comes first. `in_container`: lvm is the host's if it has one. `read_seconds`, `change_seconds`: deadlines of commands.
    """

    def __init__(
        self,
        helpers: HelperPool,
        vg: str,
        *,
        in_container: bool = False,
        read_seconds: float = READ_SECONDS,
        change_seconds: float = CHANGE_SECONDS,
    ) -> None:
        self._helpers, self.vg, self._in_container = helpers, vg, in_container
        self._read_seconds, self._change_seconds = read_seconds, change_seconds
        self._queue = asyncio.Lock()
        self._hung: list[_Hung] = []
        self._unsure = False  # an lvm was killed, and what it left suspended is not resumed yet
        self._doomed: dict[str, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._program: LvmProgram | None = None
        self._found: dict[str, Any] = {}
        self.devices: tuple[str, ...] = ()
        """Stable paths of the pool's disks, all that lvm may look at."""
        self.vg_uuid = ""
        self.commands_total = 0
        """Commands of lvm since the start."""
        self.killed_total = 0
        """Those that were killed, by their deadline or by somebody."""
        self.healed_total = 0
        """Thin devices removed that a killed lvm had left, for which its pool refused every change."""

    # ---- state

    @property
    def hung(self) -> str:
        """The lvm that was killed and hangs in the kernel, and for how long; empty: none does."""
        self._hung = [hung for hung in self._hung if not hung.gone.is_set()]
        now = time.monotonic()
        return ", ".join(f"{hung.what} ({now - hung.since:.0f} s)" for hung in self._hung)

    def ensure_usable(self) -> None:
        """Raise Busy while an lvm of the pool hangs in the kernel: no other could have the volume group."""
        if hung := self.hung:
            raise Busy(
                f"pool {self.vg} takes no changes: an lvm was killed and still hangs in the kernel: {hung}; see the node's "
                "kernel log, try again later"
            )

    # ---- start and end

    async def open(self) -> reports.VolumeGroup:
        """Find lvm and the pool's disks, resume what an earlier lvm left suspended, and return the volume group.

        Raises DriverError, Unavailable if the volume group is on no disk of this node.
        """
        self._found = await self._job("find_lvm", self._read_seconds, in_container=self._in_container)
        self._program = jobs.as_program(self._found)
        await self._find_devices()
        self._unsure = True
        return await self.volume_group()

    async def close(self) -> None:
        """Forget what hangs: nobody waits for it any longer."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _find_devices(self) -> bool:
        """Look for the pool's disks again. Returns whether they are others than before."""
        found = await self._job(
            "find_pool_devices", self._read_seconds + _MARGIN, vg=self.vg, found=self._found, seconds=self._read_seconds
        )
        before, self.devices, self.vg_uuid = self.devices, tuple(found["devices"]), str(found["vg_uuid"])
        return self.devices != before

    # ---- reads

    async def read(self, *args: str) -> list[dict[str, str]]:
        """Run a reporting command, e.g. lvs, and return its rows. Raises DriverError."""

        async def run() -> list[dict[str, str]]:
            async with self._turn():
                answer = await self._lvm([args[0], *reports.REPORT_OPTIONS, *args[1:]], self._read_seconds)
            return self._rows(answer)

        return await finish_despite_cancel(run())

    async def volume_group(self) -> reports.VolumeGroup:
        """Return the volume group. Raises DriverError."""
        rows = await self.read("vgs", "-o", reports.VolumeGroup.COLUMNS, self.vg)
        return self._typed(rows, reports.volume_group)[0]

    async def logical_volumes(self, *names: str) -> list[reports.LogicalVolume]:
        """Return the logical volumes of these names, or all. Raises DriverError, Damaged for one that does not exist."""
        rows = await self.read(
            "lvs", "-o", reports.LogicalVolume.COLUMNS, *([self._full(n) for n in names] or [self.vg])
        )
        return self._typed(rows, reports.logical_volume)

    async def thin_pools(self) -> list[reports.ThinPool]:
        """Return the thin pools of the volume group. Raises DriverError."""
        rows = await self.read("lvs", "-o", reports.ThinPool.COLUMNS, self.vg)
        return self._typed([row for row in rows if reports.is_thin_pool(row)], reports.thin_pool)

    async def physical_volumes(self) -> list[reports.PhysicalVolume]:
        """Return the disks of the volume group. Raises DriverError."""
        rows = await self.read("pvs", "-o", reports.PhysicalVolume.COLUMNS)
        return [volume for volume in self._typed(rows, reports.physical_volume) if volume.vg == self.vg]

    def _rows(self, answer: str) -> list[dict[str, str]]:
        try:
            return reports.parse(answer)
        except reports.BadReport as error:
            raise Unavailable(f"pool {self.vg}: {error}") from error

    def _typed(self, rows: list[dict[str, str]], reader: Callable[[reports.Row], _Row]) -> list[_Row]:
        try:
            return [reader(row) for row in rows]
        except reports.BadReport as error:
            raise Unavailable(f"pool {self.vg}: {error}") from error

    # ---- changes

    async def change(self, *args: str) -> None:
        """Run a command that changes the pool, e.g. lvcreate. It goes on to its end if the caller is cancelled.

        Raises DriverError: Busy if it was killed, and nobody knows how far it came; refusals.py has the others.
        """

        async def run() -> None:
            async with self._turn():
                await self._change(args)

        await finish_despite_cancel(run())

    async def remove(self, name: str) -> None:
        """Remove a logical volume; one that does not exist is fine. Those that wait are removed by one command. Raises DriverError."""
        future = self._doomed.setdefault(name, asyncio.get_running_loop().create_future())

        async def run() -> None:
            try:
                async with self._turn():
                    while not future.done():
                        await self._remove_batch()
            except BaseException:
                if not future.done():
                    self._doomed.pop(name, None)
                raise
            future.result()

        await finish_despite_cancel(run())

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Keep lvm away from the pool for the length of a block, which sends the pool messages of its own. Raises Busy."""
        async with self._turn():
            yield

    async def _remove_batch(self) -> None:
        batch = dict(list(self._doomed.items())[:_BATCH])
        for name in batch:
            del self._doomed[name]
        outcomes: dict[str, DriverError | None] = {}
        try:
            await self._change(("lvremove", "--yes", "--force", *map(self._full, batch)))
            outcomes = dict.fromkeys(batch)
        except DriverError as error:
            if isinstance(error, Busy):
                outcomes = dict.fromkeys(batch, error)
        for name, future in batch.items():
            outcome = outcomes[name] if name in outcomes else await self._remove_one(name)
            if outcome is None:
                future.set_result(None)
            else:
                future.set_exception(outcome)
                future.exception()  # its callers may be gone

    async def _remove_one(self, name: str) -> DriverError | None:
        try:
            await self._change(("lvremove", "--yes", "--force", self._full(name)))
        except Damaged:  # there is none of that name
            return None
        except DriverError as error:
            return error
        return None

    async def _change(self, args: Sequence[str]) -> None:
        try:
            await self._lvm(args, self._change_seconds)
        except Unavailable as error:
            if left := refusals.UNCOMMITTED.search(_output(error)):
                await self._remove_uncommitted(left["pool"], int(left["id"]), error)
            # Or a disk has come: another process has made the pool grow.
            elif not await self._find_devices():
                raise
            await self._lvm(args, self._change_seconds)

    async def _remove_uncommitted(self, pool: str, thin_id: int, refusal: Unavailable) -> None:
        """Remove from the kernel what a killed lvm has made and not counted. Raises the refusal if it may be somebody's."""
        rows = reports.parse(
            await self._lvm(
                ["lvs", *reports.REPORT_OPTIONS, "-o", "lv_name,lv_attr,transaction_id", self.vg], self._read_seconds
            )
        )
        # Of several thin pools in the group: the one whose device has this name.
        found = [
            row
            for row in rows
            if reports.is_thin_pool(row) and pool.endswith(f"-{row['lv_name'].replace('-', '--')}-tpool")
        ]
        if len(found) != 1 or not found[0]["transaction_id"].isdecimal():
            raise refusal
        transaction = int(found[0]["transaction_id"])
        try:
            await self._job(
                "remove_uncommitted",
                self._change_seconds + _MARGIN,
                vg_uuid=self.vg_uuid,
                pool=pool,
                thin_id=thin_id,
                transaction=transaction,
                seconds=self._change_seconds,
            )
        except Busy:
            raise
        except DriverError as error:
            raise Unavailable(f"{refusal} ({error})") from error
        self.healed_total += 1
        _LOG.warning("removed thin device %d of %s, which a killed lvm had made and not counted", thin_id, pool)

    def _full(self, name: str) -> str:
        return f"{self.vg}/{name}"

    # ---- the queue, and what may go wrong in it

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        self.ensure_usable()
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                await self._queue.acquire()
        except TimeoutError:
            raise Busy(f"other commands have kept pool {self.vg} busy for {_TURN_SECONDS:g} s: try again") from None
        try:
            self.ensure_usable()
            if self._unsure:
                await self._resume()
            yield
        finally:
            self._queue.release()

    async def _lvm(self, args: Sequence[str], seconds: float) -> str:
        assert self._program is not None
        self.commands_total += 1
        what = f"{args[0]} in pool {self.vg}"
        config = self._program.configuration(self.devices, self.vg)
        through_host = self._program.through_host
        try:
            answer = await self._helpers.run(
                "lvm", seconds + _MARGIN, args=list(args), config=config, through_host=through_host, seconds=seconds
            )
        except JobStuck as error:
            await self._note_killed(what, error.gone)
            raise Busy(
                f"{what} did not end within {seconds:g} s and was killed: see the node's kernel log, try again"
            ) from error
        except JobFailed as error:
            rc = error.details.get("rc", 0)
            if error.type in _KILLED or rc is None or rc < 0:
                await self._note_killed(what, error.gone)
                raise Busy(f"{what} {_ending(error, rc, seconds)}: try again") from error
            if rc and error.errno != errno.ENOENT:
                raise refusals.explain(what, str(error.details.get("err", "")), rc) from error
            raise translate(error) from error
        return str(answer)

    async def _note_killed(self, what: str, gone: asyncio.Event) -> None:
        self.killed_total += 1
        self._unsure = True
        with suppress(TimeoutError):
            await asyncio.wait_for(gone.wait(), _EXIT_SECONDS)
        if not gone.is_set():
            # What it suspended may be what it hangs on. What it still suspends is seen to when it is gone.
            self._hung.append(_Hung(what, time.monotonic(), gone))
            _LOG.error("%s was killed and hangs in the kernel: the pool takes no changes until it is gone", what)
            task = asyncio.create_task(self._resume_when(gone))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        with suppress(DriverError):  # the next command tries again, and says why not
            await self._resume()

    async def _resume_when(self, gone: asyncio.Event) -> None:
        await gone.wait()
        self._unsure = True
        with suppress(DriverError):
            async with self._turn():
                pass

    async def _resume(self) -> None:
        """Resume what a killed lvm left suspended. Raises Busy if that cannot be done now."""
        try:
            names = await self._helpers.run("resume_pool", _RESUME_SECONDS, vg_uuid=self.vg_uuid)
        except JobStuck as error:
            self._hung.append(_Hung("resuming its devices", time.monotonic(), error.gone))
            raise Busy(
                f"pool {self.vg}: its suspended devices did not resume within {_RESUME_SECONDS:g} s: {error}"
            ) from error
        except JobFailed as error:
            raise Busy(
                f"pool {self.vg}: a device that a killed lvm left suspended cannot be resumed ({error.message}): see `dmsetup info`"
                ", try again"
            ) from error
        self._unsure = bool(self.hung)
        if names:
            _LOG.warning("resumed devices that an lvm had left suspended: %s", ", ".join(names))

    async def _job(self, name: str, timeout: float, /, **args: Any) -> Any:
        try:
            return await self._helpers.run(name, timeout, **args)
        except JobStuck as error:
            raise Busy(f"pool {self.vg}: {error}: see the node's kernel log, try again") from error
        except JobFailed as error:
            if error.type == "CommandError" and error.errno != errno.ENOENT:
                raise refusals.explain(
                    f"pool {self.vg}", str(error.details.get("err", "")), error.details.get("rc")
                ) from error
            if error.type == "HostError" and error.errno in {errno.ENOENT, errno.EEXIST}:
                raise Unavailable(f"pool {self.vg}: {error.message}") from error
            raise translate(error) from error


def _output(error: DriverError) -> str:
    """What lvm wrote to standard error."""
    return str((getattr(error.__cause__, "details", None) or {}).get("err", ""))


def _ending(error: JobFailed, rc: int | None, seconds: float) -> str:
    if rc is None:
        return f"did not end within {seconds:g} s and was killed, see the node's kernel log"
    return f"was killed by signal {-rc}" if rc else f"was interrupted ({error.message})"

"""Jobs of volumes in helper processes, and the one place where a helper's failure becomes a DriverError.

A helper past its deadline is abandoned; until it is gone its volumes, and only they, answer Busy.
"""

import asyncio
import errno
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from csi_driver.domain.errors import Busy, DriverError, InUse, OutOfSpace, Precondition, TooSlow, Unavailable
from csi_driver.domain.model import Volume
from csi_driver.host.helper.client import HelperPool, JobFailed, JobStuck

_T = TypeVar("_T")
_EXIT_SECONDS = 1.0
"""Between a helper's answer and its end; after that it is taken to hang."""


class VolumeHelpers:
    """Runs jobs for volumes, and remembers which volume still has a helper in the kernel."""

    def __init__(self, pool: HelperPool) -> None:
        self._pool = pool
        self._hung: dict[str, tuple[str, asyncio.Event]] = {}

    async def run(self, volumes: Volume | Sequence[Volume] | None, job: str, timeout: float, **args: Any) -> Any:
        """Run a job for one or several volumes (None: for none in particular) and return its result.

        Raises DriverError; its cause is the helper's JobFailed or JobStuck, whose text is in it. Raises Busy without a cause
        while an earlier helper of one of the volumes hangs.
        """
        volumes = [volumes] if isinstance(volumes, Volume) else volumes or []
        self.refuse_hanging(*volumes)
        try:
            return await self._pool.run(job, timeout, **args)
        except JobStuck as error:
            await self._mark_hung(volumes, job, error.gone)
            raise Busy(
                f"{job} did not answer within {timeout:g} s and was killed: see the node's kernel log, try again"
            ) from error
        except JobFailed as error:
            await self._mark_hung(volumes, job, error.gone)
            raise translate(error) from error

    def refuse_hanging(self, *volumes: Volume) -> None:
        """Raise Busy while an earlier helper of one of the volumes is still in the kernel."""
        for volume in volumes:
            job, gone = self._hung.get(volume.id.hash, ("", None))
            if gone is not None and not gone.is_set():
                raise Busy(
                    f"an earlier {job} of {volume.id} still hangs in the kernel: see the node's kernel log, try again later"
                )
            self._hung.pop(volume.id.hash, None)

    async def _mark_hung(self, volumes: Sequence[Volume], job: str, gone: asyncio.Event) -> None:
        """Wait for the end of a helper, normally a matter of microseconds, and note that it hangs if that does not come."""
        with suppress(TimeoutError):
            await asyncio.wait_for(gone.wait(), _EXIT_SECONDS)
        if not gone.is_set():
            self._hung.update({volume.id.hash: (job, gone) for volume in volumes})


async def finish_despite_cancel(work: Awaitable[_T]) -> _T:
    """Wait for work that must not be left half done (a thread, a freeze). A cancellation takes effect when it has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.result()
        raise


def translate(error: JobFailed) -> DriverError:
    """Convert a helper's failure into the driver's error."""
    text = error.message
    if error.type in {"Busy", "TooManyStuck"} and error.errno != errno.EBUSY:
        return Busy(f"{text}: try again")
    if error.errno == errno.EAGAIN and error.type == "BlockingIOError":
        return TooSlow(f"{text}: try again")
    if error.errno == errno.EBUSY:
        return InUse(f"{text}: stop what uses it, then try again")
    if error.errno == errno.ETIMEDOUT:
        # A tool that was killed at its deadline is gone; a helper that passed its own may hang on.
        kind = TooSlow if error.type == "CommandError" else Busy
        return kind(f"{text}: {error.job} was killed; see the node's kernel log, try again")
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return OutOfSpace(f"{text}: delete something first")
    if error.errno in {errno.EIO, errno.EROFS, errno.ENODEV, errno.ESHUTDOWN} and error.type != "CommandError":
        return Unavailable(f"{text}: see the node's kernel log")
    if error.type in {"NoServer", "ServerDied", "Stopped", "ForkFailed", "Crashed"}:
        return Busy(f"{error.job} was interrupted ({text}): try again")
    return Precondition(f"{error.job} failed: {text}")


def errno_of(error: DriverError) -> int:
    """Return the errno of the system call that failed in a helper; 0 if none did."""
    return int(getattr(error.__cause__, "errno", None) or 0)


def command_of(error: DriverError) -> tuple[str, int]:
    """Return the command that failed in a helper, and its exit status; an empty name if none did."""
    details = getattr(error.__cause__, "details", None) or {}
    return (details.get("argv") or [""])[0], int(details.get("rc") or 0)

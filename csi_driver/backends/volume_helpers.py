"""Running what may hang, in the driver's words: one place where a child's end becomes a DriverError.

A child past its deadline is written off; until it is gone its volume, and only it, answers Busy.
"""

import asyncio
import errno
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, TypeVar

from csi_driver.domain.errors import Busy, DriverError, InUse, OutOfSpace, Precondition, TooSlow, Unavailable
from csi_driver.domain.model import Volume
from csi_driver.host.helper.client import HelperPool, JobFailed, JobStuck

_T = TypeVar("_T")
_ENDING_SECONDS = 1.0
"""Between a child's answer and its end; after that it is taken to hang."""


class VolumeHelpers:
    """Jobs by volume, remembering which volume still has a child in the kernel."""

    def __init__(self, children: HelperPool) -> None:
        self._children = children
        self._hanging: dict[str, tuple[str, asyncio.Event]] = {}

    async def run(self, volume: Volume | None, job: str, timeout: float, **args: Any) -> Any:
        """Run a job for a volume (None: for none in particular). Raises DriverError; JobFailed's text is in it."""
        if volume is not None:
            self.refuse_hanging(volume)
        try:
            return await self._children.run(job, timeout, **args)
        except JobStuck as error:
            await self.remember(volume, job, error.gone)
            raise Busy(
                f"{job} did not answer within {timeout:g} s and was given up: look at the node's kernel log, try again"
            ) from error
        except JobFailed as error:
            await self.remember(volume, job, error.gone)
            raise translate(error) from error

    def refuse_hanging(self, volume: Volume) -> None:
        """Raise Busy while an earlier child of this volume is still in the kernel."""
        job, gone = self._hanging.get(volume.id.hash, ("", None))
        if gone is None:
            return
        if gone.is_set():
            del self._hanging[volume.id.hash]
            return
        raise Busy(
            f"an earlier {job} of {volume.id} still hangs in the kernel: look at the node's kernel log, try again later"
        )

    async def remember(self, volume: Volume | None, job: str, gone: asyncio.Event) -> None:
        """Note that a volume's child does not end. One that has answered normally ends within microseconds, and is awaited."""
        with suppress(TimeoutError):
            await asyncio.wait_for(gone.wait(), _ENDING_SECONDS)
        if volume is not None and not gone.is_set():
            self._hanging[volume.id.hash] = (job, gone)


async def finish_despite_cancel(work: Awaitable[_T]) -> _T:
    """Wait for work that cannot be taken back; whoever is cancelled meanwhile learns of it when the work has ended."""
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
    """The driver's error for a job's."""
    text = error.message
    if error.type in {"Busy", "TooManyStuck"} and error.errno != errno.EBUSY:
        return Busy(f"{text}: try again")
    if error.errno == errno.EAGAIN and error.type == "BlockingIOError":
        return TooSlow(f"{text}: try again")
    if error.errno == errno.EBUSY:
        return InUse(f"{text}: stop what uses it, then try again")
    if error.errno == errno.ETIMEDOUT:
        # A tool that was killed at its deadline is gone; a child that passed its own may hang on.
        kind = TooSlow if error.type == "CommandError" else Busy
        return kind(f"{text}: {error.job} was given up; look at the node's kernel log, try again")
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return OutOfSpace(f"{text}: delete something first")
    if error.errno in {errno.EIO, errno.EROFS, errno.ENODEV, errno.ESHUTDOWN} and error.type != "CommandError":
        return Unavailable(f"{text}: see the node's kernel log")
    if error.type in {"NoServer", "ServerDied", "Stopped", "ForkFailed", "Crashed"}:
        return Busy(f"{error.job} was interrupted ({text}): try again")
    return Precondition(f"{error.job} failed: {text}")


def errno_of(error: DriverError) -> int:
    """The errno of the system call that failed in a job; 0 where none did."""
    return int(getattr(error.__cause__, "errno", None) or 0)


def command_of(error: DriverError) -> tuple[str, int]:
    """The command that failed in a job, and its exit status; an empty name where it was none."""
    details = getattr(error.__cause__, "details", None) or {}
    return (details.get("argv") or [""])[0], int(details.get("rc") or 0)

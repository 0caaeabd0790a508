"""The space of a pool as it was asked for last: to ask may start a process, and many calls need the answer at once."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from csi_driver.domain.capacity import Space


class SpaceCache:
    """Answers of one backend. Callers that come while it is asked share the answer; one error is raised to all of them.

    `max_age`: seconds. `clock`: monotonic seconds.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[Space]], max_age: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._max_age = max_age
        self._clock = clock
        self._changes = 0
        self._answer: tuple[Space, float, int] | None = None
        self._asking: tuple[asyncio.Task[Space], int] | None = None

    @property
    def last(self) -> Space | None:
        """The last answer, however old; None before the first."""
        return self._answer[0] if self._answer else None

    def changed(self) -> None:
        """Note that the pool's space is another from now on: what was asked before does not count."""
        self._changes += 1

    async def get(self) -> Space:
        """Return an answer that was asked for after the last change, and is not older than `max_age`."""
        if self._max_age <= 0:
            # It costs microseconds: no task, and no answer that is older than the call.
            space = await self._ask()
            self._answer = (space, self._clock(), self._changes)
            return space
        while True:
            if self._answer is not None:
                space, at, changes = self._answer
                if changes == self._changes and self._clock() - at < self._max_age:
                    return space
            if self._asking is None or self._asking[1] != self._changes:
                self._asking = (asyncio.ensure_future(self._refresh(self._changes)), self._changes)
            task = self._asking[0]
            try:
                await asyncio.shield(task)
            finally:
                if task.done() and self._asking is not None and self._asking[0] is task:
                    self._asking = None

    async def _refresh(self, changes: int) -> Space:
        at = self._clock()
        space = await self._ask()
        self._answer = (space, at, changes)
        return space

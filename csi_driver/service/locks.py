"""Shared and exclusive locks on objects. A call waits for a short lock, and is answered Busy at a long one.

An object is in the index from the end of its creation to the end of its deletion. A call that answers from the index alone does
so under the lock or after `ensure_not_changing`: otherwise it would report an object that is gone a moment later, or miss one.
After a wait, a call looks its objects up again: they may be others by then.
docs/explanation/locks.md lists which call takes which lock.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from csi_driver.domain.errors import Busy

PATIENCE = 2.0
"""Seconds that a call waits at most; a lock that was held for longer is not short.

A kubelet unstages a volume while its PVC is deleted already, and a sidecar that is refused writes a Warning on the object.
A lock that is held for longer belongs to real work, or to a call that hangs. Nobody waits for it: calls would pile up behind a
dead disk.
"""


@dataclass(eq=False, slots=True)
class _Lock:
    """What one call has locked, and since when (monotonic seconds)."""

    operation: str
    since: float
    exclusive: frozenset[str]
    shared: frozenset[str]
    creating_or_deleting: frozenset[str]


@dataclass(eq=False, slots=True)
class Locks:
    """Locks of one agent, by object hash. Used from the event loop only, so the tables need no lock themselves."""

    patience: float = PATIENCE
    _exclusive: dict[str, _Lock] = field(default_factory=dict)
    _shared: dict[str, list[_Lock]] = field(default_factory=dict)
    _waiting: dict[int, tuple[frozenset[str], asyncio.Future[None]]] = field(default_factory=dict)
    """The calls that wait, and for which objects, by ticket: the first to come is woken first."""
    _last_ticket: int = 0

    async def ensure_not_changing(self, key: str) -> None:
        """Wait while a call creates or deletes this object: whether it exists is known at the end of that call. Raises Busy."""
        await self._wait(frozenset([key]), lambda: self._creator_or_deleter(key))

    @asynccontextmanager
    async def hold(
        self,
        operation: str,
        exclusive: Iterable[str] = (),
        shared: Iterable[str] = (),
        creating_or_deleting: Iterable[str] = (),
    ) -> AsyncIterator[None]:
        """Lock all objects or none. `operation` tells a call that is refused meanwhile what runs. Raises Busy.

        `creating_or_deleting`: objects that the call creates or deletes. They are locked exclusively, and
        `ensure_not_changing` waits for them.
        """
        changing = frozenset(creating_or_deleting)
        alone = changing | frozenset(exclusive)
        together = frozenset(shared) - alone
        await self._wait(alone | together, lambda: self._oldest_conflict(alone, together))
        # Nothing else has run since the last check: returning from a call that did not wait does not yield to the event loop.
        lock = _Lock(operation, time.monotonic(), alone, together, changing)
        self._exclusive |= dict.fromkeys(alone, lock)
        for key in together:
            self._shared.setdefault(key, []).append(lock)
        try:
            yield
        finally:
            self._release(lock)

    async def wait_released(self, key: str, deadline: float) -> bool:
        """Wait until another call has locked and released this object; False if none had by `deadline` (monotonic seconds).

        For a state that only another call can change, whenever that call begins.
        """
        return await self._wait_for_release(self._new_ticket(), frozenset([key]), deadline)

    def _creator_or_deleter(self, key: str) -> _Lock | None:
        lock = self._exclusive.get(key)
        return lock if lock is not None and key in lock.creating_or_deleting else None

    def _oldest_conflict(self, alone: Collection[str], together: Collection[str]) -> _Lock | None:
        """Return the oldest lock that excludes this one: if it is not a short one, waiting is of no use."""
        conflicts = [self._exclusive[key] for key in (*alone, *together) if key in self._exclusive]
        conflicts += [lock for key in alone for lock in self._shared.get(key, ())]
        return min(conflicts, key=lambda lock: lock.since, default=None)

    async def _wait(self, keys: frozenset[str], find_conflict: Callable[[], _Lock | None]) -> None:
        """Return as soon as there is no conflict; raises Busy with the conflict if that takes too long."""
        ticket, deadline = self._new_ticket(), time.monotonic() + self.patience
        while (conflict := find_conflict()) is not None:
            if not await self._wait_for_release(ticket, keys, min(deadline, conflict.since + self.patience)):
                raise _busy(conflict, keys)

    def _new_ticket(self) -> int:
        self._last_ticket += 1
        return self._last_ticket

    async def _wait_for_release(self, ticket: int, keys: frozenset[str], deadline: float) -> bool:
        """Wait until one of the objects is released; False if none was by `deadline`."""
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = keys, woken
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(remaining):
                    await woken
        finally:
            del self._waiting[ticket]
        return woken.done() and not woken.cancelled()

    def _release(self, lock: _Lock) -> None:
        for key in lock.exclusive:
            del self._exclusive[key]
        for key in lock.shared:
            self._shared[key].remove(lock)
            if not self._shared[key]:
                del self._shared[key]
        for _, (keys, woken) in sorted(self._waiting.items(), key=lambda item: item[0]):
            if not woken.done() and keys & (lock.exclusive | lock.shared):
                woken.set_result(None)


def _busy(lock: _Lock, keys: Collection[str]) -> Busy:
    if lock.exclusive.isdisjoint(keys):
        return Busy("the object is the source of a clone in progress: try again")
    return Busy(f"{lock.operation} is in progress on the same object: try again")

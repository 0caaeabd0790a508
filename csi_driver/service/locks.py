"""Shared and exclusive holds on objects. Who meets a short one waits for it; who meets a long one is told to come again.

An object is in the index from the end of its making to the end of its deletion. An answer that rests on the index alone is given
under the lock or after `settled`, or somebody would be told of an object that is gone a moment later, or of none. Whatever was
looked up before a wait may be another by its end, so that it is looked up again.
The table of who takes what stands in docs/explanation/locks.md.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from csi_driver.domain.errors import Busy

PATIENCE = 2.0
"""Seconds for which a call waits at most, and as many as another may have run for and still count as short.

A kubelet unstages a volume while its claim is deleted already, and a sidecar that is refused writes a Warning on the object.
What takes longer than this is work, or hangs, and is no race that a little patience wins: nobody waits for it, or calls would
pile up behind a dead disk.
"""


@dataclass(eq=False, slots=True)
class _Hold:
    """One call's hold, and since when (monotonic seconds)."""

    doing: str
    since: float
    exclusive: frozenset[str]
    shared: frozenset[str]
    existence: frozenset[str]


@dataclass(eq=False, slots=True)
class Locks:
    """Holds of one agent, by object hash. Only touched from the event loop, so it needs no lock itself."""

    patience: float = PATIENCE
    _exclusive: dict[str, _Hold] = field(default_factory=dict)
    _shared: dict[str, list[_Hold]] = field(default_factory=dict)
    _waiting: dict[int, tuple[frozenset[str], asyncio.Future[None]]] = field(default_factory=dict)
    """Who waits for which objects, by a number that each draws once: who came first is woken first."""
    _drawn: int = 0

    async def settled(self, key: str) -> None:
        """Wait while a call makes or deletes this object: only its end decides whether there is one to answer with. Raises Busy."""
        await self._wait(frozenset([key]), lambda: self._maker(key))

    @asynccontextmanager
    async def hold(
        self, doing: str, exclusive: Iterable[str] = (), shared: Iterable[str] = (), existence: Iterable[str] = ()
    ) -> AsyncIterator[None]:
        """Take all or none. `doing` says, to whoever is refused meanwhile, what runs. Raises Busy.

        `existence`: what the call makes or deletes. It is exclusive, and not `settled` meanwhile.
        """
        made = frozenset(existence)
        mine = made | frozenset(exclusive)
        ours = frozenset(shared) - mine
        await self._wait(mine | ours, lambda: self._in_the_way(mine, ours))
        # Nothing else has run since the last look: to return from a call that did not wait gives nobody a turn.
        hold = _Hold(doing, time.monotonic(), mine, ours, made)
        self._exclusive |= dict.fromkeys(mine, hold)
        for key in ours:
            self._shared.setdefault(key, []).append(hold)
        try:
            yield
        finally:
            self._give_back(hold)

    async def touched(self, key: str, deadline: float) -> bool:
        """Wait until another call has held this object and given it back; False: none had by `deadline` (monotonic seconds).

        For what only another call can change: it begins when it begins.
        """
        return await self._woken(self._ticket(), frozenset([key]), deadline)

    def _maker(self, key: str) -> _Hold | None:
        hold = self._exclusive.get(key)
        return hold if hold is not None and key in hold.existence else None

    def _in_the_way(self, mine: Collection[str], ours: Collection[str]) -> _Hold | None:
        """Of the holds that exclude this one the oldest: where that is no short one, there is nothing to wait for."""
        found = [self._exclusive[key] for key in (*mine, *ours) if key in self._exclusive]
        found += [hold for key in mine for hold in self._shared.get(key, ())]
        return min(found, key=lambda hold: hold.since, default=None)

    async def _wait(self, keys: frozenset[str], look: Callable[[], _Hold | None]) -> None:
        """Return as soon as `look` finds nothing; raises Busy with what it found where that takes too long."""
        ticket, deadline = self._ticket(), time.monotonic() + self.patience
        while (found := look()) is not None:
            if not await self._woken(ticket, keys, min(deadline, found.since + self.patience)):
                raise _busy(found, keys)

    def _ticket(self) -> int:
        self._drawn += 1
        return self._drawn

    async def _woken(self, ticket: int, keys: frozenset[str], deadline: float) -> bool:
        """Wait until one of the objects is given back; False: none was by `deadline`."""
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = keys, woken
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await woken
        finally:
            del self._waiting[ticket]
        return woken.done() and not woken.cancelled()

    def _give_back(self, hold: _Hold) -> None:
        for key in hold.exclusive:
            del self._exclusive[key]
        for key in hold.shared:
            self._shared[key].remove(hold)
            if not self._shared[key]:
                del self._shared[key]
        for _, (keys, woken) in sorted(self._waiting.items(), key=lambda one: one[0]):
            if not woken.done() and keys & (hold.exclusive | hold.shared):
                woken.set_result(None)


def _busy(hold: _Hold, wanted: Collection[str]) -> Busy:
    if hold.exclusive.isdisjoint(wanted):
        return Busy("the object is the source of a copy in progress: try again")
    return Busy(f"{hold.doing} is in progress on the same object: try again")

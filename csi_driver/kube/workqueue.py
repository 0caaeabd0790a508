"""A work queue after client-go's: keys of objects to reconcile, at once, later, or after a backoff.

One key is never worked on twice at once; a key that is added while it is worked on is worked on again. Keys are taken in the
order in which they became due, so a busy key does not starve the others.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import structlog

from csi_driver.domain.errors import DriverError

K = TypeVar("K", bound=Hashable)
K_contra = TypeVar("K_contra", bound=Hashable, contravariant=True)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a reconciliation. `requeue_after`: seconds until the next; None: not before something changes."""

    requeue_after: float | None = None


class Reconciler(Protocol[K_contra]):
    """Compares what is with what is asked for, for one object at a time."""

    async def reconcile(self, key: K_contra, /) -> Result:
        """Act once for the object of that key. It may be cancelled at any await.

        Raises DriverError to be called again after a backoff; any other exception is logged, and waits for the longest one.
        """
        ...


class WorkQueue(Generic[K]):
    """`min_interval` is the least time from the end of one reconciliation of a key to its next, in seconds.

    A failed reconciliation is repeated after `first_backoff` seconds, doubled with each failure in a row up to `longest_backoff`.
    Unlike client-go's, a backoff is not cut short by `add`: changes may keep coming while a key fails. `forget` ends it.
    `clock` counts seconds and never goes back; without one, it is the event loop's.
    """

    def __init__(
        self,
        name: str,
        concurrency: int,
        first_backoff: float,
        longest_backoff: float,
        min_interval: float = 0.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._name = name
        self._concurrency = concurrency
        self._first_backoff = first_backoff
        self._longest_backoff = longest_backoff
        self._min_interval = min_interval
        self._now = clock or _loop_time
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = itertools.count()
        self._active: set[K] = set()
        self._failures: dict[K, int] = {}
        self._not_before: dict[K, float] = {}
        self._changed = asyncio.Event()

    def __contains__(self, key: K) -> bool:
        """Whether the key is queued, is to be queued later, or is worked on."""
        return key in self._due or key in self._active

    def add(self, key: K) -> None:
        """Reconcile as soon as possible."""
        self.add_after(key, 0.0)

    def add_after(self, key: K, seconds: float) -> None:
        """Reconcile after that many seconds, or earlier if the key was added for an earlier time."""
        due = max(self._now() + seconds, self._not_before.get(key, 0.0))
        if due < self._due.get(key, float("inf")):
            self._push(key, due)

    def add_rate_limited(self, key: K) -> float:
        """Count a failure, and reconcile after the backoff. Returns the backoff in seconds."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        # The exponent is bounded: a float has no room for a thousand failures.
        return self._back_off(key, min(self._first_backoff * 2 ** min(count - 1, 60), self._longest_backoff))

    def forget(self, key: K) -> None:
        """Forget the failures of a key, and let the next `add` take effect at once."""
        if self._failures.pop(key, None) is not None:
            self._not_before.pop(key, None)

    async def run(self, reconciler: Reconciler[K]) -> None:
        """Reconcile what is added, one `run` at a time. If cancelled, cancel what is under way and empty the queue."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._changed.clear()
                    while (key := self._take()) is not None:
                        self._active.add(key)
                        tasks.create_task(self._work(reconciler, key), name=f"{self._name} {_shown(key)}")
                    await _wait(self._changed, self._pause())
        finally:
            for kept in (self._due, self._heap, self._active, self._failures, self._not_before):
                kept.clear()

    async def _work(self, reconciler: Reconciler[K], key: K) -> None:
        try:
            result = await reconciler.reconcile(key)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._failed(key, "a call was cancelled")
        except DriverError as error:
            self._failed(key, str(error))
        except Exception:  # one object of an unknown shape must not stop the others
            log.exception("reconcile failed", controller=self._name, key=_shown(key), retry_in=self._longest_backoff)
            self._back_off(key, self._longest_backoff)
        else:
            self._failures.pop(key, None)
            self._not_before.pop(key, None)
            if self._min_interval:
                self._gate(key, self._min_interval)
            if result.requeue_after is not None:
                self.add_after(key, result.requeue_after)
        finally:
            self._active.discard(key)
            if key in self._due:  # added meanwhile, and passed over by _take
                self._push(key, max(self._due[key], self._not_before.get(key, 0.0)))
            self._changed.set()

    def _failed(self, key: K, why: str) -> None:
        retry_in = self.add_rate_limited(key)
        log.warning("reconcile failed", controller=self._name, key=_shown(key), why=why, retry_in=retry_in)

    def _back_off(self, key: K, seconds: float) -> float:
        self._failures.setdefault(key, 1)
        self._due.pop(key, None)
        self._gate(key, seconds)
        self.add(key)
        return seconds

    def _gate(self, key: K, seconds: float) -> None:
        """Let the key not be due before then. Gates that have passed are dropped, else deleted objects would pile up."""
        now = self._now()
        self._not_before = {other: until for other, until in self._not_before.items() if until > now}
        self._not_before[key] = now + seconds

    def _push(self, key: K, due: float) -> None:
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._order), key))
        if len(self._heap) > 2 * len(self._due) + 64:  # each earlier time leaves an entry for the later one behind
            self._heap = [entry for entry in self._heap if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)
        self._changed.set()

    def _take(self) -> K | None:
        """Return the key that has been due for longest, or None: none is due, or enough are worked on."""
        if len(self._active) >= self._concurrency:
            return None
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) == due and key not in self._active:
                if due > self._now():
                    return None
                heapq.heappop(self._heap)
                del self._due[key]
                return key
            heapq.heappop(self._heap)
        return None

    def _pause(self) -> float | None:
        """Seconds until the next key is due; None: not before something changes."""
        if len(self._active) >= self._concurrency or not self._heap:
            return None
        return max(0.0, self._heap[0][0] - self._now())


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _shown(key: Hashable) -> str:
    return "/".join(key) if isinstance(key, tuple) else str(key)


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return

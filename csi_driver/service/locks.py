"""Shared and exclusive holds on objects, never waited for: who meets an exclusive holder is told to come again.

An object is in the index from the end of its making to the end of its deletion. An answer that rests on the index alone is given
under the lock or after `settled`, or somebody would be told of an object that is gone a moment later, or of none.
The table of who takes what stands in docs/explanation/locks.md.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from csi_driver.domain.errors import Busy


class Locks:
    """Holds of one agent, by object hash. Only touched from the event loop, so it needs no lock itself."""

    def __init__(self) -> None:
        self._exclusive: dict[str, str] = {}
        self._shared: dict[str, int] = {}
        self._unsettled: set[str] = set()

    def settled(self, key: str) -> None:
        """Raise Busy while a call makes or deletes this object: only its end decides whether there is one to answer with."""
        if key in self._unsettled:
            raise self._busy(key)

    @contextmanager
    def hold(
        self, doing: str, exclusive: Iterable[str] = (), shared: Iterable[str] = (), existence: Iterable[str] = ()
    ) -> Iterator[None]:
        """Take all or none. `doing` says, to whoever is refused meanwhile, what runs. Raises Busy.

        `existence`: what the call makes or deletes. It is exclusive, and not `settled` meanwhile.
        """
        unsettled = set(existence)
        mine = unsettled | set(exclusive)
        ours = set(shared) - mine
        for key in mine | ours:
            if key in self._exclusive:
                raise self._busy(key)
        for key in mine:
            if self._shared.get(key):
                raise Busy("the object is the source of a copy in progress: try again")
        for key in mine:
            self._exclusive[key] = doing
        for key in ours:
            self._shared[key] = self._shared.get(key, 0) + 1
        self._unsettled |= unsettled
        try:
            yield
        finally:
            self._unsettled -= unsettled
            for key in mine:
                del self._exclusive[key]
            for key in ours:
                self._shared[key] -= 1
                if not self._shared[key]:
                    del self._shared[key]

    def _busy(self, key: str) -> Busy:
        return Busy(f"{self._exclusive[key]} is in progress on the same object: try again")

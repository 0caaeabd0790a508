"""Shared and exclusive holds on objects, never waited for: who meets an exclusive holder is told to come again.

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

    @contextmanager
    def hold(self, doing: str, exclusive: Iterable[str] = (), shared: Iterable[str] = ()) -> Iterator[None]:
        """Take all or none. `doing` says, to whoever is refused meanwhile, what runs. Raises Busy."""
        mine, ours = set(exclusive), set(shared) - set(exclusive)
        for key in mine | ours:
            if key in self._exclusive:
                raise Busy(f"{self._exclusive[key]} is in progress on the same object: try again")
        for key in mine:
            if self._shared.get(key):
                raise Busy("the object is the source of a copy in progress: try again")
        for key in mine:
            self._exclusive[key] = doing
        for key in ours:
            self._shared[key] = self._shared.get(key, 0) + 1
        try:
            yield
        finally:
            for key in mine:
                del self._exclusive[key]
            for key in ours:
                self._shared[key] -= 1
                if not self._shared[key]:
                    del self._shared[key]

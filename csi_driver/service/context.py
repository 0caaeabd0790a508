"""What every service needs besides the pools: clock, randomness, observer."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from csi_driver.backends.base import CutReport
from csi_driver.domain.errors import InUse
from csi_driver.domain.model import Snapshot, Volume
from csi_driver.domain.pages import read_token, token_after
from csi_driver.service.pools import Pools

Item = TypeVar("Item", Volume, Snapshot)


class Observer(Protocol):
    """Where figures go; telemetry.py counts them for Prometheus."""

    def cut(self, pool: str, report: CutReport) -> None:
        """One snapshot, group or clone of a volume was cut."""
        ...


class Unobserved:
    """An observer that drops everything."""

    def cut(self, pool: str, report: CutReport) -> None:
        """See Observer."""


@dataclass(frozen=True)
class Context:
    """Pools, clock and observer, shared by the services of one agent."""

    pools: Pools
    now: Callable[[], int] = time.time_ns
    new_uid: Callable[[], str] = lambda: uuid.uuid4().hex
    observer: Observer = field(default_factory=Unobserved)

    def holder_of(self, volume: Volume) -> str:
        """Who holds the volume now; empty where nobody does or the hold has lapsed."""
        hold = volume.hold
        return hold.holder if hold and hold.expires > self.now() else ""

    def refuse_held(self, volume: Volume, doing: str) -> None:
        """Raise InUse while somebody holds the volume."""
        holder = self.holder_of(volume)
        if holder:
            raise InUse(
                f"{doing} of {volume.id} is refused while {holder!r} holds it for a rollback: wait for its release"
            )


def page(items: list[Item], limit: int, token: str) -> tuple[list[Item], str]:
    """One page in the order of ids, and the token of the next (empty at the end).

    The token names the last id given, so pages stay right while objects come and go. Raises BadToken.
    """
    ordered = sorted(items, key=lambda item: str(item.id))
    if token:
        last = read_token(token)
        ordered = [item for item in ordered if str(item.id) > str(last)]
    if not limit or len(ordered) <= limit:
        return ordered, ""
    return ordered[:limit], token_after(ordered[limit - 1].id)

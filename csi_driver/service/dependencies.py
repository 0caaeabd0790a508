"""What every service of an agent needs: pools, clock, observer, and what is known of holds and conditions."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from csi_driver.backends.base import SnapshotTimings
from csi_driver.service.conditions import Conditions
from csi_driver.service.holds import Holds
from csi_driver.service.pools import Pools


class Observer(Protocol):
    """Receives measurements; agent/metrics.py counts them for Prometheus."""

    def snapshot_taken(self, pool: str, timings: SnapshotTimings) -> None:
        """Count one snapshot, group snapshot or clone of a volume."""
        ...

    def checked(self, pool: str, result: str) -> None:
        """Count one finished check of a file system: mended, damaged or failed."""
        ...


class Unobserved:
    """Drops every measurement."""

    def snapshot_taken(self, pool: str, timings: SnapshotTimings) -> None:
        """See Observer."""

    def checked(self, pool: str, result: str) -> None:
        """See Observer."""


@dataclass(frozen=True)
class ServiceDependencies:
    """Shared by the services of one agent. `now` is Unix time in nanoseconds."""

    pools: Pools
    now: Callable[[], int] = time.time_ns
    new_uid: Callable[[], str] = lambda: uuid.uuid4().hex
    observer: Observer = field(default_factory=Unobserved)
    conditions: Conditions = field(default_factory=Conditions)
    holds: Holds = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "holds", Holds(self.now))

"""How much of a pool may still be promised. All values in bytes."""

from collections.abc import Iterable
from dataclasses import dataclass

from csi_driver.domain.model import Volume

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Space:
    """What the pool's file system says now."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class CapacityPolicy:
    """What the operator of the node allows. `reserve` None: 5 %, at least 1 GiB but no more than 10 %."""

    overcommit: float = 2.0
    reserve: int | None = None
    max_snapshots: int = 256

    def reserve_of(self, total: int) -> int:
        """Bytes that must stay free, or nothing new is made."""
        if self.reserve is not None:
            return self.reserve
        return max(total // 20, min(total // 10, GIB))


def full_below(total: int) -> int:
    """Free bytes of a pool of `total` below which thin volumes fail to write, or soon will: 0.1 %, or 16 MiB.

    XFS gives out its space to nearly the last block; whoever looks every few seconds must not miss the moment.
    """
    return max(total // 1000, 16 * MIB)


@dataclass(frozen=True, slots=True)
class CapacityReport:
    """The sums behind every answer about capacity.

    `promised`: what thick volumes may still have to take; of that, `under_way` to calls that have not ended, and may have taken
    some of it already, or give it back.
    """

    space: Space
    policy: CapacityPolicy
    committed: int
    promised: int
    under_way: int = 0

    @property
    def reserve(self) -> int:
        """Bytes kept free."""
        return self.policy.reserve_of(self.space.total)

    @property
    def below_reserve(self) -> bool:
        """Whether the pool is so full that nothing may be made."""
        return self.space.free < self.reserve

    @property
    def full(self) -> bool:
        """Whether what is written to new blocks fails, or soon will."""
        return self.space.free < full_below(self.space.total)

    @property
    def available(self) -> int:
        """The largest thin volume that may be made now."""
        if self.below_reserve:
            return 0
        return max(0, int(self.space.total * self.policy.overcommit) - self.committed)

    @property
    def reservable(self) -> int:
        """Real free bytes that are neither reserved for an operation nor kept in reserve."""
        return max(0, self.space.free - self.reserve - self.promised)

    def reservable_after_pending(self, own: int = 0) -> int:
        """What `reservable` may be at most when the calls under way have ended, but for the one that reserved `own` of that.

        Each may have taken all that it reserved, so that it counts twice now, and give it back.
        """
        return max(0, self.space.free - self.reserve - self.promised + 2 * (self.under_way - own))

    @property
    def available_thick(self) -> int:
        """The largest thick volume: real bytes for all of it, inside the thin bound as well."""
        return min(self.available, self.reservable)

    @property
    def available_thick_later(self) -> int:
        """The largest thick volume that waiting for the calls under way can make room for."""
        return min(self.available, self.reservable_after_pending())

    @property
    def ceiling(self) -> int:
        """What the empty pool could hold: more is never served, however much is deleted."""
        return max(0, int(self.space.total * self.policy.overcommit))


def reserved_for_thick(volumes: Iterable[Volume], allocated: dict[str, int]) -> int:
    """What thick volumes may still take: nearly nothing, since their blocks are allocated and their own.

    `allocated` maps a volume's hash to its image's allocated bytes.
    """
    return sum(max(0, v.size - allocated.get(v.id.hash, 0)) for v in volumes if v.thick)


def human(count: int) -> str:
    """Bytes for people: `1.5 GiB`, without a fraction where there is none."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024 or unit == "PiB":
            break
        value /= 1024
    text = f"{value:.1f}".removesuffix(".0") if unit != "B" else str(count)
    return f"{text} {unit}"

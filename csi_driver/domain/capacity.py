"""How much of a pool may still be promised. All values in bytes, but for a Limit's."""

from collections.abc import Iterable
from dataclasses import dataclass

from csi_driver.domain.model import Volume

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limit:
    """Something beside free bytes that a pool can run out of, in a unit of its own: metadata, an area for records.

    `name`: for people, as the rest of "the pool's ...". From `refuse_at` of `total` on nothing new is made, since at the total even
    what exists would be harmed. `remedy`: what makes more of it, beside deleting; empty: nothing does.
    """

    name: str
    used: int
    total: int
    refuse_at: int
    remedy: str = ""

    @property
    def is_passed(self) -> bool:
        """Whether nothing new is made."""
        return self.used >= self.refuse_at

    def __str__(self) -> str:
        return f"its {self.name} is {_share(self.used, self.total)} used, and from {_share(self.refuse_at, self.total)} on nothing is made"


def _share(part: int, total: int) -> str:
    return f"{part / total:.0%}" if total else "100%"


@dataclass(frozen=True, slots=True)
class Space:
    """What the pool says now. `thick_free`: what thick volumes are made of where that is beside what thin ones share; None: the same."""

    total: int
    free: int
    limits: tuple[Limit, ...] = ()
    thick_free: int | None = None


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
        """Whether the pool is so full that nothing may be made: its bytes, or something else that it has a limit of."""
        return self.space.free < self.reserve or self.passed_limit is not None

    @property
    def passed_limit(self) -> Limit | None:
        """The first limit that is passed; None: there is none."""
        return next((limit for limit in self.space.limits if limit.is_passed), None)

    @property
    def state(self) -> str:
        """How full the pool is, for a refusal: what is free, what is kept, and the limit that is passed."""
        text = f"{human(self.space.free)} free, {human(self.reserve)} kept in reserve"
        return text if self.passed_limit is None else f"{text}; {self.passed_limit}"

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
        """Real free bytes that are neither reserved for an operation nor kept in reserve; none beyond a limit."""
        if self.passed_limit is not None:
            return 0
        return max(0, self._real - self.promised)

    def reservable_after_pending(self, own: int = 0) -> int:
        """What `reservable` may be at most when the calls under way have ended, but for the one that reserved `own` of that.

        Each may have taken all that it reserved, so that it counts twice now, and give it back.
        """
        if self.passed_limit is not None:
            return 0
        return max(0, self._real - self.promised + 2 * (self.under_way - own))

    @property
    def available_thick(self) -> int:
        """The largest thick volume: real bytes for all of it, inside the thin bound as well where it takes of the same."""
        return self._within_thin_bound(self.reservable)

    @property
    def available_thick_later(self) -> int:
        """The largest thick volume that waiting for the calls under way can make room for."""
        return self._within_thin_bound(self.reservable_after_pending())

    @property
    def _real(self) -> int:
        """Bytes that thick volumes may be made of, but for those that are promised."""
        beside = self.space.thick_free
        return beside if beside is not None else self.space.free - self.reserve

    def _within_thin_bound(self, size: int) -> int:
        return size if self.space.thick_free is not None else min(self.available, size)

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

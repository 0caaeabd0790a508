"""The gauges of an agent, which are read at each scrape: of its pools, its volumes and itself."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from csi_driver.metrics import read_changing

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


@dataclass(frozen=True, slots=True)
class LimitMetrics:
    """One limit of a pool at one moment, in its own unit: see domain.capacity.Limit."""

    pool: str
    limit: str
    used: int
    total: int
    refuse_at: int


@dataclass(frozen=True, slots=True)
class PoolMetrics:
    """One pool at one moment, in bytes. A slow scan counts `exclusive` and `extents`: they are None before its first end,
    and `walked` is their age in seconds.
    """

    pool: str
    total: int
    used: int
    committed: int
    available: int
    volumes: int
    snapshots: int
    full: bool = False
    exclusive: int | None = None
    extents: int | None = None
    walked: float | None = None
    limits: tuple[LimitMetrics, ...] = ()


@dataclass(frozen=True, slots=True)
class VolumeMetrics:
    """One volume at one moment, in bytes. `namespace` and `claim` are empty if it was not made for a PVC.

    The same scan counts `used` and `exclusive`: None before it has counted this volume.
    """

    pool: str
    volume: str
    namespace: str
    claim: str
    size: int
    snapshots: int
    used: int | None = None
    exclusive: int | None = None


@dataclass(frozen=True, slots=True)
class VolumesMetrics:
    """The volumes that have series of their own, and how many have none, by pool."""

    shown: Sequence[VolumeMetrics] = ()
    not_shown: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UnhealthyVolume:
    """A volume whose file system has a problem. `namespace` and `claim` are empty if it was not made for a PVC."""

    pool: str
    volume: str
    namespace: str
    claim: str
    condition: str


@dataclass(frozen=True, slots=True)
class NodeMetrics:
    """This agent at one moment."""

    loop_devices: int
    abandoned: int


class GaugeReaders(Protocol):
    """Where the values come from: agent.metric_readers.MetricReaders."""

    def pools(self) -> Iterable[PoolMetrics]:
        """Return the metrics of all pools that are available."""
        ...

    def volumes(self) -> VolumesMetrics:
        """Return the metrics of their volumes."""
        ...

    def unhealthy_volumes(self) -> Iterable[UnhealthyVolume]:
        """Return the volumes whose file systems have a problem."""
        ...

    def node(self) -> NodeMetrics:
        """Return the metrics of this agent."""
        ...


class Gauges:
    """Collects all gauges; a value that cannot be read is left out, never guessed."""

    def __init__(self, readers: GaugeReaders) -> None:
        self._readers = readers

    def describe(self) -> "Iterable[Metric]":
        """Return nothing: registering must not read pools that are not open yet."""
        return []

    def collect(self) -> "Iterator[Metric]":
        """Yield all gauges."""
        from prometheus_client.core import GaugeMetricFamily

        readers = self._readers
        pools = read_changing(lambda: list(readers.pools())) or []
        yield from _families("tidemark_pool", _POOL_GAUGES, ("pool",), pools)
        limits = [limit for pool in pools for limit in pool.limits]
        yield from _families("tidemark_pool_limit", _LIMIT_GAUGES, ("pool", "limit"), limits)
        volumes = read_changing(readers.volumes) or VolumesMetrics()
        yield from _families("tidemark_volume", _VOLUME_GAUGES, _VOLUME_LABELS, volumes.shown)
        family = GaugeMetricFamily(
            "tidemark_pool_volumes_not_shown",
            "Volumes without series of their own, because there are more than --metrics-volumes.",
            labels=["pool"],
        )
        for pool, count in volumes.not_shown.items():
            family.add_metric([pool], count)
        yield family
        family = GaugeMetricFamily(
            "tidemark_volume_unwell", "1 for each volume whose file system has a problem.", labels=_UNHEALTHY_LABELS
        )
        for volume in read_changing(lambda: list(readers.unhealthy_volumes())) or []:
            family.add_metric([getattr(volume, name) for name in _UNHEALTHY_LABELS], 1)
        yield family
        node = read_changing(readers.node)
        if node is not None:
            yield GaugeMetricFamily("tidemark_loop_devices", "Loop devices attached.", value=node.loop_devices)
            yield GaugeMetricFamily(
                "tidemark_children_written_off", "Helper processes stuck in the kernel.", value=node.abandoned
            )


def _families(
    prefix: str, gauges: Sequence[tuple[str, str, str]], labels: Sequence[str], objects: Iterable[object]
) -> "Iterator[Metric]":
    """Yield one family for each gauge, with a sample for each object that has a value."""
    from prometheus_client.core import GaugeMetricFamily

    labelled = [([getattr(item, label) for label in labels], item) for item in objects]
    for name, help_text, attribute in gauges:
        family = GaugeMetricFamily(f"{prefix}_{name}", help_text, labels=labels)
        for values, item in labelled:
            value = getattr(item, attribute)
            if value is not None:
                family.add_metric(values, value)
        yield family


_VOLUME_LABELS = ("pool", "volume", "namespace", "claim")
_UNHEALTHY_LABELS = (*_VOLUME_LABELS, "condition")

_POOL_GAUGES = (
    ("total_bytes", "Size of the pool.", "total"),
    ("used_bytes", "Bytes in use.", "used"),
    ("committed_bytes", "Sum of the sizes of all volumes.", "committed"),
    ("available_bytes", "Bytes that may still be reserved.", "available"),
    ("full", "1 if writes to thin volumes fail for lack of space, or soon will.", "full"),
    ("volumes", "Volumes.", "volumes"),
    ("snapshots", "Snapshots, including members of group snapshots.", "snapshots"),
    ("exclusive_bytes", "Bytes that belong to one object alone, as of the last scan.", "exclusive"),
    ("extents", "Extents of all images, as of the last scan.", "extents"),
    ("walk_age_seconds", "Age of the last scan of all extents.", "walked"),
)

_LIMIT_GAUGES = (
    ("used", "Used of what the pool has a limit of, in its own unit.", "used"),
    ("total", "How much of it there is.", "total"),
    ("refuse_at", "The pool makes nothing new from here on.", "refuse_at"),
)

_VOLUME_GAUGES = (
    ("size_bytes", "Size of the volume.", "size"),
    (
        "used_bytes",
        "Bytes that its image has allocated, those shared with others included, as of the last scan.",
        "used",
    ),
    ("exclusive_bytes", "Bytes that deleting the volume alone would free, as of the last scan.", "exclusive"),
    ("snapshots", "Snapshots of the volume, including members of group snapshots.", "snapshots"),
)

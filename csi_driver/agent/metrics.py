"""The metrics of one agent. The composition root hands them down as small protocols: no layer below imports this.

A scrape reads memory and statvfs only.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from csi_driver.metrics import CallMetrics, new_registry, read_changing

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_SNAPSHOT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class SnapshotTimings(Protocol):
    """Seconds that one snapshot took: backends.base.SnapshotTimings."""

    @property
    def frozen(self) -> float:
        """While file systems were frozen; 0 if none was mounted."""
        ...

    @property
    def cloned(self) -> float:
        """For the clone."""
        ...


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


class AgentMetrics:
    """The metrics of one agent; implements service.dependencies.Observer and rpc.interceptors.CallObserver."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Histogram

        registry = self.registry = new_registry()
        self._calls = CallMetrics(registry)
        # Both names for one release: the alerts and dashboards of users may have the old one.
        self._completed_after_cancel = [
            Counter(
                name, "Requests completed after the client cancelled, by code.", ["method", "code"], registry=registry
            )
            for name in ("tidemark_csi_requests_completed_after_cancel_total", "tidemark_late_calls_total")
        ]
        self._freeze = Histogram(
            "tidemark_freeze_seconds",
            "Time for which a snapshot kept file systems frozen.",
            ["pool"],
            buckets=_SNAPSHOT_BUCKETS,
            registry=registry,
        )
        self._clone = [
            Histogram(name, "Duration of a snapshot's clone.", ["pool"], buckets=_SNAPSHOT_BUCKETS, registry=registry)
            for name in ("tidemark_snapshot_clone_duration_seconds", "tidemark_snapshot_seconds")
        ]
        self._checks = Counter(
            "tidemark_file_system_checks_total",
            "Completed file system checks, by result.",
            ["pool", "result"],
            registry=registry,
        )

    def call(self, method: str, code: str, seconds: float) -> None:
        """Count a call that was answered, or whose client has cancelled it."""
        self._calls.record(method, code, seconds)

    def after_cancel(self, method: str, code: str, seconds: float) -> None:
        """Count work that completed after its client had cancelled it."""
        del seconds  # no client waited for it
        for counter in self._completed_after_cancel:
            counter.labels(method, code).inc()

    def snapshot_taken(self, pool: str, report: SnapshotTimings) -> None:
        """Record one snapshot, group snapshot or clone of a volume."""
        if report.frozen:
            self._freeze.labels(pool).observe(report.frozen)
        for histogram in self._clone:
            histogram.labels(pool).observe(report.cloned)

    def checked(self, pool: str, result: str) -> None:
        """Count a completed check of a file system."""
        self._checks.labels(pool, result).inc()

    def watch(
        self,
        pools: Callable[[], Iterable[PoolMetrics]],
        node: Callable[[], NodeMetrics],
        unhealthy: Callable[[], Iterable[UnhealthyVolume]] = lambda: (),
    ) -> None:
        """Export what these callables return at each scrape. The scraping thread calls them: they must be quick."""
        self.registry.register(_Gauges(pools, node, unhealthy))


class _Gauges:
    """Gauges that are read at the scrape."""

    def __init__(
        self,
        pools: Callable[[], Iterable[PoolMetrics]],
        node: Callable[[], NodeMetrics],
        unhealthy: Callable[[], Iterable[UnhealthyVolume]],
    ) -> None:
        self._pools = pools
        self._node = node
        self._unhealthy = unhealthy

    def describe(self) -> "Iterable[Metric]":
        """Return nothing: registering must not read pools that are not open yet."""
        return []

    def collect(self) -> "Iterator[Metric]":
        """Yield all gauges; a value that cannot be read is left out, never guessed."""
        from prometheus_client.core import GaugeMetricFamily

        pools = read_changing(lambda: list(self._pools())) or []
        for name, help_text, attribute in _POOL_GAUGES:
            family = GaugeMetricFamily(f"tidemark_pool_{name}", help_text, labels=["pool"])
            for pool in pools:
                value = getattr(pool, attribute)
                if value is not None:
                    family.add_metric([pool.pool], value)
            yield family
        family = GaugeMetricFamily(
            "tidemark_volume_unwell", "1 for each volume whose file system has a problem.", labels=_UNHEALTHY_LABELS
        )
        for volume in read_changing(lambda: list(self._unhealthy())) or []:
            family.add_metric([getattr(volume, name) for name in _UNHEALTHY_LABELS], 1)
        yield family
        node = read_changing(self._node)
        if node is not None:
            yield GaugeMetricFamily("tidemark_loop_devices", "Loop devices attached.", value=node.loop_devices)
            yield GaugeMetricFamily(
                "tidemark_children_written_off", "Helper processes stuck in the kernel.", value=node.abandoned
            )


_UNHEALTHY_LABELS = ("pool", "volume", "namespace", "claim", "condition")

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

"""Logs and figures. Configured by the command line, handed down as small protocols: no layer below imports this.

A scrape reads memory and statvfs only. What is heavy to import (prometheus_client brings an HTTP server, structlog
brings rich) is imported when it is first needed, here and in agent/probes.py alone.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from csi_driver import __version__
from csi_driver.backends.base import SnapshotTimings

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_Read = TypeVar("_Read")

_CALL_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_CUT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_TRIES = 5


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """One pool at one moment; bytes. `exclusive` and `extents` come from a slow walk: None before its first end,
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
class Unwell:
    """A volume whose file system is in trouble. `namespace` and `claim` are empty where it was made for no claim."""

    pool: str
    volume: str
    namespace: str
    claim: str
    condition: str


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """This agent at one moment."""

    loop_devices: int
    written_off: int


class Telemetry:
    """The figures of one agent: the services' observer and the calls' observer in one."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector

        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("tidemark_build", "The version that runs.", registry=self.registry).info({"version": __version__})
        self._calls = Counter(
            "tidemark_calls_total", "Calls answered, by code.", ["method", "code"], registry=self.registry
        )
        self._late = Counter(
            "tidemark_late_calls_total",
            "Work that ended after its client had gone, by code.",
            ["method", "code"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "tidemark_call_seconds",
            "Time until a call was answered.",
            ["method", "code"],
            buckets=_CALL_BUCKETS,
            registry=self.registry,
        )
        self._freeze = Histogram(
            "tidemark_freeze_seconds",
            "Time for which a cut held file systems frozen.",
            ["pool"],
            buckets=_CUT_BUCKETS,
            registry=self.registry,
        )
        self._snapshot = Histogram(
            "tidemark_snapshot_seconds",
            "Time that the cloning of a cut took.",
            ["pool"],
            buckets=_CUT_BUCKETS,
            registry=self.registry,
        )

        self._checks = Counter(
            "tidemark_file_system_checks_total",
            "Checks of file systems that have ended, by what came of them.",
            ["pool", "result"],
            registry=self.registry,
        )

    def call(self, method: str, code: str, seconds: float) -> None:
        """A call was answered, or its client went away. See rpc.interceptors.CallObserver."""
        self._calls.labels(method, code).inc()
        self._seconds.labels(method, code).observe(seconds)

    def after_cancel(self, method: str, code: str, seconds: float) -> None:
        """Work whose client had gone away ended. See rpc.interceptors.CallObserver."""
        del seconds  # a client that is gone waits for nothing
        self._late.labels(method, code).inc()

    def cut(self, pool: str, report: SnapshotTimings) -> None:
        """One snapshot, group or clone of a volume was cut. See service.context.Observer."""
        if report.frozen:
            self._freeze.labels(pool).observe(report.frozen)
        self._snapshot.labels(pool).observe(report.cloned)

    def checked(self, pool: str, result: str) -> None:
        """A check of a file system has ended. See service.context.Observer."""
        self._checks.labels(pool, result).inc()

    def watch(
        self,
        pools: Callable[[], Iterable[PoolFigures]],
        node: Callable[[], NodeFigures],
        unwell: Callable[[], Iterable[Unwell]] = lambda: (),
    ) -> None:
        """Export what these callables say at each scrape; all are called from the scraping thread, and must be quick."""
        self.registry.register(_Gauges(pools, node, unwell))


class _Gauges:
    """Gauges that are read when they are asked for."""

    def __init__(
        self,
        pools: Callable[[], Iterable[PoolFigures]],
        node: Callable[[], NodeFigures],
        unwell: Callable[[], Iterable[Unwell]],
    ) -> None:
        self._pools = pools
        self._node = node
        self._unwell = unwell

    def describe(self) -> "Iterable[Metric]":
        """Nothing: registering must not read pools that are not open yet."""
        return []

    def collect(self) -> "Iterator[Metric]":
        """All gauges now; those that cannot be read are left out, never guessed."""
        from prometheus_client.core import GaugeMetricFamily

        pools = _read(lambda: list(self._pools())) or []
        for name, help_text, attribute in _POOL_GAUGES:
            family = GaugeMetricFamily(f"tidemark_pool_{name}", help_text, labels=["pool"])
            for figures in pools:
                value = getattr(figures, attribute)
                if value is not None:
                    family.add_metric([figures.pool], value)
            yield family
        family = GaugeMetricFamily(
            "tidemark_volume_unwell", "1 for each volume whose file system is in trouble.", labels=_UNWELL
        )
        for volume in _read(lambda: list(self._unwell())) or []:
            family.add_metric([getattr(volume, name) for name in _UNWELL], 1)
        yield family
        node = _read(self._node)
        if node is not None:
            yield GaugeMetricFamily("tidemark_loop_devices", "Loop devices attached.", value=node.loop_devices)
            yield GaugeMetricFamily(
                "tidemark_children_written_off", "Child processes stuck in the kernel.", value=node.written_off
            )


_UNWELL = ("pool", "volume", "namespace", "claim", "condition")

_POOL_GAUGES = (
    ("total_bytes", "Size of the pool.", "total"),
    ("used_bytes", "Bytes in use.", "used"),
    ("committed_bytes", "Sum of the sizes of all volumes.", "committed"),
    ("available_bytes", "Bytes that may still be promised.", "available"),
    ("full", "Whether writes to thin volumes fail for want of space, or soon will.", "full"),
    ("volumes", "Volumes.", "volumes"),
    ("snapshots", "Snapshots, members of groups included.", "snapshots"),
    ("exclusive_bytes", "Bytes that belong to one object alone, as of the last walk.", "exclusive"),
    ("extents", "Extents of all images, as of the last walk.", "extents"),
    ("walk_age_seconds", "Age of the last walk over all extents.", "walked"),
)


def _read(reader: Callable[[], _Read]) -> _Read | None:
    """Read figures that the event loop's thread may be changing: a dictionary that grew meanwhile is read again."""
    for _ in range(_TRIES):
        try:
            return reader()
        except RuntimeError:
            continue
        except Exception:
            return None
    return None

"""The metrics of one agent. The composition root hands them down as small protocols: no layer below imports this.

A scrape reads memory and statvfs only.
"""

from typing import Protocol

from csi_driver.agent.gauges import GaugeReaders, Gauges
from csi_driver.metrics import CallMetrics, new_registry, with_labels

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


class AgentMetrics:
    """The metrics of one agent; implements service.dependencies.Observer and rpc.interceptors.CallObserver.

    `registry` is for the listener: every series in it has the label `node`, see docs/reference/metrics.md.
    """

    def __init__(self, node: str) -> None:
        from prometheus_client import Counter, Histogram

        registry = self._unlabelled = new_registry()
        self.registry = with_labels(registry, {"node": node})
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

    def watch(self, readers: GaugeReaders) -> None:
        """Export what these readers return at each scrape. The scraping thread calls them: they must be quick."""
        self._unlabelled.register(Gauges(readers))

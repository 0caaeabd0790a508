"""The figures of one controller, handed down as small protocols and plain gauges: no layer below imports this."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from csi_driver import __version__

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_CALL_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ControllerTelemetry:
    """Public gauges and counters are set by who knows; `call` and `late` are what rpc.interceptors.CallObserver asks."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info("tidemark_build", "The version that runs.", registry=registry).info({"version": __version__})
        self._calls = Counter("tidemark_calls_total", "Calls answered, by code.", ["method", "code"], registry=registry)
        self._seconds = Histogram(
            "tidemark_call_seconds",
            "Time until a call was answered.",
            ["method", "code"],
            buckets=_CALL_BUCKETS,
            registry=registry,
        )
        self.agent_reachable = Gauge(
            "tidemark_agent_reachable", "Whether a node's agent answered last.", ["node"], registry=registry
        )
        self.orphans = Gauge(
            "tidemark_orphan_volumes", "Volumes that no PersistentVolume names, for an hour.", registry=registry
        )
        self.leading = Gauge("tidemark_leading", "Whether this controller reconciles.", registry=registry)
        self.certificate_expiry = Gauge(
            "tidemark_certificate_expiry_timestamp_seconds",
            "Until when a certificate is valid (Unix time).",
            ["role"],
            registry=registry,
        )
        self.schedule_late = Gauge(
            "tidemark_schedule_late_seconds",
            "How long a schedule's due snapshots are missing.",
            ["namespace", "schedule"],
            registry=registry,
        )
        self.schedule_snapshots = Counter(
            "tidemark_schedule_snapshots_total",
            "Snapshots of a schedule: made, failed, deleted.",
            ["namespace", "schedule", "result"],
            registry=registry,
        )
        self.rollbacks = Gauge("tidemark_rollbacks", "VolumeRollbacks, by phase.", ["phase"], registry=registry)

    def call(self, method: str, code: str, seconds: float) -> None:
        """A call was answered, or its client went away. See rpc.interceptors.CallObserver."""
        self._calls.labels(method, code).inc()
        self._seconds.labels(method, code).observe(seconds)

    def after_cancel(self, method: str, code: str, seconds: float) -> None:
        """Nothing: a call that is passed on ends with its client. See rpc.interceptors.CallObserver."""

    def reached(self, answers: Mapping[str, bool]) -> None:
        """Which agents answered, by owner; those that are not named any more are dropped."""
        self.agent_reachable.clear()
        for owner, answered in answers.items():
            self.agent_reachable.labels(owner).set(answered)

    def watch_ages(self, ages: Callable[[], Mapping[str, float]]) -> None:
        """Export how old the copies of the cluster's objects are, at each scrape."""
        self.registry.register(_Ages(ages))

    def text(self) -> bytes:
        """All figures now, in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class _Ages:
    def __init__(self, ages: Callable[[], Mapping[str, float]]) -> None:
        self._ages = ages

    def describe(self) -> "list[Metric]":
        """Nothing: registering must not read."""
        return []

    def collect(self) -> "Iterator[Metric]":
        """One gauge a kind."""
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(
            "tidemark_mirror_age_seconds",
            "Since when the copy of a kind of objects is not known to be up to date.",
            labels=["kind"],
        )
        for kind, age in self._ages().items():
            family.add_metric([kind], age)
        yield family

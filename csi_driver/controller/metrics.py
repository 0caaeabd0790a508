"""The metrics of one controller, handed down as small protocols and plain gauges: no layer below imports this."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from csi_driver.metrics import CallMetrics, new_registry, read_changing

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


class ControllerMetrics:
    """Components set the public gauges and counters; `call` and `late` implement rpc.interceptors.CallObserver."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge

        registry = self.registry = new_registry()
        self._calls = CallMetrics(registry)
        self.agent_reachable = Gauge(
            "tidemark_agent_reachable", "1 if the agent of a node answered the last probe.", ["node"], registry=registry
        )
        self.orphans = Gauge(
            "tidemark_orphan_volumes",
            "Volumes without a PersistentVolume for at least an hour.",
            registry=registry,
        )
        self.leading = Gauge("tidemark_leading", "1 if this controller is the leader.", registry=registry)
        self.certificate_expiry = Gauge(
            "tidemark_certificate_expiry_timestamp_seconds",
            "End of a certificate's validity (Unix time).",
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
        """Count a call that was answered, or whose client has cancelled it."""
        self._calls.record(method, code, seconds)

    def after_cancel(self, method: str, code: str, seconds: float) -> None:
        """Do nothing: a forwarded call ends with its client."""

    def reached(self, answers: Mapping[str, bool]) -> None:
        """Set which agents answered, by owner; owners that are not named are dropped."""
        self.agent_reachable.clear()
        for owner, answered in answers.items():
            self.agent_reachable.labels(owner).set(answered)

    def watch_ages(self, ages: Callable[[], Mapping[str, float]]) -> None:
        """Export the age of each informer's cache at each scrape; the scraping thread calls `ages`."""
        self.registry.register(_InformerAges(ages))


class _InformerAges:
    def __init__(self, ages: Callable[[], Mapping[str, float]]) -> None:
        self._ages = ages

    def describe(self) -> "list[Metric]":
        """Return nothing: registering must not read."""
        return []

    def collect(self) -> "Iterator[Metric]":
        """Yield one gauge with a sample for each kind."""
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(
            "tidemark_mirror_age_seconds",
            "Seconds since the cache of a kind of objects was last known to be up to date.",
            labels=["kind"],
        )
        for kind, age in (read_changing(self._ages) or {}).items():
            family.add_metric([kind], age)
        yield family

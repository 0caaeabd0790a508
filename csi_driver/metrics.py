"""What the metrics of an agent and of a controller share.

prometheus_client brings an HTTP server: it is imported when it is first needed, here, in probes.py and in the two
metrics modules alone.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from csi_driver import __version__

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

_Value = TypeVar("_Value")

CALL_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds; of CSI calls."""

_READ_ATTEMPTS = 5


def new_registry() -> "CollectorRegistry":
    """Return a registry with the metrics of the process itself and the version.

    Without the series `_created`: each would be one more series for every counter and histogram, and nothing reads them.
    """
    from prometheus_client import CollectorRegistry, Info, ProcessCollector, disable_created_metrics

    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    Info("tidemark_build", "The running version.", registry=registry).info({"version": __version__})
    return registry


def with_labels(registry: "CollectorRegistry", labels: Mapping[str, str]) -> "CollectorRegistry":
    """Return a registry that exports what `registry` has or will have, each series with these labels too."""
    from prometheus_client import CollectorRegistry

    labelled = CollectorRegistry()
    labelled.register(_Labelled(registry, labels))
    return labelled


class _Labelled:
    def __init__(self, registry: "CollectorRegistry", labels: Mapping[str, str]) -> None:
        self._registry = registry
        self._labels = labels

    def describe(self) -> "list[Metric]":
        """Return nothing: the names are checked by the registry below."""
        return []

    def collect(self) -> "Iterator[Metric]":
        """Yield the families of the registry below, which makes new ones for each scrape."""
        for family in self._registry.collect():
            family.samples = [sample._replace(labels={**sample.labels, **self._labels}) for sample in family.samples]
            yield family


class CallMetrics:
    """Counts calls and their duration, by method and gRPC code."""

    def __init__(self, registry: "CollectorRegistry") -> None:
        from prometheus_client import Counter, Histogram

        labels = ["method", "code"]
        self._calls = Counter("tidemark_calls_total", "Calls answered, by code.", labels, registry=registry)
        self._seconds = Histogram(
            "tidemark_call_seconds", "Time until a call was answered.", labels, buckets=CALL_BUCKETS, registry=registry
        )

    def record(self, method: str, code: str, seconds: float) -> None:
        """Count one call that was answered, or whose client has cancelled it."""
        self._calls.labels(method, code).inc()
        self._seconds.labels(method, code).observe(seconds)


def read_changing(reader: Callable[[], _Value]) -> _Value | None:
    """Return what `reader` reads from the scraping thread; None if it fails.

    The event loop may change a dictionary meanwhile: it is read again then.
    """
    for _ in range(_READ_ATTEMPTS):
        try:
            return reader()
        except RuntimeError:
            continue
        except Exception:
            return None
    return None

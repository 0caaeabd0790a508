"""The metrics of schedules."""

from typing import Protocol


class ScheduleMetrics(Protocol):
    """Metrics of schedules, each by namespace and name."""

    def snapshot_created(self, namespace: str, name: str) -> None:
        """Count a snapshot or a group that was created."""
        ...

    def snapshot_failed(self, namespace: str, name: str) -> None:
        """Count one that has failed."""
        ...

    def snapshot_deleted(self, namespace: str, name: str) -> None:
        """Count one that was deleted."""
        ...

    def set_overdue(self, namespace: str, name: str, since: int | None) -> None:
        """Set since when a run is missing (Unix time), or None if none is."""
        ...

    def remove(self, namespace: str, name: str) -> None:
        """Remove the metrics of a schedule that no longer exists."""
        ...

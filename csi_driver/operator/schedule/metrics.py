"""The figures of schedules that the operator tells."""

from typing import Protocol


class ScheduleObserver(Protocol):
    """Figures of schedules, each by namespace and name."""

    def made(self, namespace: str, name: str) -> None:
        """A snapshot or a group was created."""
        ...

    def failed(self, namespace: str, name: str) -> None:
        """One was found to have failed."""
        ...

    def deleted(self, namespace: str, name: str) -> None:
        """One was deleted."""
        ...

    def late(self, namespace: str, name: str, since: int | None) -> None:
        """Since when a run is missing (Unix time); None where none is."""
        ...

    def gone(self, namespace: str, name: str) -> None:
        """The schedule is not there any more."""
        ...

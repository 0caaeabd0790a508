"""Limits how often the same event is emitted while its reason lasts."""

from collections.abc import Callable

from csi_driver.kube.client import Object
from csi_driver.kube.events import EventRecorder

REPEAT_SECONDS = 300.0
"""Before the same event on the same object is repeated."""

CHANGED_SECONDS = 30.0
"""Before an event with another message: numbers in messages change all the time."""


class EventLimiter:
    """Remembers the last event of each reason on each object; `clock` counts seconds."""

    def __init__(self, events: EventRecorder, clock: Callable[[], float]) -> None:
        self._events = events
        self._clock = clock
        self._emitted: dict[tuple[str, str], tuple[str, float]] = {}

    async def emit(self, obj: Object, reason: str, message: str) -> float:
        """Emit a warning unless it is too early. Returns the seconds until the same warning is due."""
        key, now = (obj["metadata"]["uid"], reason), self._clock()
        last_message, at = self._emitted.get(key, ("", float("-inf")))
        due = at + (REPEAT_SECONDS if message == last_message else CHANGED_SECONDS)
        if now < due:
            return due - now
        self._emitted = {other: last for other, last in self._emitted.items() if last[1] > now - REPEAT_SECONDS}
        self._emitted[key] = (message, now)
        await self._events.emit(obj, "Warning", reason, message)
        return REPEAT_SECONDS

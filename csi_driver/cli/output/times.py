"""Times for people, in the local time zone."""

from datetime import datetime

_UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


def minute(moment: datetime) -> str:
    """Return a time to the minute, e.g. 2026-11-30 14:02."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def second(moment: datetime) -> str:
    """Return a time to the second."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def ago(moment: datetime, now: datetime) -> str:
    """Return how long ago a time was, in its largest unit, e.g. 3 days ago."""
    passed = max(0, int((now - moment).total_seconds()))
    for seconds, unit in _UNITS:
        if passed >= seconds:
            count = passed // seconds
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "0 seconds ago"

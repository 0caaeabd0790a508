"""Times as the Kubernetes API writes them (RFC 3339, UTC) and as whole seconds of the Unix epoch."""

from datetime import UTC, datetime


def parse_timestamp(text: str | None) -> int | None:
    """Return the seconds, or None if the text is not a time with a zone."""
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return int(time.timestamp()) if time.tzinfo else None


def parse_optional_timestamp(text: str | None) -> int:
    """Return the seconds, or 0 if there is no text.

    Raises ValueError if there is text that is not a time with a zone: nothing may be done as if it had never been written.
    """
    if not text:
        return 0
    seconds = parse_timestamp(text)
    if seconds is None:
        raise ValueError(f"{text!r} is not a time of RFC 3339")
    return seconds


def format_timestamp(seconds: float) -> str:
    """Return the text, to the second, as in `2026-11-26T07:00:00Z`."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"

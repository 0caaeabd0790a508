"""Times as the Kubernetes API writes them (RFC 3339, UTC) and as whole seconds of the Unix epoch."""

from datetime import UTC, datetime


def parse_timestamp(text: str | None) -> int | None:
    """Return the seconds, or None if the text is not a time with a zone."""
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return int(time.timestamp()) if time.tzinfo else None


def format_timestamp(seconds: int) -> str:
    """Return the text, as in `2026-11-26T07:00:00Z`."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"

"""Instants as the Kubernetes API writes them (RFC 3339, UTC) and as whole seconds of the Unix epoch."""

from datetime import UTC, datetime


def parse_instant(text: str | None) -> int | None:
    """Seconds, or None for what is no instant."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return int(moment.timestamp()) if moment.tzinfo else None


def format_instant(seconds: int) -> str:
    """As in `2026-11-26T07:00:00Z`."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"

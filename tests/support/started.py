"""Informers that have read their first list."""

from __future__ import annotations

from collections.abc import Iterable

from csi_driver.kube.informer import Informer


async def start_all(informers: Iterable[Informer]) -> None:
    """Start several, and wait until each has read its first list."""
    started = list(informers)
    for informer in started:
        informer.start()
    for informer in started:
        await informer.wait_synced()

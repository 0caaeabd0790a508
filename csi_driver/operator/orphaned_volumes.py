"""Volumes that no PersistentVolume names: reported, never deleted by themselves.

They are left where an answer was lost and a volume was made once more elsewhere, where a PersistentVolume was removed by
hand, and on a node that was forgotten and is back. An hour is longer than any volume takes to get its PersistentVolume.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping

import structlog

from csi_driver.domain.ids import name_hash, parse
from csi_driver.kube.client import Object
from csi_driver.kube.events import Events
from csi_driver.kube.informer import Informer
from csi_driver.service.agents import VolumeLister

GRACE_SECONDS = 3600.0
EVERY_SECONDS = 300.0

log = structlog.get_logger()


def unreferenced_since(
    before: Mapping[str, float], there: Mapping[str, Collection[str]], handles: Collection[str], now: float
) -> dict[str, float]:
    """Since when each volume is known to be named by no handle. Of an owner that did not answer, all stays as it was."""
    since = {}
    for volume_id, first in before.items():
        parsed = parse(volume_id)
        if parsed is not None and parsed.owner not in there and volume_id not in handles:
            since[volume_id] = first
    for ids in there.values():
        since.update({one: before.get(one, now) for one in ids if one not in handles})
    return since


def older_than_grace(since: Mapping[str, float], now: float) -> list[str]:
    """Those for which that has lasted an hour."""
    return sorted(volume_id for volume_id, first in since.items() if now - first >= GRACE_SECONDS)


def same_name_pvs(volume_ids: Iterable[str], volumes: Iterable[Object]) -> dict[str, Object]:
    """For each id the PersistentVolume of the same name, which has another handle."""
    by_hash = {name_hash("volume", volume["metadata"]["name"]): volume for volume in volumes}
    hashes = {volume_id: parse(volume_id) for volume_id in volume_ids}
    return {one: by_hash[parsed.hash] for one, parsed in hashes.items() if parsed and parsed.hash in by_hash}


class Orphans:
    """Looks every five minutes. `volumes` mirrors PersistentVolumes as keep_volume makes them; `tell` gets the count.

    How long a volume is nobody's is counted from when this controller first saw it, so another leader begins anew.
    """

    def __init__(
        self,
        agents: VolumeLister,
        volumes: Informer,
        driver: str,
        events: Events,
        tell: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agents = agents
        self._volumes = volumes
        self._driver = driver
        self._events = events
        self._tell = tell
        self._clock = clock
        self._since: dict[str, float] = {}
        self._told: set[str] = set()

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        await self._volumes.wait_synced()
        while True:
            await self.look()
            await asyncio.sleep(EVERY_SECONDS)

    async def look(self) -> list[str]:
        """Look once, and tell of those that are new. Returns all orphans."""
        there = await self._agents.list_volumes()
        ours = [volume for volume in self._volumes.all() if volume["driver"] == self._driver]
        now = self._clock()
        self._since = unreferenced_since(self._since, there, {volume["handle"] for volume in ours}, now)
        found = older_than_grace(self._since, now)
        self._tell(len(found))
        twins = same_name_pvs(found, ours)
        for volume_id in found:
            if volume_id not in self._told:
                await self._report(volume_id, twins.get(volume_id))
        self._told = set(found)
        return found

    async def _report(self, volume_id: str, twin: Object | None) -> None:
        log.warning("orphan volume", id=volume_id, namesake=twin["handle"] if twin else None)
        parsed = parse(volume_id)
        if twin is not None:
            message = f"volume {volume_id} has this name too, and is used by nobody: this one is {twin['handle']}"
            about = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": twin["metadata"]}
        elif parsed is not None:
            message = f"volume {volume_id} belongs to no PersistentVolume for an hour"
            # By its name alone, as the kubelet tells of its node.
            about = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": parsed.owner, "uid": parsed.owner}}
        else:
            return
        advice = "; nothing deletes it by itself: `tidemark volume list --orphans` shows it"
        await self._events.emit(about, "Warning", "OrphanVolume", message + advice)

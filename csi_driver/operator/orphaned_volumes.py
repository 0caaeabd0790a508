"""Reports volumes without a PersistentVolume. It never deletes them.

Volumes are orphaned if an answer was lost and the volume was made again on another node, if a PersistentVolume was deleted
by hand, and on a decommissioned node that has come back. The grace period is longer than any volume takes to get its
PersistentVolume.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping

import structlog

from csi_driver.domain.ids import name_hash, parse
from csi_driver.kube.client import Object
from csi_driver.kube.events import Events
from csi_driver.kube.informer import Informer
from csi_driver.kube.workqueue import Result, WorkQueue
from csi_driver.service.agents import VolumeLister

GRACE_SECONDS = 3600.0
PERIOD_SECONDS = 300.0
"""Between two checks: only the agents know which volumes there are, and no watch shows that."""

MIN_INTERVAL_SECONDS = 5.0
"""Between two checks, however many PersistentVolumes change: each one asks all agents."""

FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 5.0, 60.0
"""After a check that failed; doubled with each failure in a row."""

KEY = "volumes"
"""The only key: one check lists the volumes of all agents."""

log = structlog.get_logger()


def unreferenced_since(
    before: Mapping[str, float], volumes: Mapping[str, Collection[str]], handles: Collection[str], now: float
) -> dict[str, float]:
    """Return since when each volume has no handle that names it.

    `volumes` has the ids of each owner that answered. For an owner that did not, `before` still holds.
    """
    since = {}
    for volume_id, first in before.items():
        parsed = parse(volume_id)
        if parsed is not None and parsed.owner not in volumes and volume_id not in handles:
            since[volume_id] = first
    for ids in volumes.values():
        since.update({volume_id: before.get(volume_id, now) for volume_id in ids if volume_id not in handles})
    return since


def older_than_grace(since: Mapping[str, float], now: float) -> list[str]:
    """Return the volumes that have been unreferenced for the grace period."""
    return sorted(volume_id for volume_id, first in since.items() if now - first >= GRACE_SECONDS)


def same_name_pvs(volume_ids: Iterable[str], pvs: Iterable[Object]) -> dict[str, Object]:
    """Return for each id the PersistentVolume of the same name, which has another handle."""
    by_hash = {name_hash("volume", pv["metadata"]["name"]): pv for pv in pvs}
    parsed_ids = {volume_id: parse(volume_id) for volume_id in volume_ids}
    return {
        volume_id: by_hash[parsed.hash] for volume_id, parsed in parsed_ids.items() if parsed and parsed.hash in by_hash
    }


class OrphanedVolumes:
    """Checks every five minutes, and when a PersistentVolume of a volume without one appears.

    `pvs` caches trimmed PersistentVolumes; `set_count` receives the number of orphans. The grace period begins when this
    controller first sees a volume without a handle; a new leader starts again.
    """

    def __init__(
        self,
        agents: VolumeLister,
        pvs: Informer,
        driver: str,
        events: Events,
        set_count: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agents = agents
        self._pvs = pvs
        self._driver = driver
        self._events = events
        self._set_count = set_count
        self._clock = clock
        self._since: dict[str, float] = {}
        self._reported: set[str] = set()
        self._queue: WorkQueue[str] = WorkQueue(
            "orphaned volumes", 1, FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS, MIN_INTERVAL_SECONDS, clock
        )

    async def run(self) -> None:
        """Check until cancelled."""
        await self._pvs.wait_synced()
        self._queue.add(KEY)
        unsubscribe = self._pvs.subscribe(self._on_pv)
        try:
            await self._queue.run(self)
        finally:
            unsubscribe()  # the informer outlives this leader

    async def reconcile(self, _: str) -> Result:
        """Check once."""
        await self.check()
        return Result(PERIOD_SECONDS)

    async def check(self) -> list[str]:
        """Report new orphans. Returns all orphans."""
        volumes = await self._agents.list_volumes()
        pvs = [pv for pv in self._pvs.all() if pv["driver"] == self._driver]
        now = self._clock()
        self._since = unreferenced_since(self._since, volumes, {pv["handle"] for pv in pvs}, now)
        orphans = older_than_grace(self._since, now)
        self._set_count(len(orphans))
        same_name = same_name_pvs(orphans, pvs)
        for volume_id in orphans:
            if volume_id not in self._reported:
                await self._report(volume_id, same_name.get(volume_id))
        self._reported = set(orphans)
        return orphans

    def _on_pv(self, _: Object | None, new: Object | None) -> None:
        # A deleted PersistentVolume can wait for the next check: its volume has the grace period before it.
        if new is not None and new["handle"] in self._since:
            self._queue.add(KEY)

    async def _report(self, volume_id: str, pv: Object | None) -> None:
        log.warning("volume is orphaned", id=volume_id, same_name_as=pv["handle"] if pv else None)
        parsed = parse(volume_id)
        if pv is not None:
            message = f"orphaned volume {volume_id} has the name of this PersistentVolume, which uses {pv['handle']}"
            about = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": pv["metadata"]}
        elif parsed is not None:
            message = f"volume {volume_id} has had no PersistentVolume for an hour"
            # Nodes are referenced by name, as in the kubelet's own events.
            about = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": parsed.owner, "uid": parsed.owner}}
        else:
            return
        advice = "; it is not deleted automatically: `tidemark volume list --orphans` lists it"
        await self._events.emit(about, "Warning", "OrphanVolume", message + advice)

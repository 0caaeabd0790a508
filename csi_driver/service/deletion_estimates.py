"""What deleting several objects together would free. Nothing here changes anything."""

from collections.abc import Sequence

from csi_driver.domain.errors import DriverError, InvalidRequest, NotFound
from csi_driver.domain.model import Snapshot, Volume
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.pools import Pool


class DeletionEstimates:
    """Serves EstimateFreed."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._pools = context.pools

    async def freed_together(self, ids: Sequence[str]) -> int:
        """Return the bytes that nothing but these volumes, snapshots and groups of one pool refers to, counted now.

        Raises NotFound, InvalidRequest, Unavailable.
        """
        if not ids:
            raise InvalidRequest("no id is given: name the objects that would be deleted")
        await self._pools.refresh()
        pool, chosen = self._find(ids)
        try:
            return await pool.backend.freed_together(list(chosen.values()))
        except DriverError:
            self._find(ids)  # NotFound if one of them was deleted meanwhile
            raise

    def _find(self, ids: Sequence[str]) -> tuple[Pool, dict[str, Volume | Snapshot]]:
        chosen: dict[str, Volume | Snapshot] = {}
        pools: dict[str, Pool] = {}
        for text in ids:
            place = self._pools.locate(text)
            items = _items(*place) if place else []
            if place is None or not items:
                raise NotFound(f"{text!r} does not exist: `tidemark tree` shows what does")
            pools[place[0].name] = place[0]
            chosen |= {item.id.hash: item for item in items}
        if len(pools) > 1:
            raise InvalidRequest(f"the objects are in pools {', '.join(pools)}, which share nothing: ask for each pool")
        return next(iter(pools.values())), chosen


def _items(pool: Pool, digest: str) -> list[Volume | Snapshot]:
    found = pool.volumes.get(digest) or pool.snapshots.get(digest)
    group = pool.groups.get(digest)
    return [found] if found else list(group.members) if group else []

"""Lineage: volumes, their snapshots, and what was made from them."""

from dataclasses import dataclass, field, replace

from csi_driver.domain.capacity import CapacityReport
from csi_driver.domain.errors import Busy, DriverError, NotFound
from csi_driver.domain.model import GroupSnapshot, Snapshot, Usage, Volume, VolumeUsage
from csi_driver.service.conditions import describe_condition
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.pools import Pool


@dataclass(frozen=True, slots=True)
class LineageNode:
    """One object of the tree. `parent` is the id of what it was made from; `usage` is None unless it was asked for.

    `condition`: what is, or was, wrong with its file system, in words, as of the last check.
    """

    pool: Pool
    item: Volume | Snapshot | GroupSnapshot
    parent: str = ""
    parent_uid: str = ""
    use: VolumeUsage = field(default_factory=VolumeUsage)
    usage: Usage | None = None
    condition: str = ""


class Lineage:
    """Views for people and for the controller: nothing here changes anything."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context
        self._pools = context.pools

    async def tree(self, pool_name: str = "", volume_id: str = "", with_usage: bool = False) -> list[LineageNode]:
        """Return all objects, or those of one pool, or one volume with its snapshots, their groups and what was made from it.

        Parents come before their children. Raises NotFound, Unavailable.
        """
        await self._pools.refresh()
        if pool_name and self._pools.known(pool_name) is None:
            raise NotFound(f"pool {pool_name!r} does not exist here: `tidemark pool list` shows those that do")
        pools = [self._pools.named(pool_name)] if pool_name else self._pools.all_serving()
        selected: set[str] | None = None
        if volume_id:
            pool, volume = self._pools.volume(volume_id)
            pools, selected = [pool], _descendants(pool, volume)
        nodes: list[LineageNode] = []
        for pool in pools:
            items: list[Volume | Snapshot | GroupSnapshot] = [
                *pool.volumes.values(),
                *pool.snapshots.values(),
                *pool.groups.values(),
            ]
            for item in sorted(items, key=lambda i: (i.created, str(i.id))):
                if selected is not None and str(item.id) not in selected:
                    continue
                try:
                    nodes.append(await self._node(pool, item, with_usage))
                except DriverError:
                    if _is_there(pool, item):
                        raise
                    # Deleted while the others were read: it is not in the tree.
        return _parents_first([_refreshed(node) for node in nodes])

    async def describe(self, volume_id: str) -> tuple[LineageNode, list[Snapshot]]:
        """Return one volume and its own snapshots, all as of one moment. No other volume is looked at.

        Raises NotFound, Unavailable, and Busy if the volume was deleted and made again meanwhile.
        """
        await self._pools.refresh()
        pool, volume = self._pools.volume(volume_id)
        try:
            node = await self._node(pool, volume, with_usage=False)
        except DriverError:
            self._pools.volume(volume_id)  # NotFound if the volume was deleted meanwhile
            raise
        pool, current = self._pools.volume(volume_id)
        if current.uid != volume.uid:
            raise Busy(f"{volume_id} was deleted and made again during this call: try again")
        return replace(node, item=current), pool.snapshots_of(current.uid)

    async def pools(self) -> list[tuple[Pool, CapacityReport]]:
        """Return every pool with its capacity."""
        await self._pools.refresh()
        return [(pool, await pool.account()) for pool in self._pools.all_serving()]

    def holder(self, volume: Volume) -> str:
        """Who holds the volume now; empty where nobody does."""
        return self._context.holds.current_holder(volume)

    async def _node(self, pool: Pool, item: Volume | Snapshot | GroupSnapshot, with_usage: bool) -> LineageNode:
        if isinstance(item, GroupSnapshot):
            return LineageNode(pool, item)
        usage = await pool.backend.usage(item) if with_usage else None
        if isinstance(item, Snapshot):
            return LineageNode(pool, item, item.source_id, item.source_uid, usage=usage, condition=item.condition)
        try:
            use = await pool.backend.access.use(item)
        except Busy:  # a helper for this volume hangs in the kernel: the others do not wait for it
            use = VolumeUsage(device="unknown, look at the node's kernel log")
        parent = item.request.source.id if item.request.source else ""
        words = describe_condition(item, self._context.conditions.get(item), pool.backend.identity.path)
        return LineageNode(pool, item, parent, _parent_uid(pool, item), use, usage, words)


def _refreshed(node: LineageNode) -> LineageNode:
    """Return a node with the volume's record as it is now: holds and rollbacks are then as of one moment."""
    now = node.pool.volumes.get(node.item.id.hash) if isinstance(node.item, Volume) else None
    return replace(node, item=now) if now is not None and now.uid == node.item.uid else node


def _is_there(pool: Pool, item: Volume | Snapshot | GroupSnapshot) -> bool:
    return any(item.id.hash in kind for kind in (pool.volumes, pool.snapshots, pool.groups))


def _descendants(pool: Pool, volume: Volume) -> set[str]:
    """Return the ids of a volume, its snapshots and their groups, and in turn of the volumes made from any of these."""
    ids: set[str] = set()
    pending = [volume]
    while pending:
        member = pending.pop()
        if str(member.id) in ids:
            continue
        ids.add(str(member.id))
        for snapshot in pool.snapshots_of(member.uid):
            ids.add(str(snapshot.id))
            if snapshot.group:
                ids.add(str(snapshot.id.pool_ref.object_id(snapshot.group)))
        pending.extend(v for v in pool.volumes.values() if v.source_uid == member.uid)
    return ids


def _parent_uid(pool: Pool, volume: Volume) -> str:
    """Return the uid of what a volume was made from; empty if that is gone, also if its name was used again since."""
    source = volume.request.source
    if source is None or source.kind == "volume":
        return volume.source_uid
    for snapshot in pool.snapshots_of(volume.source_uid):
        # A record keeps the uid of the volume whose blocks it shares, so the age tells another one of the same name that was made later.
        if str(snapshot.id) == source.id and snapshot.created <= volume.created:
            return snapshot.uid
    return ""


def _parents_first(nodes: list[LineageNode]) -> list[LineageNode]:
    """Return the nodes in their order, but parents first: after a clock was set back, a child may seem older."""
    by_id = {str(node.item.id): node for node in nodes}
    placed: dict[str, LineageNode] = {}
    for node in nodes:
        line = []
        key = str(node.item.id)
        while key in by_id and key not in placed and key not in line:
            line.append(key)
            key = by_id[key].parent
        for name in reversed(line):
            placed[name] = by_id[name]
    return list(placed.values())

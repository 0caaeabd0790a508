"""Who comes from whom: disks, their snapshots, and what was made from them."""

from dataclasses import dataclass, field, replace

from csi_driver.domain.capacity import CapacityReport
from csi_driver.domain.errors import Busy, DriverError, NotFound
from csi_driver.domain.ids import ObjectId
from csi_driver.domain.model import GroupSnapshot, Snapshot, Usage, Volume, VolumeUsage
from csi_driver.service.conditions import in_words
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.pools import Pool


@dataclass(frozen=True, slots=True)
class Node:
    """One object of the tree. `parent` is the id of what it was made from; `usage` only where it was asked for.

    `condition`: what is, or was, wrong with its file system, in words, as of the last look at it.
    """

    pool: Pool
    item: Volume | Snapshot | GroupSnapshot
    parent: str = ""
    parent_uid: str = ""
    use: VolumeUsage = field(default_factory=VolumeUsage)
    usage: Usage | None = None
    condition: str = ""


class Lineage:
    """Looking, for people: nothing here changes anything."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context
        self._pools = context.pools

    async def tree(self, pool_name: str = "", volume_id: str = "", with_usage: bool = False) -> list[Node]:
        """All objects, or those of one pool, or one volume with its snapshots, their groups and what was made from it.

        Parents come before their children. Raises NotFound, Unavailable.
        """
        if pool_name and self._pools.known(pool_name) is None:
            raise NotFound(f"pool {pool_name!r} does not exist here: `tidemark pool list` shows those that do")
        pools = [self._pools.named(pool_name)] if pool_name else self._pools.all_serving()
        wanted: set[str] | None = None
        if volume_id:
            pool, volume = self._pools.volume(volume_id)
            pools, wanted = [pool], _descendants(pool, volume)
        nodes: list[Node] = []
        for pool in pools:
            items: list[Volume | Snapshot | GroupSnapshot] = [
                *pool.volumes.values(),
                *pool.snapshots.values(),
                *pool.groups.values(),
            ]
            for item in sorted(items, key=lambda i: (i.created, str(i.id))):
                if wanted is not None and str(item.id) not in wanted:
                    continue
                try:
                    nodes.append(await self._node(pool, item, with_usage))
                except DriverError:
                    if _is_there(pool, item):
                        raise
                    # Deleted while the others were looked at: it is no part of the tree any more.
        return _parents_first([_refreshed(node) for node in nodes])

    async def pools(self) -> list[tuple[Pool, CapacityReport]]:
        """Every pool with its sums."""
        return [(pool, await pool.account()) for pool in self._pools.all_serving()]

    def holder(self, volume: Volume) -> str:
        """Who holds the volume now; empty where nobody does."""
        return self._context.current_holder(volume)

    async def _node(self, pool: Pool, item: Volume | Snapshot | GroupSnapshot, with_usage: bool) -> Node:
        if isinstance(item, GroupSnapshot):
            return Node(pool, item)
        usage = await pool.backend.usage(item) if with_usage else None
        if isinstance(item, Snapshot):
            return Node(pool, item, item.source_id, item.source_uid, usage=usage, condition=item.condition)
        try:
            use = await pool.backend.access.use(item)
        except Busy:  # a child of this volume hangs in the kernel: looking at the others does not wait for it
            use = VolumeUsage(device="unknown, look at the node's kernel log")
        parent = item.request.source.id if item.request.source else ""
        words = in_words(item, self._context.conditions.of(item), pool.backend.identity.path)
        return Node(pool, item, parent, _parent_uid(pool, item), use, usage, words)


def _refreshed(node: Node) -> Node:
    """A volume as its record is when the answer is put together: holds and rollbacks are told as of one moment."""
    now = node.pool.volumes.get(node.item.id.hash) if isinstance(node.item, Volume) else None
    return replace(node, item=now) if now is not None and now.uid == node.item.uid else node


def _is_there(pool: Pool, item: Volume | Snapshot | GroupSnapshot) -> bool:
    return any(item.id.hash in kind for kind in (pool.volumes, pool.snapshots, pool.groups))


def _descendants(pool: Pool, volume: Volume) -> set[str]:
    """The ids of a volume, its snapshots and their groups, and in turn of the volumes made from any of these."""
    found: set[str] = set()
    left = [volume]
    while left:
        member = left.pop()
        if str(member.id) in found:
            continue
        found.add(str(member.id))
        for snapshot in pool.snapshots_of(member.uid):
            found.add(str(snapshot.id))
            if snapshot.group:
                found.add(str(ObjectId(snapshot.id.owner, snapshot.id.pool, snapshot.group)))
        left.extend(v for v in pool.volumes.values() if v.source_uid == member.uid)
    return found


def _parent_uid(pool: Pool, volume: Volume) -> str:
    """The uid of what a volume was made from; empty where that is gone, also if its name was used again since."""
    source = volume.request.source
    if source is None or source.kind == "volume":
        return volume.source_uid
    for snapshot in pool.snapshots_of(volume.source_uid):
        # A record keeps the uid of the volume whose blocks it shares, so the age tells a namesake made later.
        if str(snapshot.id) == source.id and snapshot.created <= volume.created:
            return snapshot.uid
    return ""


def _parents_first(nodes: list[Node]) -> list[Node]:
    """The order of the list, but for children older than their parents: clocks go back at times."""
    by_id = {str(node.item.id): node for node in nodes}
    placed: dict[str, Node] = {}
    for node in nodes:
        line = []
        key = str(node.item.id)
        while key in by_id and key not in placed and key not in line:
            line.append(key)
            key = by_id[key].parent
        for name in reversed(line):
            placed[name] = by_id[name]
    return list(placed.values())

"""What the ids and topologies in a request say about where it belongs. service/agent_routing.py chooses the agent."""

from collections.abc import Iterable, Sequence

from csi_driver.domain.errors import NotFound, Precondition
from csi_driver.domain.ids import PoolRef, parse
from csi_driver.domain.page_tokens import read_token

TOPOLOGY_KEY = "topology.csi.tidemark.dev/node"
"""Topology key of a volume, and the label that a kubelet puts on its node: the value is the owner."""


def owner_of(object_id: str) -> str | None:
    """Return the owner in an id, or None for an id that this driver cannot have given out."""
    pool = pool_of(object_id)
    return pool.owner if pool else None


def pool_of(object_id: str) -> PoolRef | None:
    """Return the pool in an id, or None for an id that this driver cannot have given out."""
    parsed = parse(object_id)
    return parsed.pool_ref if parsed else None


def known_pool(object_id: str, what: str) -> PoolRef:
    """Return the pool in an id. Raises NotFound for an id that this driver cannot have given out."""
    pool = pool_of(object_id)
    if pool is None:
        raise NotFound(f"{what} {object_id!r} does not exist: no driver of this kind gave out such an id")
    return pool


def pool_on_one_node(volume_ids: Sequence[str]) -> PoolRef:
    """Return the pool of a group's first member. Raises NotFound, and Precondition if members are on different nodes."""
    pools = {volume_id: known_pool(volume_id, "volume") for volume_id in volume_ids}
    if len({pool.owner for pool in pools.values()}) > 1:
        named = ", ".join(f"{volume_id} on {pool.owner}" for volume_id, pool in pools.items())
        raise Precondition(
            f"the members are on different nodes ({named}), and only volumes of one node can be frozen at the same time: make "
            "one group snapshot for each node"
        )
    return pools[volume_ids[0]]


def in_page_order(owners: Iterable[str], token: str) -> list[str]:
    """Return the owners in the order of their ids, beginning with the one that a page token names. Raises BadToken."""
    # Ids sort by `owner:`, and a colon comes after digits and dashes: so does this.
    ordered = sorted(owners, key=lambda owner: f"{owner}:")
    if not token:
        return ordered
    last = read_token(token)
    return [owner for owner in ordered if f"{owner}:" >= f"{last.owner}:"]

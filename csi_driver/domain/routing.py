"""Which agent serves a request, from the ids and places in it. Pure: whether that agent answers is found by calling it."""

from collections.abc import Iterable, Sequence

from csi_driver.domain.errors import NotFound, Precondition
from csi_driver.domain.ids import parse
from csi_driver.domain.page_tokens import read_token

TOPOLOGY_KEY = "topology.csi.tidemark.dev/node"
"""Of a volume's place, and the label that a kubelet puts on its node: the value is the owner."""


def owner_of(object_id: str) -> str | None:
    """The owner in an id, or None for what this driver cannot have given out."""
    parsed = parse(object_id)
    return parsed.owner if parsed else None


def known_owner(object_id: str, what: str) -> str:
    """The owner in an id. Raises NotFound for what this driver cannot have given out."""
    owner = owner_of(object_id)
    if owner is None:
        raise NotFound(f"{what} {object_id!r} does not exist: no driver of this kind gave out such an id")
    return owner


def one_owner(volume_ids: Sequence[str]) -> str:
    """The owner that all members of a group share. Raises NotFound, and Precondition that names the nodes."""
    owners = {volume_id: known_owner(volume_id, "volume") for volume_id in volume_ids}
    if len(set(owners.values())) > 1:
        named = ", ".join(f"{volume_id} on {owner}" for volume_id, owner in owners.items())
        raise Precondition(
            f"the members lie on different nodes ({named}): one moment can only be held on one node; make one group "
            "snapshot for each node"
        )
    return next(iter(owners.values()))


def in_page_order(owners: Iterable[str], token: str) -> list[str]:
    """The owners in the order of their ids, from the one on that a page token names. Raises BadToken."""
    # Ids sort by `owner:`, and a colon comes after digits and dashes: so does this.
    ordered = sorted(owners, key=lambda owner: f"{owner}:")
    if not token:
        return ordered
    last = read_token(token)
    return [owner for owner in ordered if f"{owner}:" >= f"{last.owner}:"]

"""Names of the volume and the snapshot that an import makes for itself."""

import hashlib
from typing import TYPE_CHECKING

from csi_driver.domain.ids import MAX_NAME_BYTES, name_hash, parse

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Node

PREFIX = ".tidemark-import."
"""Stored in pools, so it must not change. Users cannot take it: a name that they give begins with a letter or a digit."""


def hidden_name(name: str) -> str:
    """Return the name of the hidden objects of the import that makes volume `name`: the same each time."""
    full = PREFIX + name
    return full if len(full) <= MAX_NAME_BYTES else PREFIX + hashlib.sha256(name.encode()).hexdigest()


def is_imported(node: "Node") -> bool:
    """Return whether a volume was made by an import: from the snapshot that it deleted again."""
    parent = parse(node.parent_id)
    return node.kind == "volume" and parent is not None and parent.hash == name_hash("snapshot", hidden_name(node.name))

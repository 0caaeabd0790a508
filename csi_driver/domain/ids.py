"""Ids: `<owner>:<pool>:<hash>`. Parsing is total; an id that does not parse is unknown, and never becomes a path."""

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["volume", "snapshot", "group"]

ANY_OWNER = "*"
"""Owner of an object in a pool that every node reaches."""

MAX_NAME_BYTES = 128
"""The protocol's limit for any string, in UTF-8 bytes."""

_POOL = re.compile(r"[a-z0-9]([a-z0-9-]{0,29}[a-z0-9])?", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{32}", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class PoolRef:
    """Names a pool among those of all nodes, and makes the ids of what is in it: the same name gives the same id."""

    owner: str
    name: str

    @property
    def shared(self) -> bool:
        """Whether every node reaches the pool."""
        return self.owner == ANY_OWNER

    def object_id(self, digest: str) -> "ObjectId":
        """Return the id that has this hash."""
        return ObjectId(self.owner, self.name, digest)

    def new_volume_id(self, name: str) -> "ObjectId":
        """Return the id of a volume by its CSI name."""
        return self.object_id(name_hash("volume", name))

    def new_snapshot_id(self, name: str) -> "ObjectId":
        """Return the id of a snapshot by its CSI name, or of a group's member by its member_name."""
        return self.object_id(name_hash("snapshot", name))

    def new_group_id(self, name: str) -> "ObjectId":
        """Return the id of a group snapshot by its CSI name."""
        return self.object_id(name_hash("group", name))

    def __str__(self) -> str:
        return f"{self.owner}:{self.name}"


@dataclass(frozen=True, slots=True)
class ObjectId:
    """A parsed id: at most 128 bytes by construction (63 + 1 + 31 + 1 + 32)."""

    owner: str
    pool: str
    hash: str

    @property
    def pool_ref(self) -> PoolRef:
        """The pool that the object is in."""
        return PoolRef(self.owner, self.pool)

    def __str__(self) -> str:
        return f"{self.owner}:{self.pool}:{self.hash}"


def parse(text: str) -> ObjectId | None:
    """Return a parsed id, or None for a text that this driver cannot have given out as an id."""
    parts = text.split(":")
    if len(parts) != 3:
        return None
    owner, pool, digest = parts
    if owner != ANY_OWNER and not is_owner(owner):
        return None
    if not _POOL.fullmatch(pool) or not _HASH.fullmatch(digest):
        return None
    return ObjectId(owner, pool, digest)


def is_owner(text: str) -> bool:
    """Whether a text can be the owner of a pool of one node."""
    return _LABEL.fullmatch(text) is not None


def is_pool_name(text: str) -> bool:
    """Whether a text can be the name of a pool: lower-case letters, digits and inner dashes, at most 31 characters."""
    return _POOL.fullmatch(text) is not None


def name_hash(kind: Kind, name: str) -> str:
    """Return the hash part of the id for a CSI name: the same name gives the same id, so creation needs no journal."""
    return hashlib.sha256(kind.encode() + b"\0" + name.encode()).hexdigest()[:32]


def member_name(group_name: str, source_id: str) -> str:
    """Return the name of a group's member. NUL cannot occur in a caller's name, so no caller can take this one."""
    return f"{group_name}\0{source_id}"


def owner_of_node(node_name: str) -> str:
    """Return the topology value of a node: its name, or a hash of a name that is not valid as a label value."""
    if _LABEL.fullmatch(node_name):
        return node_name
    return hashlib.sha256(node_name.encode()).hexdigest()[:32]

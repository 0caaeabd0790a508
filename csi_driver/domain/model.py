"""The nouns: volume, snapshot, group snapshot. Frozen; a change is a new object.

`unknown` in each: what another version noted in that part of the record, kept by every change and never compared.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from csi_driver.domain.ids import ObjectId


class AccessMode(StrEnum):
    """Access modes of one node; the protocol's others are refused, since a pool belongs to one node."""

    WRITER = "SINGLE_NODE_WRITER"
    READER = "SINGLE_NODE_READER_ONLY"
    SINGLE_WRITER = "SINGLE_NODE_SINGLE_WRITER"
    MULTI_WRITER = "SINGLE_NODE_MULTI_WRITER"


@dataclass(frozen=True, slots=True)
class Capability:
    """One way in which a volume is to be used."""

    access: Literal["mount", "block"]
    mode: AccessMode
    fs_type: str = ""
    mount_flags: tuple[str, ...] = ()
    unknown: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SizeRange:
    """Bytes asked for; 0 means not said."""

    required: int = 0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """What a new volume starts from, as the caller said it."""

    kind: Literal["snapshot", "volume"]
    id: str
    unknown: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class VolumeRequest:
    """A CreateVolume as made. `parameters` without the `csi.storage.k8s.io/` keys: those are `labels`."""

    name: str
    range: SizeRange = SizeRange()
    capabilities: tuple[Capability, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    source: Source | None = None
    unknown: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


BLANK = "blank"
RAW = "raw"


def formatting(fs_type: str) -> str:
    """The format state between the first byte of mkfs and its success: never mounted, so it may be emptied."""
    return f"formatting({fs_type})"


def is_formatting(state: str) -> bool:
    """Whether a format state is one of those."""
    return state.startswith("formatting(") and state.endswith(")")


@dataclass(frozen=True, slots=True)
class Hold:
    """Somebody keeps the volume out of use until `expires`, unbroken since `since` (Unix nanoseconds)."""

    holder: str
    expires: int
    since: int
    unknown: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class CompletedRollback:
    """One rollback that happened; kept so that a retry of the same name changes nothing."""

    name: str
    snapshot: str
    at: int
    safety: str = ""
    unknown: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class VolumeCondition:
    """What is wrong with a file system: `kind` for programs, `text` for people, as the rest of "since ...".

    `stopped`: nothing can be written to it any more.
    """

    kind: Literal["ReadOnlyAfterError", "ShutDown", "HasErrors", "Damaged"]
    text: str
    stopped: bool


@dataclass(frozen=True, slots=True)
class Condition:
    """What the last check of a volume's file system came to, at `at` (Unix nanoseconds); `said`: by the program's own words.

    mended: `kept` is where in the pool lies what the volume held before. damaged: the check could not mend it; that is true
    of the image with this `stamp` (see Backend.change_token), and of no other.
    """

    state: Literal["mended", "damaged"]
    at: int
    said: str = ""
    kept: str = ""
    stamp: str = ""
    unknown: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Volume:
    """A disk. `size` in bytes is the image's; `created` in Unix nanoseconds; `format` is what it was last given:
    blank, formatting(fs), a file system's name, or raw: since a stage as a block device, what its user made of it.
    `made_from` is the uid of the snapshot or volume that it was copied from, `source_uid` that of the volume whose blocks
    it then shared. `requested`: the bytes asked for where the size is larger; 0: the size. See sizes.least_request.
    `label`: the name that people gave it since; empty: they know it by `name`, by which a repeated CreateVolume always finds it.
    """

    id: ObjectId
    name: str
    uid: str
    created: int
    size: int
    request: VolumeRequest
    format: str = BLANK
    thick: bool = False
    source_uid: str = ""
    made_from: str = ""
    rollbacks: tuple[CompletedRollback, ...] = ()
    hold: Hold | None = None
    requested: int = 0
    condition: Condition | None = None
    label: str = ""
    unknown: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A read-only image of one volume at one moment. `group` is the hash of its group, or empty; `requested` as of a volume.

    `condition`: what was wrong with the volume's file system at that moment, in words; empty: nothing.
    """

    id: ObjectId
    name: str
    uid: str
    created: int
    size: int
    source_id: str
    source_uid: str
    format: str
    thick: bool = False
    parameters: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    group: str = ""
    requested: int = 0
    condition: str = ""
    unknown: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """Snapshots of several volumes at one moment, made and deleted together."""

    id: ObjectId
    name: str
    uid: str
    created: int
    source_ids: tuple[str, ...]
    members: tuple[Snapshot, ...]
    parameters: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes that deleting this object alone would free, the rest of its allocation, and its extents; None: not counted."""

    exclusive: int
    shared: int
    extents: int | None = None


@dataclass(frozen=True, slots=True)
class VolumeUsage:
    """Who uses a volume, as the kernel says it now: its block device, and every place where it is shown on this node.

    `nodes`: other nodes that have attached it, where those are asked for.

    A place is one mount with all the paths by which it is seen: several, where a directory above it is bind-mounted within
    one peer group. To take it away at one of its paths takes it away at all.
    """

    device: str = ""
    places: tuple[tuple[str, ...], ...] = ()
    nodes: tuple[str, ...] = ()

    @property
    def is_used(self) -> bool:
        """Whether it is shown here, or attached elsewhere."""
        return bool(self.places or self.nodes)

    @property
    def where(self) -> str:
        """Where it is used, for a refusal."""
        return ", ".join((*self.paths, *(f"node {node}" for node in self.nodes)))

    @property
    def paths(self) -> tuple[str, ...]:
        """One path of each place."""
        return tuple(place[0] for place in self.places)

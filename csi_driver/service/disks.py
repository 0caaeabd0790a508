"""The disks of a cluster as the operator sees them. A port: in a cluster it is served over the agents."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Held:
    """A hold that stands: by whom, and since when it is unbroken (Unix nanoseconds, by the clock of the disk's node)."""

    holder: str
    since: int


@dataclass(frozen=True, slots=True)
class Back:
    """A rollback that was made. `safety` is the id of what holds the content from before; empty: declined."""

    name: str
    snapshot: str
    at: int
    safety: str = ""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk as its agent records it.

    `snapshots` are the disk's own, by id, with the moment of their cut (Unix nanoseconds by the node's clock): told by
    the records' uids, so that another disk's are never among them, whatever they are called. `used_by` are the paths
    where it is staged or published. `rollbacks` are the last that were made, oldest first.
    """

    id: str
    uid: str
    snapshots: Mapping[str, int] = field(default_factory=dict)
    used_by: tuple[str, ...] = ()
    held: Held | None = None
    rollbacks: tuple[Back, ...] = ()

    def back(self, name: str) -> Back | None:
        """The rollback of that name, if it was made."""
        return next((back for back in self.rollbacks if back.name == name), None)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A rollback to be made, under the unbroken hold of `holder`; `name` makes it safe to repeat.

    `safety`: the id of the safety snapshot that was made under that hold; empty: none is wanted.
    """

    volume_id: str
    snapshot_id: str
    name: str
    holder: str
    safety: str = ""


class Disks(Protocol):
    """Every call raises the refusals of domain.errors: Unavailable where nobody may say, Busy where the same call may
    succeed later, NotFound for an id that its agent does not know. All of them may be repeated.
    """

    async def look(self, volume_id: str) -> Disk:
        """What the agent records of a disk. Raises NotFound, Unavailable."""
        ...

    async def hold(self, volume_id: str, holder: str) -> None:
        """Keep a disk out of use for five minutes, or for five more. Raises Precondition while it is used or held."""
        ...

    async def release(self, volume_id: str, holder: str) -> None:
        """Give a hold back; fine where there is none, or where the disk is gone. Raises Precondition: another's."""
        ...

    async def roll_back(self, wanted: Wanted) -> None:
        """Take a disk back to one of its own snapshots, or find that this was done under that name.

        Raises Precondition where the hold has lapsed or the safety snapshot is older than it, InvalidRequest for
        another disk's snapshot. After Busy, Unavailable and Damaged it may have been done all the same: look.
        """
        ...

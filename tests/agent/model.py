"""A plain model of disks and snapshots as bytes: the objects, and what a call does to them.

It shares no code with the product but the client and the form of ids.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from csi_driver.domain.ids import Kind, name_hash
from csi_driver.domain.model import AccessMode, Capability
from csi_driver.rpc.clients.cli_client import Client, Node

UNIT = 64 << 10
"""The step in which raw disks are sized here."""

Content = bytes | dict[str, bytes]
"""What a disk holds: all its bytes, or the files of its file system."""
Life = tuple[str, int]
"""An id and which of the objects that had it: the same name made again is another one."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A volume. `fs` is empty for a raw one; `parent` is what it was made from, a disk if `is_clone`.

    `rollbacks`: name, snapshot, safety snapshot. `odd`: bytes by which its size was rounded up.
    """

    id: str
    name: str
    life: int
    fs: str
    size: int
    content: Content
    format: str = "blank"
    shown: bool = False
    parent: Life = ("", 0)
    is_clone: bool = False
    rollbacks: tuple[tuple[str, str, str], ...] = ()
    holder: str = ""
    odd: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """A snapshot, of `source`; `group` is its group's id. `asked`: what its disk was asked for, the smallest that may restore it."""

    id: str
    name: str
    life: int
    source: Life
    fs: str
    size: int
    content: Content
    format: str
    asked: int
    group: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """A group snapshot; its members are cuts that name it."""

    id: str
    name: str
    life: int
    size: int


Item = Disk | Cut | Group
World = dict[str, Item]
"""All objects by id. Never changed in place."""
Nodes = dict[str, Node]
"""What the agent says that there is, by id."""


@dataclass(frozen=True, slots=True)
class Op:
    """One call (or stage with publish) on the object `on`, and what it does to the world.

    `done` tells from the agent's tree whether it has happened; `answer` checks what was answered. Until a call that was
    cut off is repeated, the disk `loose` may be half shown or hidden, formatted or not, and have a safety snapshot more.
    `then` runs between an interrupted call and its repetition, told whether it has happened. `span` stretches the delay before
    the kill.
    """

    what: str
    on: Item
    call: Callable[[Client], Any]
    done: Callable[[Nodes], bool]
    after: Callable[[World, Nodes], World]
    answer: Callable[[Any, Nodes], object] = lambda _answer, _nodes: None
    loose: str = ""
    then: Callable[[bool], None] = lambda _done: None
    span: float = 1.0


Kill = float | str | None
"""When the agent is killed: so many milliseconds after the call; "seen": as soon as the call's effect can be seen;
"early": at the first thing that can be seen, a freeze that is announced or a safety snapshot; or not at all."""


def id_of(kind: Kind, name: str) -> str:
    """The id that a name gets; of a rig's agent."""
    return f"node1:default:{name_hash(kind, name)}"


def member_id(group: str, source_id: str) -> str:
    """The id of a group's member."""
    return id_of("snapshot", f"{group}\0{source_id}")


def put(world: World, *items: Item) -> World:
    """The world with these objects new or changed."""
    return world | {item.id: item for item in items}


def drop(world: World, *ids: str) -> World:
    """The world without these objects."""
    return {key: item for key, item in world.items() if key not in ids}


def capability(fs: str) -> Capability:
    """How a disk is used."""
    return Capability("mount", AccessMode.MULTI_WRITER, fs) if fs else Capability("block", AccessMode.MULTI_WRITER)


def cut_of(disk: Disk, cut_id: str, name: str, life: int, group: str = "") -> Cut:
    """A snapshot of a disk as it is now."""
    source = (disk.id, disk.life)
    asked = disk.size - disk.odd
    return Cut(cut_id, name, life, source, disk.fs, disk.size, disk.content, disk.format, asked, group)


def grown(content: Content, size: int) -> Content:
    """Bytes with a tail of zeroes up to a size; files stay as they are."""
    return content.ljust(size, b"\0") if isinstance(content, bytes) else content


def same(found: Content, wanted: Content, who: str) -> None:
    """Fail where two contents differ, saying where rather than showing megabytes."""
    if found == wanted:
        return
    if isinstance(found, bytes) and isinstance(wanted, bytes):
        if len(found) != len(wanted):
            raise AssertionError(f"{who}: {len(found)} bytes, {len(wanted)} expected")
        blocks = [at for at in range(0, len(wanted), 512) if found[at : at + 512] != wanted[at : at + 512]]
        raise AssertionError(f"{who}: {len(blocks)} sectors differ, the first at {blocks[0]}, the last at {blocks[-1]}")
    assert isinstance(found, dict)
    assert isinstance(wanted, dict)
    raise AssertionError(
        f"{who}: files { {n: len(d) for n, d in found.items()} }, expected { {n: len(d) for n, d in wanted.items()} }, "
        f"other bytes in {[n for n in found if n in wanted and found[n] != wanted[n]]}"
    )


KINDS: dict[type[Item], str] = {Disk: "volume", Cut: "snapshot", Group: "group"}

"""What `tidemark volume` prints of a volume: columns of the list, lines of one volume."""

from typing import TYPE_CHECKING

from csi_driver.cli.failure import Failure
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.output.printing import Column
from csi_driver.cli.output.times import minute, second
from csi_driver.cli.sizes import show

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Client, Node


def reread(client: "Client", objects: AgentObjects, volume_id: str, with_usage: bool = False) -> "Node":
    """Return a volume as it is now. Raises Failure if it was deleted meanwhile."""
    for node in client.tree(volume_id=volume_id, with_usage=with_usage):
        if node.id == volume_id:
            return node
    raise Failure(f"volume {objects.name_of(volume_id)} no longer exists: `tidemark volume list` lists those that do")


def mount_hint(objects: AgentObjects, volume: "Node", raw: bool) -> str:
    """Return which command mounts a volume that is new; `raw`: as a block device, which is recorded at the first mount."""
    option = " --block" if raw else ""
    return f"`tidemark mount {objects.argument(volume)} DIR{option}` mounts it"


def columns(objects: AgentObjects) -> "list[Column[Node]]":
    """Return the columns of the list."""
    return [
        Column("NAME", objects.name),
        Column("SIZE", lambda v: show(v.size), key=lambda v: v.size, right=True),
        Column("FORMAT", lambda v: v.format, rank=4),
        Column("POOL", lambda v: v.pool, rank=5),
        Column("IN USE", objects.users, rank=1),
        Column("SOURCE", objects.source, rank=2),
        Column("CREATED", lambda v: minute(v.created), key=lambda v: v.created, rank=3),
        Column("DEVICE", lambda v: v.device, wide=True),
        Column("CONDITION", lambda v: v.condition, wide=True),
        Column("ID", lambda v: v.id, wide=True),
    ]


def lines(volume: "Node", objects: AgentObjects, wide: bool) -> list[tuple[str, str]]:
    """Return the lines that describe one volume; `wide`: with mount points and ids."""
    snapshots = objects.snapshots_of(volume)
    clones = objects.clones_of(volume)
    size = f"{show(volume.size)}{', thick' if volume.thick else ''}"
    text = [
        ("name", objects.name(volume)),
        ("size", size),
        ("format", volume.format),
        ("pool", volume.pool),
        ("created", second(volume.created)),
        ("in use", objects.users(volume) or "no"),
        ("device", volume.device or "none"),
        ("source", objects.source(volume) or "none: created empty"),
        ("snapshots", ", ".join(objects.name(snapshot) for snapshot in snapshots) or "none"),
    ]
    if volume.label:
        text.insert(1, ("created as", volume.name))
    if clones:
        text.append(("clones", ", ".join(objects.name(clone) for clone in clones)))
    if volume.usage:
        text.append(("own space", f"{show(volume.usage.exclusive)}, {show(volume.usage.shared)} shared with others"))
    if volume.condition:
        text.append(("condition", volume.condition))
    if volume.holder:
        text.append(("held by", volume.holder))
    for rollback in volume.rollbacks:
        safety = objects.get(rollback.safety_id)
        kept = f"; the content before: {objects.name(safety)}" if safety else ""
        text.append(
            ("rolled back", f"{second(rollback.at)} to {objects.name_of(rollback.snapshot_id, 'snapshot')}{kept}")
        )
    if wide:
        text += [("mounts", ", ".join(volume.used_by) or "none"), ("id", volume.id), ("uid", volume.uid)]
    return text

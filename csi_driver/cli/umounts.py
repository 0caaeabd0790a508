"""`tidemark umount`: unmount a volume or a snapshot, by its name or by a directory."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver.cli import snapshot_mounts
from csi_driver.cli.common import Endpoint, connect, retry_while_busy
from csi_driver.cli.completion import complete_source
from csi_driver.cli.failure import Failure
from csi_driver.cli.mount_paths import is_stage, mount_paths, staged_here, staging_of, views
from csi_driver.cli.mounts import has_content, plain_path, remove_stage
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.output.printing import say
from csi_driver.cli.refusals import in_our_words
from csi_driver.cli.suggest import suggestion
from csi_driver.host.fs import mount_points
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Client, Node


def umount(
    mounted: Annotated[
        str,
        typer.Argument(
            metavar="VOLUME|SNAPSHOT|DIR",
            help="Name or id of what is mounted, or its mount point, e.g. db or /mnt/db.",
            autocompletion=complete_source,
        ),
    ],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
) -> None:
    """Unmount a volume or a snapshot. All written data is durable afterwards.

    A directory that `tidemark mount` has created is removed; one that existed before stays. The name of a volume also
    unstages one that is not mounted any longer, e.g. after a plain umount.

    $ tidemark umount db
    $ tidemark umount /mnt/db
    """
    with connect(endpoint) as client:
        objects = AgentObjects.read(client)
        volume, target = find_mounted(objects, plain_path(mounted), mounted)
        if target:
            client.unpublish(volume.id, target)
            # Read again: other paths that led to the same mount are gone with it.
            volume = next((node for node in client.tree(volume_id=volume.id) if node.id == volume.id), volume)
        name = _spoken(objects, volume)
        staging = staging_of(volume.id)
        left = [place[0] for place in views(volume) if not is_stage(place, staging)]
        if left and target:
            say(f"{name} is unmounted from {target}; it is still mounted at {', '.join(left)}")
            return
        if left:
            raise Failure(f"{name} is mounted at {', '.join(left)}: name the directory to unmount")
        if volume.used_by:
            _unstage(client, objects, volume, staging, name)
        snapshot_mounts.delete_unused(client, AgentObjects.read(client))
    say(f"{name} is unmounted{f' from {target}' if target else ''}, and no longer in use")


def find_mounted(objects: AgentObjects, target: str, text: str) -> "tuple[Node, str]":
    """Return the volume, and the path to unmount it from; empty if it is only staged. Raises Failure.

    A path comes before a name: `db` in a directory that has a mount point of this name is that mount point.
    """
    volumes = [node for node in objects.all if node.kind == "volume"]
    for volume in volumes:
        if any(target in place for place in views(volume)):
            return volume, target
    # Unmounted by hand: the mount point still has the mark of its volume.
    mark = mount_points.marked(target)
    for volume in volumes:
        if mark == f"{volume.id} {volume.uid}" and staged_here(volume):
            return volume, "" if has_content(target) else target
    return _named(objects, target, text)


def _named(objects: AgentObjects, target: str, text: str) -> "tuple[Node, str]":
    if not any(text in {node.id, node.name, objects.name(node)} for node in objects.volumes + objects.snapshots):
        spoken = [objects.name(node) for node in objects.volumes + objects.snapshots if objects.users(node)]
        raise Failure(
            f"no volume is mounted at {target}, and none is called {text!r}{suggestion(text, spoken)}: "
            "`tidemark volume list` lists mount points"
        )
    node = objects.find(text, "volume", "snapshot")
    if node.kind == "volume" and not node.used_by:
        # A snapshot of the same name may be what is mounted.
        same = [
            item for item in objects.snapshots if text in {item.name, objects.name(item)} and objects.mount_of(item)
        ]
        node = same[0] if len(same) == 1 else node
    volume = (objects.mount_of(node) or node) if node.kind == "snapshot" else node
    if volume.kind == "snapshot" or not (volume.used_by or snapshot_mounts.is_snapshot_mount(volume)):
        raise Failure(f"{objects.name(node)} is not in use: there is nothing to unmount")
    points = mount_paths(volume)
    if len(points) > 1 or (points and not staged_here(volume)):
        raise objects.in_use(volume)
    return volume, points[0] if points else ""


def _unstage(client: "Client", objects: AgentObjects, volume: "Node", staging: Path, name: str) -> None:
    from csi_driver.rpc.clients.cli_client import CallRefused

    try:
        retry_while_busy(lambda: client.unstage(volume.id, str(staging)), 5.0)
    except CallRefused as refused:
        raise Failure(
            f"{name} is unmounted but still in use: end the program that uses it, then `tidemark umount "
            f"{objects.argument(volume)}`; {in_our_words(refused, objects)}"
        ) from None
    remove_stage(staging)


def _spoken(objects: AgentObjects, volume: "Node") -> str:
    """Return what people call it: the snapshot, not the clone that shows it."""
    snapshot = objects.snapshot_of_mount(volume)
    return objects.name(snapshot) if snapshot else objects.name(volume)

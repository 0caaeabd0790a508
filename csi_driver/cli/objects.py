"""One reading of an agent's volumes, snapshots and groups: what each is called, and which one a text means."""

import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from csi_driver.cli.failure import Failure
from csi_driver.cli.mount_paths import mount_paths, staged_here
from csi_driver.cli.output.escape import as_argument
from csi_driver.cli.output.times import ago, minute, second
from csi_driver.cli.snapshot_mounts import is_snapshot_mount, mounted_snapshot_uid
from csi_driver.cli.suggest import suggestion
from csi_driver.cli.transfer.hidden_names import is_imported
from csi_driver.domain.ids import parse

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Client, Kind, Node

SAFETY = re.compile(r"safety-[0-9a-f]{32}")
"""Stored names of safety snapshots that an agent takes."""

_LIST_COMMANDS = {
    "volume": "tidemark volume list",
    "snapshot": "tidemark snapshot list",
    "group": "tidemark group list",
}


class AgentObjects:
    """The objects of a tree. Without those that this command made for itself: clones that show a mounted snapshot."""

    def __init__(self, nodes: "Sequence[Node]") -> None:
        self.all = tuple(nodes)
        self.nodes = tuple(node for node in nodes if not is_snapshot_mount(node))
        self._by_id = {node.id: node for node in nodes}
        self._rollback_times = {
            (node.uid, rollback.safety_id): rollback.at
            for node in nodes
            for rollback in node.rollbacks
            if rollback.safety_id
        }
        self._safety_minutes = Counter(
            (node.parent_uid, minute(taken)) for node in nodes if (taken := self._before_rollback_at(node)) is not None
        )

    @classmethod
    def read(cls, client: "Client", pool: str = "", volume_id: str = "", with_usage: bool = False) -> "AgentObjects":
        """Read the tree of an agent, or a part of it. Raises CallRefused."""
        part: dict[str, Any] = {"pool": pool, "volume_id": volume_id, "with_usage": with_usage}
        return cls(client.tree(**{key: value for key, value in part.items() if value}))

    @classmethod
    def read_for(cls, client: "Client", kind: "Kind", texts: "Sequence[str]") -> "AgentObjects":
        """Read what is needed to find these texts. Ids are trusted if a part of the tree cannot be read, or lacks them.

        A controller answers UNAVAILABLE for the tree while one node is silent, and can still delete on the others.
        """
        from csi_driver.rpc.clients.cli_client import CallRefused

        trusted = [text for text in texts if parse(text)]
        try:
            nodes = client.tree()
        except CallRefused as refused:
            if refused.code != "UNAVAILABLE" or len(trusted) < len(texts):
                raise
            nodes = []
        known = {node.id for node in nodes}
        return cls([*nodes, *(_unseen(text, kind) for text in trusted if text not in known)])

    @property
    def volumes(self) -> "list[Node]":
        """The volumes, without those behind a mounted snapshot."""
        return [node for node in self.nodes if node.kind == "volume"]

    @property
    def snapshots(self) -> "list[Node]":
        """The snapshots, members of groups included."""
        return [node for node in self.nodes if node.kind == "snapshot"]

    @property
    def groups(self) -> "list[Node]":
        """The group snapshots."""
        return [node for node in self.nodes if node.kind == "group"]

    @property
    def snapshot_mounts(self) -> "list[Node]":
        """The clones that show a mounted snapshot."""
        return [node for node in self.all if is_snapshot_mount(node)]

    def get(self, object_id: str) -> "Node | None":
        """Return the object with this id."""
        return self._by_id.get(object_id)

    def name(self, node: "Node") -> str:
        """Return the name that people read. It may have any character: print it through cli/output only."""
        group, is_member, source_id = node.name.partition("\0")
        if is_member:
            source = self.get(source_id)
            return f"{group}/{source.name if source else source_id}"
        if is_snapshot_mount(node):
            snapshot = self.snapshot_of_mount(node)
            return f"mount of {self.name(snapshot) if snapshot else 'a deleted snapshot'}"
        taken = self._before_rollback_at(node)
        if taken is not None:
            alone = self._safety_minutes[node.parent_uid, minute(taken)] == 1
            return f"before rollback of {minute(taken) if alone else second(taken)}"
        return node.label or node.name

    def name_of(self, object_id: str, kind: str = "object") -> str:
        """Return the name of the object with this id; without one, that it is deleted."""
        node = self.get(object_id)
        return self.name(node) if node else f"a deleted {kind}"

    def argument(self, node: "Node") -> str:
        """Return what to type for an object in a command: its name, quoted for a shell, or its id if that is safer."""
        name = self.name(node)
        same_name = [other for other in self.nodes if other.kind == node.kind and self.name(other) == name]
        return (as_argument(name) if len(same_name) < 2 else None) or node.id

    def bare_name(self, node: "Node") -> str:
        """Return the name if a shell takes it without quotes and no other object has it, else the id.

        For `-o name`: a script splits its lines into words, and a quote would become a part of one.
        """
        name = self.name(node)
        return name if self.argument(node) == name else node.id

    def find(self, text: str, *kinds: "Kind", of: "Node | None" = None) -> "Node":
        """Return the object with this id, name or shown name; `of`: only snapshots of this volume.

        If a volume and a snapshot have the name, it is the one whose kind is named first. Raises Failure if there is none,
        or more than one of a kind.
        """
        candidates = [node for node in self.nodes if node.kind in kinds and (of is None or node.parent_uid == of.uid)]
        matches = [node for node in candidates if node.id == text]
        # The names that people read first: a volume may have been renamed, and another one got its name.
        matches = matches or [node for node in candidates if text == self.name(node)]
        matches = matches or [node for node in candidates if text == node.name]
        for kind in kinds:
            of_kind = [node for node in matches if node.kind == kind]
            if len(of_kind) > 1:
                ids = " or ".join(node.id for node in of_kind)
                raise Failure(f"{text!r} is the name of {len(of_kind)} {kind}s: use an id, {ids}")
            if of_kind:
                return of_kind[0]
        whose = f" of {self.name(of)}" if of else ""
        command = _LIST_COMMANDS[kinds[0]] if len(kinds) == 1 else "tidemark tree"
        if of:
            command = f"tidemark snapshot list --of {self.argument(of)}"
        names = [self.name(node) for node in candidates]
        raise Failure(
            f"no {' or '.join(kinds)}{whose} is called {text!r}{suggestion(text, names)}: `{command}` lists them"
        )

    def source(self, node: "Node") -> str:
        """Return what an object was made from, for people; empty if it was created empty."""
        if not node.parent_id:
            return ""
        parent = self.get(node.parent_id)
        if parent is not None and is_parent(parent, node):
            return self.name(parent)
        if parent is not None:
            return f"an earlier {self.name(parent)}, deleted at least {ago(parent.created, datetime.now(UTC))}"
        if is_imported(node):
            return "an image file"
        return "a deleted volume" if node.kind == "snapshot" else "a deleted volume or snapshot"

    def snapshots_of(self, volume: "Node") -> "list[Node]":
        """Return a volume's own snapshots, oldest first: none of an earlier volume with the same name."""
        own = [node for node in self.snapshots if node.parent_uid == volume.uid and node.parent_uid]
        return sorted(own, key=lambda node: node.created)

    def clones_of(self, node: "Node") -> "list[Node]":
        """Return the volumes that were made from an object."""
        return [other for other in self.volumes if other.parent_id == node.id and is_parent(node, other)]

    def snapshot_of_mount(self, clone: "Node") -> "Node | None":
        """Return the snapshot that a clone of `tidemark mount` shows; None if it is deleted."""
        uid = mounted_snapshot_uid(clone)
        return next((node for node in self.all if node.kind == "snapshot" and node.uid == uid), None)

    def mount_of(self, snapshot: "Node") -> "Node | None":
        """Return the clone that shows a snapshot; None if the snapshot is not mounted."""
        return next((node for node in self.all if mounted_snapshot_uid(node) == snapshot.uid), None)

    def users(self, node: "Node") -> str:
        """Return where a volume or a snapshot is mounted, or who holds it; empty if it is not in use."""
        shown = (self.mount_of(node) or node) if node.kind == "snapshot" else node
        points = mount_paths(shown)
        if shown.holder:
            points.append(f"held by {shown.holder}")
        return ", ".join(points) or ("staged" if shown.used_by else "")

    def in_use(self, node: "Node") -> Failure:
        """Return the refusal of a change to a volume that is in use, with the command that ends the use."""
        name, points = self.name(node), mount_paths(node)
        pods = [path for path in points if "kubernetes.io~csi" in path or "/kubelet/" in path]
        if pods or (points and not staged_here(node)):
            return Failure(
                f"{name} is mounted at {', '.join(points)} by a pod or another program: stop what uses it, then retry"
            )
        if len(points) > 1:
            commands = " and ".join(f"`tidemark umount {as_argument(path) or path}`" for path in points)
            return Failure(f"{name} is mounted at {', '.join(points)}: {commands} first")
        if points:
            return Failure(f"{name} is mounted at {points[0]}: `tidemark umount {self.argument(node)}` first")
        if node.used_by:
            return Failure(
                f"{name} is staged, but mounted at no directory: `tidemark umount {self.argument(node)}` unstages it; then retry"
            )
        return Failure(f"{name} is held by {node.holder!r} for a rollback: wait for its release, then retry")

    def _before_rollback_at(self, node: "Node") -> datetime | None:
        """Return when the rollback began that a safety snapshot is for; None for another object."""
        if node.kind != "snapshot":
            return None
        at = self._rollback_times.get((node.parent_uid, node.id))
        return at or (node.created if SAFETY.fullmatch(node.name) else None)


def _unseen(object_id: str, kind: "Kind") -> "Node":
    """Return an object of which nothing is known but its id."""
    from csi_driver.rpc.clients.cli_client import Node

    never = datetime.fromtimestamp(0, UTC)
    return Node(id=object_id, name=object_id, kind=kind, pool="", size=0, created=never, uid="")


def is_parent(parent: "Node", node: "Node") -> bool:
    """Return whether `parent` is the source of `node`, not a later object with the same name.

    The record of a clone of a snapshot has the uid of the snapshot's own volume.
    """
    return node.parent_uid in {parent.uid, parent.parent_uid if parent.kind == "snapshot" else parent.uid}

"""What the deletions of the command line have in common: what they would free, and a volume together with its snapshots."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver.cli.failure import Failure
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.output.documents import document
from csi_driver.cli.output.escape import in_a_sentence
from csi_driver.cli.output.form import OutputForm
from csi_driver.cli.output.printing import print_result, say
from csi_driver.cli.sizes import show
from csi_driver.cli.transfer.hidden_names import PREFIX

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Client, Node


DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Delete nothing: print what deleting all of these together would free.")
]


@dataclass(frozen=True, slots=True)
class DeletionPlan:
    """What is deleted, in this order; `refusal`: why nothing of it is, empty if it can be."""

    nodes: "tuple[Node, ...]"
    refusal: str = ""


def plan_deletion(objects: AgentObjects, nodes: "Sequence[Node]", with_snapshots: bool = False) -> DeletionPlan:
    """Plan the deletion of volumes or snapshots; `with_snapshots`: of volumes, with all their snapshots before them."""
    chosen: list[Node] = []
    for named in {node.id: node for node in nodes}.values():
        chosen += [*objects.snapshots_of(named), named] if with_snapshots else [named]
    ids = {node.id for node in chosen}
    for node in chosen:
        reason = _refusal(objects, node, ids, with_snapshots)
        if reason:
            return DeletionPlan(tuple(chosen), reason)
    return DeletionPlan(tuple(chosen))


def _refusal(objects: AgentObjects, node: "Node", ids: set[str], with_snapshots: bool) -> str:
    if node.kind == "volume" and node.name.startswith(PREFIX):
        return ""  # of an import that was killed: it is detached first
    if node.kind == "volume" and (node.used_by or node.holder):
        return str(objects.in_use(node))
    if node.kind == "snapshot" and node.group_id:
        group = objects.get(node.group_id)
        of = f"`tidemark group delete {objects.argument(group) if group else node.group_id}`"
        return (
            f"{objects.name(node)} is a member of group snapshot {objects.name(group) if group else node.group_id}, and cannot "
            f"be deleted alone: delete the group, {of}"
        )
    if with_snapshots and node.kind == "snapshot" and objects.users(node):
        return f"{objects.name(node)} is mounted at {objects.users(node)}: `tidemark umount {objects.argument(node)}` first"
    clones = [clone for clone in objects.clones_of(node) if clone.id not in ids] if with_snapshots else []
    if clones:
        names = ", ".join(objects.name(clone) for clone in clones)
        return (
            f"{names} {'is a clone' if len(clones) == 1 else 'are clones'} of {objects.name(node)}: delete "
            f"{'it' if len(clones) == 1 else 'them'} first, or delete the volume without --with-snapshots"
        )
    return ""


def estimate_freed(client: "Client", nodes: "Sequence[Node]") -> int:
    """Return what deleting all of these together would free, in bytes: the sum over their pools, which share nothing."""
    by_pool: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        by_pool.setdefault((node.id.partition(":")[0], node.pool), []).append(node.id)
    return sum(client.estimate_freed(ids) for ids in by_pool.values())


def print_dry_run(form: OutputForm, client: "Client", objects: AgentObjects, plan: DeletionPlan) -> None:
    """Say what a deletion would free. Raises Failure if it would be refused."""
    freed = estimate_freed(client, plan.nodes)
    counts = [
        f"{number} {kind}{'s' if number > 1 else ''}"
        for kind in ("volume", "snapshot")
        if (number := sum(node.kind == kind for node in plan.nodes))
    ]
    what = objects.name(plan.nodes[0]) if len(plan.nodes) == 1 else " and ".join(counts)
    print_result(
        form,
        {
            "would_delete": [document(node, objects) for node in plan.nodes],
            "freed_bytes": freed,
            "refusal": plan.refusal,
        },
        str(freed),
        f"deleting {what} would free {show(freed)}{' together' if len(plan.nodes) > 1 else ''}; nothing was deleted",
    )
    if plan.refusal:
        raise Failure(f"the deletion would be refused: {plan.refusal}")


def confirm(objects: AgentObjects, plan: DeletionPlan, yes: bool) -> None:
    """Ask on a terminal; elsewhere only --yes goes on. Raises Failure if the answer is no."""
    if yes:
        return
    names = ", ".join(in_a_sentence(objects.name(node)) for node in plan.nodes)
    if not sys.stdin.isatty():
        raise Failure(f"this would delete {names}, and nobody can be asked here: repeat it with --yes")
    say(f"This deletes {names}, for good.")
    if not typer.confirm("Delete?", default=False):
        raise Failure("nothing was deleted")


def delete_planned(client: "Client", objects: AgentObjects, plan: DeletionPlan, keeps_snapshots: bool = False) -> None:
    """Delete in order, and say each. Raises Failure that says what is left; the same command again deletes the rest."""
    from csi_driver.cli.refusals import explain
    from csi_driver.cli.transfer.importing import discard_import
    from csi_driver.rpc.clients.cli_client import CallRefused

    for at, node in enumerate(plan.nodes):
        try:
            if node.kind == "snapshot":
                client.delete_snapshot(node.id)
            elif node.name.startswith(PREFIX):
                discard_import(client, node.name)
            else:
                client.delete_volume(node.id)
        except CallRefused as refused:
            if len(plan.nodes) == 1:
                raise
            left = ", ".join(in_a_sentence(objects.name(rest)) for rest in plan.nodes[at:])
            raise Failure(
                f"{explain(refused, client)}; left: {left}. The same command again deletes what is left"
            ) from None
        kept = len(objects.snapshots_of(node)) if keeps_snapshots else 0
        note = f"; its {kept} snapshot{'' if kept == 1 else 's'} stay{'s' if kept == 1 else ''}" if kept else ""
        say(f"{node.kind} {in_a_sentence(objects.name(node))} is deleted{note}")

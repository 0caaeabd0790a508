"""Which deletions are planned, in which order, and which are refused before anything is deleted."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from csi_driver.cli.deletion import plan_deletion
from csi_driver.cli.objects import AgentObjects
from csi_driver.rpc.clients.cli_client import Kind, Node

FIRST = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def node(name: str, kind: Kind = "volume", age: int = 0, **more: Any) -> Node:
    made = Node(
        id=f"n1:default:{name.encode().hex():0<32.32}",
        name=name,
        kind=kind,
        pool="default",
        size=4 << 20,
        created=FIRST + timedelta(minutes=age),
        uid=f"uid-{name}",
    )
    return replace(made, **more)


def of(parent: Node, name: str, kind: Kind = "snapshot", age: int = 1, **more: Any) -> Node:
    return node(name, kind, age, parent_id=parent.id, parent_uid=parent.uid, **more)


DB = node("db")
S1, S2 = of(DB, "s1", age=1), of(DB, "s2", age=2)


def names(*nodes: Node, of_tree: tuple[Node, ...], with_snapshots: bool = True) -> tuple[list[str], str]:
    plan = plan_deletion(AgentObjects(of_tree), nodes, with_snapshots)
    return [one.name for one in plan.nodes], plan.refusal


def test_snapshots_go_before_their_volume_oldest_first() -> None:
    other = node("other")
    foreign = of(replace(DB, uid="an earlier db"), "old")
    tree = (DB, other, S2, S1, foreign, of(other, "o1"))
    assert names(DB, of_tree=tree) == (["s1", "s2", "db"], "")
    assert names(DB, DB, other, of_tree=tree)[0] == ["s1", "s2", "db", "o1", "other"], "each once"
    assert names(DB, of_tree=tree, with_snapshots=False) == (["db"], "")
    assert names(S2, S1, of_tree=tree, with_snapshots=False) == (["s2", "s1"], "")


@pytest.mark.parametrize(
    "clone", [of(DB, "clone", "volume"), of(S1, "clone", "volume")], ids=["of it", "of a snapshot"]
)
def test_a_clone_keeps_a_volume_with_snapshots_and_is_named(clone: Node) -> None:
    tree = (DB, S1, S2, clone)
    assert "clone is a clone of" in names(DB, of_tree=tree)[1]
    assert names(DB, of_tree=tree, with_snapshots=False)[1] == "", "alone it may go: blocks are shared, not owned"
    assert names(DB, clone, of_tree=tree)[1] == "", "both are to go"


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        (replace(DB, used_by=("/mnt/db",), places=(("/mnt/db",),)), "/mnt/db"),
        (replace(DB, holder="somebody"), "somebody"),
    ],
)
def test_what_is_in_use_or_held_is_not_deleted(changed: Node, word: str) -> None:
    for with_snapshots in (True, False):
        assert word in names(changed, of_tree=(changed, S1), with_snapshots=with_snapshots)[1]


def test_a_member_of_a_group_is_deleted_with_its_group_alone() -> None:
    group = node("nightly", "group")
    member = of(DB, f"nightly\0{DB.id}", group_id=group.id)
    tree = (DB, group, member)
    for chosen, with_snapshots in ((DB, True), (member, False)):
        assert "`tidemark group delete nightly`" in names(chosen, of_tree=tree, with_snapshots=with_snapshots)[1]

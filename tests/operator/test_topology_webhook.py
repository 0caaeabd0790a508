"""The pin of the webhook: to the node of the source, and of nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from support.fake_api import FakeApi, Object
from support.topology_objects import DRIVER, NS, Objects, claim, handle

from csi_driver.domain.ids import owner_of_node
from csi_driver.kube.resources import PVCS, SNAPSHOT_CONTENTS, SNAPSHOTS
from csi_driver.operator.installation import SELECTED_NODE
from csi_driver.operator.topology.data_source import DataSourceResolver
from csi_driver.operator.topology.webhook import SelectedNodeMutator

NODES = {name: name for name in ("n-1", "n-2")}
LONG = "a-node-whose-name-is-longer-than-any-label-can-hold.in-a-zone.example.com"


@pytest.fixture
def objects(fake: FakeApi) -> Objects:
    return Objects(fake)


async def pinned(objects: Objects, body: Object, **nodes: str) -> str | None:
    api = await objects.fake.connect()

    async def get(kind: Any, name: str, namespace: str) -> Object | None:
        return await api.get(kind, name, namespace)

    node_of = {**NODES, owner_of_node(LONG): LONG}.get
    notes = await SelectedNodeMutator(DataSourceResolver(get, DRIVER), node_of).mutate(body)
    assert set(notes) <= {SELECTED_NODE}
    return notes.get(SELECTED_NODE)


@pytest.mark.parametrize("cut", [True, False])
async def test_a_restore_goes_to_its_snapshot(objects: Objects, cut: bool) -> None:
    objects.snapshot("s", "n-2", cut=cut)
    assert await pinned(objects, claim("c", snapshot="s")) == "n-2"


async def test_a_clone_goes_to_its_source(objects: Objects) -> None:
    objects.bound("a", "n-1")
    assert await pinned(objects, claim("c", clone="a")) == "n-1"


async def test_a_snapshot_that_is_not_bound_yet_lies_with_its_claim(objects: Objects) -> None:
    """Claim, snapshot and restore may come in one manifest."""
    objects.bound("a", "n-2")
    objects.snapshot("s", of="a")
    assert await pinned(objects, claim("c", snapshot="s")) == "n-2"


async def test_a_claim_that_is_not_bound_yet_tells_what_is_chosen_for_it(objects: Objects) -> None:
    objects.put(claim("a", selected="n-1"))
    objects.snapshot("s", of="a")
    assert await pinned(objects, claim("c", snapshot="s")) == "n-1"
    objects.put(claim("a"))
    assert await pinned(objects, claim("c", snapshot="s")) is None


async def test_a_chain_of_claims_that_are_not_bound(objects: Objects) -> None:
    objects.snapshot("s", "n-1")
    objects.put(claim("a", snapshot="s"))
    objects.put(claim("b", clone="a"))
    assert await pinned(objects, claim("c", clone="b")) == "n-1"


async def test_a_ring_of_claims_ends(objects: Objects) -> None:
    objects.put(claim("a", clone="b"))
    objects.put(claim("b", clone="a"))
    assert await pinned(objects, claim("c", clone="a")) is None


async def test_a_snapshot_that_an_administrator_made(objects: Objects) -> None:
    """Its content came first, and names the handle itself; the snapshot is not bound yet."""
    spec = {"driver": DRIVER, "source": {"snapshotHandle": handle("n-2")}}
    objects.fake.put(SNAPSHOT_CONTENTS, {"metadata": {"name": "given"}, "spec": spec})
    objects.fake.put(
        SNAPSHOTS, {"metadata": {"name": "s"}, "spec": {"source": {"volumeSnapshotContentName": "given"}}}, NS
    )
    assert await pinned(objects, claim("c", snapshot="s")) == "n-2"


async def test_an_owner_that_is_the_hash_of_a_long_name(objects: Objects) -> None:
    objects.snapshot("s", owner_of_node(LONG))
    assert owner_of_node(LONG) != LONG
    assert await pinned(objects, claim("c", snapshot="s")) == LONG


async def test_what_is_left_as_it_is(objects: Objects) -> None:
    """Nothing to follow, nothing of ours, nowhere to lead to, or chosen already."""
    objects.snapshot("s", "n-1")
    objects.snapshot("foreign", "n-1", driver="other")
    objects.snapshot("away", "n-9")
    objects.snapshot("everywhere", "*")
    objects.snapshot("unbound", of="nothing")
    objects.bound("foreign", "n-1", driver="other")
    objects.cls("other", driver="other")
    objects.cls("now", mode="Immediate")
    reference = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"}
    elsewhere = claim("c")
    elsewhere["spec"]["dataSourceRef"] = reference | {"namespace": "theirs"}
    popular = claim("c")
    popular["spec"]["dataSourceRef"] = reference | {"apiGroup": "populator.example", "kind": "Thing"}
    nameless = claim("c", snapshot="s")
    del nameless["spec"]["storageClassName"]
    for left in (
        claim("c"),
        claim("c", snapshot="nothing"),
        claim("c", snapshot="foreign"),
        claim("c", snapshot="away"),
        claim("c", snapshot="everywhere"),
        claim("c", snapshot="unbound"),
        claim("c", clone="nothing"),
        claim("c", clone="foreign"),
        claim("c", snapshot="s", cls="other"),
        claim("c", snapshot="s", cls="now"),
        claim("c", snapshot="s", cls="nothing"),
        claim("c", snapshot="s", selected="n-2"),
        claim("c", snapshot="s", volume="pv"),
        elsewhere,
        popular,
        nameless,
    ):
        assert await pinned(objects, left) is None, left


async def test_a_claim_of_its_own_namespace_named_in_full(objects: Objects) -> None:
    objects.snapshot("s", "n-1")
    full = claim("c", snapshot="s")
    full["spec"]["dataSourceRef"]["namespace"] = NS
    assert await pinned(objects, full) == "n-1"


async def test_a_cluster_without_snapshots(fake: FakeApi) -> None:
    fake.unserved |= {SNAPSHOTS, SNAPSHOT_CONTENTS}
    objects = Objects(fake)
    assert await pinned(objects, claim("c", snapshot="s")) is None
    objects.bound("a", "n-1")
    assert await pinned(objects, claim("c", clone="a")) == "n-1"
    assert fake.asked("get", PVCS)

"""What a schedule takes for its own: nothing of another namespace, whatever that says of itself."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.fake_api import FakeApi
from support.schedule_rig import World

from csi_driver.kube.resources import GROUP_SNAPSHOTS, SNAPSHOTS, Kind


@pytest.fixture
async def world(fake: FakeApi) -> AsyncIterator[World]:
    made = World(fake)
    yield made
    await made.close()


def copy_to(world: World, kind: Kind, namespace: str) -> list[str]:
    """Put a copy of every object of a kind into another namespace, as a backup tool does; returns the names."""
    found = world.fake.all(kind)
    for obj in found:
        world.fake.put(kind, {**obj, "metadata": {**obj["metadata"], "namespace": namespace}})
    return [obj["metadata"]["name"] for obj in found]


@pytest.mark.parametrize("grouped", [False, True], ids=["single", "grouped"])
async def test_a_copy_in_another_namespace_hides_nothing(world: World, grouped: bool) -> None:
    """While it is there, and when it goes: the schedule counts its own, and retention keeps as many as it says."""
    operator = await world.operator()
    world.claim("a")
    world.claim("b")
    world.schedule(grouped=grouped, retention={"keepLast": 2})
    world.pass_to(17, 13)
    await operator.settle()
    kinds = (SNAPSHOTS, GROUP_SNAPSHOTS) if grouped else (SNAPSHOTS,)
    copies = {kind: copy_to(world, kind, "elsewhere") for kind in kinds}
    assert len(copies[SNAPSHOTS]) == 2
    await operator.settle()
    assert world.status()["snapshots"] == 2

    for kind, names in copies.items():
        for name in names:
            world.fake.remove(kind, name, "elsewhere")
    await operator.settle()
    assert world.status()["snapshots"] == 2
    for hour in (14, 15):
        world.pass_to(17, hour)
        await operator.settle()
    assert world.status()["snapshots"] == 4
    times = [obj["metadata"]["annotations"]["tidemark.dev/scheduled-for"][11:13] for obj in world.fake.all(kinds[-1])]
    assert sorted(set(times)) == ["14", "15"]


async def test_a_copy_of_a_member_is_no_member(world: World) -> None:
    """A label on the copy keeps nothing: the group is deleted although the copy is labelled to be kept."""
    operator = await world.operator()
    world.claim("a")
    world.schedule(grouped=True, retention={"keepLast": 1})
    world.pass_to(17, 13)
    await operator.settle()
    (name,) = copy_to(world, SNAPSHOTS, "elsewhere")
    world.fake.change(SNAPSHOTS, name, {"metadata": {"labels": {"tidemark.dev/keep": ""}}}, "elsewhere")
    world.pass_to(17, 14)
    await operator.settle()
    assert len(world.fake.all(GROUP_SNAPSHOTS)) == 1

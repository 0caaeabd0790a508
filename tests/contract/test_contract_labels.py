"""A volume that is renamed for people stays the one that its CSI name finds."""

import re

import pytest
from contract_rig import World, piece

from csi_driver.domain.errors import AlreadyExists, InvalidRequest, NotFound
from csi_driver.domain.model import Volume
from csi_driver.service.labels import shown_as


async def rename(world: World, volume: Volume, label: str) -> Volume:
    return await world.services.labels.set_label(str(volume.id), label)


async def test_a_renamed_volume_is_found_by_the_call_that_made_it(world: World) -> None:
    """The provisioner repeats CreateVolume with the old name: it must never get a second volume."""
    made = await world.volume("db")
    renamed = await rename(world, made, "orders")
    assert (shown_as(renamed), renamed.name, renamed.id, renamed.uid) == ("orders", "db", made.id, made.uid)
    again = await world.volume("db")
    assert (again.id, again.uid, again.label) == (made.id, made.uid, "orders")
    assert len(world.pool.volumes) == 1


async def test_a_label_outlives_restarts_and_every_change_of_the_record(world: World) -> None:
    made = await world.volume("db")
    await world.write(made, piece(0, "a"))
    cut = await world.snapshot("s", made)
    await rename(world, made, "orders")
    await world.hold(made, "me")
    assert world.now(made).label == "orders"
    await world.rollbacks.release(str(made.id), "me")
    await world.roll_back(world.now(made), cut, "r")
    await world.expand(made, 2 * made.size)
    async with world.shown(made):
        await rename(world, made, "orders, in use")
    await world.reopen()
    assert world.now(made).label == "orders, in use"
    clone = await world.volume("clone", 0, source=world.now(made))
    assert clone.label == "", "a clone has a name of its own"


async def test_the_name_of_its_creation_takes_the_label_away(world: World) -> None:
    for back in ("", "db"):
        made = await world.volume("db")
        await rename(world, made, "orders")
        assert (await rename(world, made, back)).label == ""
        await world.reopen()
        assert world.now(made).label == ""


async def test_the_same_label_again_changes_nothing(world: World) -> None:
    made = await world.volume("db")
    first = await rename(world, made, "orders")
    assert await rename(world, made, "orders") == first


async def test_two_volumes_are_not_shown_by_one_name(world: World) -> None:
    one, two = await world.volume("one"), await world.volume("two")
    with pytest.raises(AlreadyExists, match=re.escape(str(two.id))):
        await rename(world, one, "two")
    await rename(world, two, "three")
    assert shown_as(await rename(world, one, "two")) == "two", "that name is shown no longer"
    with pytest.raises(AlreadyExists, match=re.escape(str(one.id))):
        await rename(world, two, "")
    assert [shown_as(world.now(v)) for v in (one, two)] == ["two", "three"]


@pytest.mark.parametrize("bad", ["a\nb", "\x1b[31mred", "x" * 129, "a\0b"])
async def test_a_name_that_cannot_be_printed_on_a_line_is_refused(world: World, bad: str) -> None:
    made = await world.volume("db")
    with pytest.raises(InvalidRequest):
        await rename(world, made, bad)
    with pytest.raises(InvalidRequest, match="form of an id"):
        await rename(world, made, str(made.id))
    assert world.now(made).label == ""


async def test_an_unknown_volume_is_not_renamed(world: World) -> None:
    made = await world.volume("db")
    await world.volumes.delete(str(made.id))
    with pytest.raises(NotFound):
        await rename(world, made, "orders")

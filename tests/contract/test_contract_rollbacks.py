"""Rollback and hold: back and forth, never twice for one name, never under somebody's feet."""

from dataclasses import replace

import pytest
from contract_rig import RAW_BLOCK, SIZE, World, filled, piece

from csi_driver.domain.errors import AlreadyExists, Busy, InUse, InvalidRequest, NotFound, Precondition
from csi_driver.domain.model import SizeRange, Volume, VolumeUsage
from csi_driver.domain.records import dump_volume
from csi_driver.service.holds import HOLD_SECONDS
from csi_driver.service.lineage import Lineage
from csi_driver.service.rollbacks import REMEMBERED, RollbackRequest


async def test_back_to_older_then_newer(world: World) -> None:
    v = await world.volume("v")
    made = []
    for letter in "abc":
        await world.write(v, piece(0, letter))
        made.append(await world.snapshot(letter, v))
    for i, s in enumerate([made[0], made[2], made[1], made[1], made[0], made[2]]):
        rolled, repeated = await world.roll_back(v, s, f"r{i}")
        assert (rolled.snapshot, repeated) == (str(s.id), False)
        assert await world.read(v) == filled(s.name)
    for s in made:
        assert await world.content(s) == filled(s.name), "all snapshots stay usable"
    await world.reopen()
    assert await world.read(v) == filled("c")
    after = await world.snapshot("after", v)
    assert await world.content(after) == filled("c")


async def test_the_volume_stays_what_it_is(world: World) -> None:
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    await world.write(v, piece(0, "a"))
    rolled, _ = await world.roll_back(v, s, "r")
    now = world.now(v)
    assert (now.id, now.uid, now.created, now.request) == (v.id, v.uid, v.created, v.request)
    assert now.rollbacks == (rolled,)
    await world.reopen()
    assert world.now(v) == now
    assert (await world.snapshot("s", v)) == s, "still its own"


async def test_the_size_stays_what_it_is_now(world: World) -> None:
    v = await world.volume("v")
    await world.write(v, piece(15, "a"))
    s = await world.snapshot("s", v)
    v = await world.expand(v, 2 * SIZE)
    await world.write(v, piece(15, "b"), piece(16, "c"), piece(31, "d"))
    await world.roll_back(v, s, "r")
    assert world.now(v).size == 2 * SIZE
    assert await world.read(v) == filled(*"." * 15, "a", size=2 * SIZE), "what was beyond the snapshot is gone"
    await world.reopen()
    assert world.now(v).size == 2 * SIZE
    await world.expand(v, 3 * SIZE)
    assert await world.read(v) == filled(*"." * 15, "a", size=3 * SIZE)


async def test_only_to_ones_own_snapshots(world: World) -> None:
    v, w = await world.volume("v"), await world.volume("w")
    await world.write(v, piece(0, "v"))
    theirs = await world.snapshot("theirs", w)
    clone = await world.volume("clone", 0, source=await world.snapshot("mine", v))
    for volume, snapshot in ((v, theirs), (clone, world.snapshots.list(source_id=str(v.id))[0][0])):
        with pytest.raises(InvalidRequest):
            await world.roll_back(volume, snapshot, "r")
    assert await world.read(v) == filled("v")
    gone = await world.snapshot("gone", v)
    await world.snapshots.delete(str(gone.id))
    with pytest.raises(NotFound):
        await world.roll_back(v, gone, "r")
    with pytest.raises(NotFound):
        await world.rollbacks.roll_back(RollbackRequest("nonsense", str(theirs.id), "r"))


async def test_in_use_is_refused_and_named(world: World) -> None:
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    await world.write(v, piece(0, "a"))
    await world.stage(v)
    with pytest.raises(InUse, match=world.staging(v)):
        await world.roll_back(v, s, "r")
    target = await world.publish(v)
    with pytest.raises(InUse, match=target):
        await world.roll_back(v, s, "r", safety="")
    await world.unpublish(v)
    await world.unstage(v)
    assert world.snapshots.list() == ([s], ""), "no safety snapshot of what was refused"
    assert await world.read(v) == filled("a")


async def test_a_name_rolls_once(world: World) -> None:
    v = await world.volume("v")
    s, t = await world.snapshot("s", v), await world.snapshot("t", v)
    first, repeated = await world.roll_back(v, s, "r", safety="")
    assert not repeated
    await world.write(v, piece(0, "n"))
    count = len(world.snapshots.list()[0])
    for _ in range(2):
        assert await world.roll_back(v, s, "r", safety="") == (first, True)
        await world.reopen()
    assert await world.read(v) == filled("n"), "newer data is not rolled away by a retry"
    assert len(world.snapshots.list()[0]) == count
    with pytest.raises(AlreadyExists):
        await world.roll_back(v, t, "r")
    async with world.shown(v):
        assert await world.roll_back(v, s, "r") == (first, True)


async def test_the_last_sixteen_are_remembered(world: World) -> None:
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    done = [(await world.roll_back(v, s, f"r{i}"))[0] for i in range(REMEMBERED + 2)]
    assert world.now(v).rollbacks == tuple(done[2:])
    await world.reopen()
    assert world.now(v).rollbacks == tuple(done[2:])
    assert await world.roll_back(v, s, "r2") == (done[2], True)
    assert (await world.roll_back(v, s, "r0"))[1] is False


async def test_the_safety_snapshot_holds_what_was_rolled_away(world: World) -> None:
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    await world.write(v, piece(0, "a"))
    rolled, _ = await world.roll_back(v, s, "r", safety="")
    assert await world.read(v) == filled()
    safety = world.snapshots.get(rolled.safety)
    assert await world.content(safety) == filled("a")
    await world.roll_back(v, safety, "undo")
    assert await world.read(v) == filled("a")


async def test_a_safety_snapshot_of_the_callers_own(world: World) -> None:
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    await world.write(v, piece(0, "a"))
    early = await world.snapshot("early", v)
    with pytest.raises(InvalidRequest):
        await world.roll_back(v, s, "r", safety=str(early.id))
    await world.hold(v, "me")
    with pytest.raises(Precondition, match="older than the hold"):
        await world.roll_back(v, s, "r", "me", safety=str(early.id))
    mine = await world.snapshot("mine", v)
    other = await world.volume("other")
    theirs = await world.snapshot("theirs", other)
    with pytest.raises(InvalidRequest):
        await world.roll_back(v, s, "r", "me", safety=str(theirs.id))
    rolled, _ = await world.roll_back(v, s, "r", "me", safety=str(mine.id))
    assert rolled.safety == str(mine.id)
    assert await world.content(mine) == filled("a")
    await world.rollbacks.release(str(v.id), "me")
    assert await world.read(v) == filled()


async def test_a_safety_snapshot_is_not_taken_for_the_target(world: World) -> None:
    """A try that ended after its safety snapshot, and then a request to roll back to just that, under the same name."""
    v = await world.volume("v")
    await world.write(v, piece(0, "a"))
    s = await world.snapshot("s", v)
    rolled, _ = await world.roll_back(v, s, "r", safety="")
    safety = world.snapshots.get(rolled.safety)
    # As if the rollback had never come to its end.
    await world.backend.save_volume(v)
    world.pool.put_volume(v)
    await world.write(v, piece(0, "b"))
    with pytest.raises(AlreadyExists):
        await world.roll_back(v, safety, "r", safety="")
    assert world.snapshots.get(rolled.safety) == safety
    assert await world.content(safety) == filled("a")
    await world.roll_back(v, safety, "another", safety="")
    assert await world.read(v) == filled("a")


@pytest.mark.parametrize("held", [False, True])
async def test_a_stale_safety_snapshot_is_replaced(world: World, held: bool) -> None:
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    await world.write(v, piece(0, "a"))
    holder = "me" if held else ""
    if held:
        await world.hold(v, "me")
    rolled, _ = await world.roll_back(v, s, "r", holder, safety="")
    first = world.snapshots.get(rolled.safety)
    # The first try ended between the safety snapshot and the rollback: the record knows nothing of it.
    undone = replace(world.now(v), rollbacks=())
    await world.backend.roll_back(undone, first)
    world.pool.put_volume(undone)
    if not held:
        await world.write(v, piece(0, "b"))
    again, repeated = await world.roll_back(v, s, "r", holder, safety="")
    assert not repeated
    safety = world.snapshots.get(again.safety)
    assert (safety.uid == first.uid) == held, "only under one unbroken hold is the earlier one still true"
    assert await world.content(safety) == filled("a" if held else "b")


async def test_a_hold_keeps_everybody_else_out(world: World) -> None:
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    await world.hold(v, "the rollback")
    await world.reopen()
    for refused in (
        world.stage(v),
        world.expand(v, 2 * SIZE),
        world.volumes.delete(str(v.id)),
        world.hold(v, "another"),
        world.rollbacks.release(str(v.id), "another"),
        world.roll_back(v, s, "r"),
        world.roll_back(v, s, "r", "another"),
    ):
        with pytest.raises(InUse, match="the rollback"):
            await refused
    await world.snapshot("t", v)
    await world.volume("copy", 0, source=v)
    await world.roll_back(v, s, "r", "the rollback", safety="")
    await world.rollbacks.release(str(v.id), "the rollback")
    await world.rollbacks.release(str(v.id), "the rollback")
    await world.expand(v, 2 * SIZE)
    await world.volumes.delete(str(v.id))
    await world.rollbacks.release(str(v.id), "the rollback")


async def test_a_hold_keeps_publish_out(world: World) -> None:
    """Staged behind the service's back, as after a lost answer: publish looks for itself."""
    v = await world.volume("v")
    await world.hold(v, "me")
    access = world.backend.access
    await access.attach(v)
    await access.stage_block(v, world.staging(v))
    with pytest.raises(InUse, match="me"):
        await world.publish(v)
    with pytest.raises(InUse, match="me"):
        await world.nodes.expand(str(v.id), world.staging(v), SizeRange())
    await world.unstage(v)


async def test_a_volume_in_use_is_not_held(world: World) -> None:
    v = await world.volume("v")
    async with world.shown(v) as path:
        with pytest.raises(InUse, match=path):
            await world.hold(v, "me")
    await world.hold(v, "me")


async def test_a_hold_lapses(world: World) -> None:
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    world.clock.go_back(3 * HOLD_SECONDS)
    first = await world.hold(v, "me")
    assert first.expires == pytest.approx(world.clock() + HOLD_SECONDS * 1e9, abs=5e9)
    world.clock.forward(HOLD_SECONDS - 30)
    renewed = await world.hold(v, "me")
    assert renewed.since == first.since, "one unbroken hold"
    world.clock.forward(HOLD_SECONDS - 30)
    with pytest.raises(InUse):
        await world.stage(v)
    world.clock.forward(60)
    with pytest.raises(Precondition, match="expired"):
        await world.roll_back(v, s, "r", "me", safety="")
    await world.stage(v)
    await world.unstage(v)
    another = await world.hold(v, "another")
    assert another.since > renewed.expires
    with pytest.raises(InUse, match="another"):
        await world.hold(v, "me")


async def test_what_others_do_renews_no_hold(world: World) -> None:
    """Nobody is there any more to release it, while the volume is cut again and again."""
    v = await world.volume("v")
    world.clock.go_back(3 * HOLD_SECONDS)
    hold = await world.hold(v, "me")
    for number in range(3):
        world.clock.forward(HOLD_SECONDS / 3 - 5)
        await world.snapshot(f"s{number}", v)
    assert world.now(v).hold == hold
    world.clock.forward(30)
    await world.stage(v)
    await world.unstage(v)


async def test_a_clock_that_is_set_back_makes_no_lapsed_hold_stand_again(world: World) -> None:
    """Somebody has written since: what the safety snapshot of that hold does not have would be lost."""
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    world.clock.go_back(3 * HOLD_SECONDS)
    first = await world.hold(v, "me")
    mine = await world.snapshot("mine", v)
    world.clock.forward(HOLD_SECONDS + 30)
    await world.stage(v)
    await world.unstage(v)
    await world.write(v, piece(0, "b"))
    world.clock.offset -= 60
    assert world.clock() < first.expires
    with pytest.raises(Precondition, match="expired"):
        await world.roll_back(v, s, "r", "me", safety=str(mine.id))
    assert await world.read(v) == filled("b")
    assert (await world.hold(v, "me")).since > first.since, "another hold, and not the one that was unbroken"


async def test_after_a_lapse_the_hold_is_a_new_one(world: World) -> None:
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    world.clock.go_back(2 * HOLD_SECONDS)
    first = await world.hold(v, "me")
    mine = await world.snapshot("mine", v)
    world.clock.forward(2 * HOLD_SECONDS)
    again = await world.hold(v, "me")
    assert again.since > first.expires
    with pytest.raises(Precondition, match="older than the hold"):
        await world.roll_back(v, s, "r", "me", safety=str(mine.id))


async def test_requests_that_can_never_be_served(world: World) -> None:
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    for bad in (
        RollbackRequest(str(v.id), str(s.id), ""),
        RollbackRequest(str(v.id), str(s.id), "x" * 129),
        RollbackRequest(str(v.id), str(s.id), "r", "me", skip_safety=True, safety=str(s.id)),
    ):
        with pytest.raises(InvalidRequest):
            await world.rollbacks.roll_back(bad)
    with pytest.raises(InvalidRequest):
        await world.hold(v, "")
    with pytest.raises(NotFound):
        await world.rollbacks.hold("nonsense", "me")
    await world.rollbacks.release("nonsense", "me")
    assert dump_volume(world.now(v)) == dump_volume(v)


async def test_the_first_use_after_a_rollback_finds_the_old_format(world: World) -> None:
    v = await world.volume("v")
    blank = await world.snapshot("blank", v)
    await world.stage(v, RAW_BLOCK)
    await world.unstage(v)
    assert world.now(v).format == "raw"
    await world.roll_back(v, blank, "r")
    assert world.now(v).format == "blank"


async def test_a_safety_snapshot_from_before_a_lapse_is_replaced(world: World) -> None:
    """The first try made it under a hold that lapsed; somebody wrote; the second try holds again."""
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    await world.write(v, piece(0, "a"))
    world.clock.go_back(2 * HOLD_SECONDS)
    await world.hold(v, "me")
    rolled, _ = await world.roll_back(v, s, "r", "me", safety="")
    first = world.snapshots.get(rolled.safety)
    undone = replace(world.now(v), rollbacks=())
    await world.backend.roll_back(undone, first)
    world.pool.put_volume(undone)
    world.clock.forward(2 * HOLD_SECONDS)
    await world.write(v, piece(0, "b"))
    await world.hold(v, "me")
    again, _ = await world.roll_back(v, s, "r", "me", safety="")
    safety = world.snapshots.get(again.safety)
    assert safety.uid != first.uid
    assert await world.content(safety) == filled("b")


async def test_a_listing_reports_holds_and_rollbacks_as_they_are_at_its_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done while a copy was looked at is in the answer: else a rollback would seem never to have been begun."""
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    copy = await world.volume("copy", 0, source=s)
    use = world.backend.access.use

    async def while_looking(volume: Volume) -> VolumeUsage:
        if volume.id == copy.id:
            await world.roll_back(v, s, "meanwhile")
            await world.rollbacks.hold(str(v.id), "somebody")
        return await use(volume)

    monkeypatch.setattr(world.backend.access, "use", while_looking)
    trees = world.services.lineage
    (node,) = [node for node in await trees.tree(volume_id=str(v.id)) if node.item.id == v.id]
    assert isinstance(node.item, Volume)
    assert [rolled.name for rolled in node.item.rollbacks] == ["meanwhile"]
    assert trees.holder(node.item) == "somebody"


async def test_one_volume_is_described_as_of_one_moment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    copy = await world.volume("copy", 0, source=s)
    await world.snapshot("of-copy", copy)
    use = world.backend.access.use

    async def while_looking(volume: Volume) -> VolumeUsage:
        assert volume.id == v.id, "no other volume is looked at"
        monkeypatch.undo()
        await world.snapshot("later", v)
        await world.roll_back(v, s, "meanwhile")
        return await use(volume)

    monkeypatch.setattr(world.backend.access, "use", while_looking)
    node, snapshots = await Lineage(world.context).describe(str(v.id))
    assert isinstance(node.item, Volume)
    assert [rolled.name for rolled in node.item.rollbacks] == ["meanwhile"]
    assert {snapshot.name for snapshot in snapshots if not snapshot.name.startswith("safety-")} == {"s", "later"}


@pytest.mark.parametrize(("again", "refusal"), [(True, Busy), (False, NotFound)])
async def test_a_volume_that_is_deleted_meanwhile_is_not_described(
    world: World, monkeypatch: pytest.MonkeyPatch, again: bool, refusal: type[Exception]
) -> None:
    v = await world.volume("v")
    use = world.backend.access.use

    async def while_looking(volume: Volume) -> VolumeUsage:
        usage = await use(volume)
        monkeypatch.undo()
        await world.volumes.delete(str(v.id))
        if again:
            await world.volume("v")
        return usage

    monkeypatch.setattr(world.backend.access, "use", while_looking)
    with pytest.raises(refusal):
        await Lineage(world.context).describe(str(v.id))

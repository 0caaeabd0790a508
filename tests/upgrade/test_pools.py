"""Pools that earlier versions made are read, finished and used by this one, byte for byte. make_pool.py says what is in them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from make_pool import CUTS, FILES, FIRST, GROUP, HOLDER, POOLS, ROLLBACK, SAFETY, VOLUMES, content, padded
from support.files import allocated, read_at, write_file
from support.freezing import freeze, is_frozen
from support.node_rig import OWNER, POOL, Rig, mounted
from support.sizes import MIB

from csi_driver.domain.errors import AlreadyExists, InUse
from csi_driver.domain.ids import ObjectId, name_hash
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume
from csi_driver.domain.requests import FILE_SYSTEMS
from csi_driver.host.freeze import journal
from csi_driver.service.labels import Labels
from csi_driver.service.rollbacks import RollbackRequest

pytestmark = pytest.mark.root


def volume(rig: Rig, name: str) -> Volume:
    found: Volume = rig.volumes.get(str(ObjectId(OWNER, POOL, name_hash("volume", name))))
    assert found.name == name
    return found


def snapshot(rig: Rig, name: str) -> Snapshot:
    found: Snapshot = rig.snapshots.get(str(ObjectId(OWNER, POOL, name_hash("snapshot", name))))
    assert found.name == name
    return found


def group(rig: Rig) -> GroupSnapshot:
    found: GroupSnapshot = rig.groups.get(str(ObjectId(OWNER, POOL, name_hash("group", "group"))), [])
    return found


def safety(rig: Rig) -> Snapshot:
    (rolled,) = volume(rig, "rolled").rollbacks
    found: Snapshot = rig.snapshots.get(rolled.safety)
    return found


async def file_of(rig: Rig, shown: Volume) -> bytes:
    async with rig.shown(shown) as path:
        return Path(path, "data").read_bytes()


def at_that_time(rig: Rig) -> None:
    """Turn the clock to when the pool was made: its hold stands then."""
    hold = volume(rig, "held").hold
    assert hold is not None
    rig.clock.offset = (hold.since - rig.context.now()) / 1e9 + 1


def test_the_first_version_is_among_them() -> None:
    assert (POOLS / f"{FIRST}.tar.xz").exists(), f"`python tests/upgrade/make_pool.py {FIRST}` makes it, as root"


@pytest.mark.timeout(240)
async def test_everything_is_there_byte_for_byte(old: Rig) -> None:
    await old.open()
    assert {one.name for one in old.pool.volumes.values()} == VOLUMES
    members = {f"group\0{volume(old, name).id}" for name in GROUP}
    assert {one.name for one in old.pool.snapshots.values()} == {*CUTS, *members, safety(old).name}
    assert {name: await file_of(old, volume(old, name)) for name in FILES} == {
        name: content(words) for name, words in FILES.items()
    }
    assert {name: await old.read(snapshot(old, name)) for name in CUTS} == {
        name: content(words) for name, words in CUTS.items()
    }
    assert await old.read(safety(old)) == content(SAFETY)
    raw = padded("raw")
    assert read_at(old.image(volume(old, "raw")), 0, len(raw)) == raw
    assert {member.source_id for member in group(old).members} == {str(volume(old, name).id) for name in GROUP}
    for member in group(old).members:
        if member.format in FILE_SYSTEMS:
            assert await old.read(member) == content(GROUP["thin"])
        else:
            assert read_at(old.image(member), 0, len(raw)) == raw
    thick = volume(old, "thick")
    assert (thick.thick, allocated(old.image(thick)) >= thick.size) == (True, True)


@pytest.mark.timeout(240)
async def test_what_was_half_done_is_finished_and_nothing_is_done_twice(old: Rig) -> None:
    await old.open()
    assert old.left_inside() == [], "drafts and void journal entries are gone"
    at_that_time(old)
    held = volume(old, "held")
    with pytest.raises(InUse, match="VolumeRollback shop/back"):
        await old.stage(held)
    since = held.hold
    assert since is not None
    assert (await old.rollbacks.hold(str(held.id), HOLDER)).since == since.since, "a hold that is renewed is unbroken"
    await old.rollbacks.release(str(held.id), HOLDER)
    old.clock.offset = 0.0

    rolled = volume(old, "rolled")
    again = RollbackRequest(str(rolled.id), str(snapshot(old, "rolled-then").id), ROLLBACK)
    assert await old.rollbacks.roll_back(again) == (rolled.rollbacks[0], True)
    with pytest.raises(AlreadyExists):
        await old.rollbacks.roll_back(RollbackRequest(str(rolled.id), str(safety(old).id), ROLLBACK))
    assert await file_of(old, rolled) == content("rolled then")

    half = volume(old, "half")
    async with old.shown(half) as path:
        write_file(f"{path}/data", content("half"))
    assert old.now(half).format == "ext4"
    assert await file_of(old, half) == content("half")

    draft = await old.volume("draft", "block", MIB)
    assert volume(old, "draft") == draft
    cut = await old.snapshot("interrupted", volume(old, "thin"))
    assert await old.read(cut) == content("thin")
    # The same calls as the version before made are answered with what they made.
    assert await old.volume("copy", "ext4", 32 * MIB, source=snapshot(old, "thin-cut")) == volume(old, "copy")
    assert await old.snapshot("thin-cut", volume(old, "thin")) == snapshot(old, "thin-cut")
    assert await old.group("group", *(volume(old, name) for name in GROUP)) == group(old)


@pytest.mark.timeout(240)
async def test_a_freeze_that_the_version_before_left_is_thawed(old: Rig) -> None:
    """The journal entry is its own, with the numbers of this boot and device in it."""
    (kept,) = (old.disk.point / ".freeze").iterdir()
    (fact,) = json.loads(kept.read_bytes())
    await old.open()
    thin = volume(old, "thin")
    target = await old.show(thin)
    device = old.device(thin)
    assert device is not None
    now: dict[str, Any] = journal.entry_for(old.staging(thin), device.major, device.minor, device.backing)
    assert set(fact) <= set(now)
    freeze(target)
    await old.close()
    (old.disk.point / ".freeze" / kept.name).write_text(json.dumps([{key: now[key] for key in fact}]))
    await old.open()
    assert not is_frozen(target)
    assert os.listdir(old.disk.point / ".freeze") == []
    assert Path(target, "data").read_bytes() == content("thin")


@pytest.mark.timeout(240)
async def test_a_freeze_of_that_version_is_left_alone_on_a_node_that_has_a_journal(old: Rig) -> None:
    """The two places are one journal: what lies in the pool is dealt with, and the node's entries are those of this version."""
    await old.open()
    thin = volume(old, "thin")
    await old.show(thin)
    await old.snapshot("now", thin)
    assert old.left_inside() == []
    await old.close()
    assert not old.node_local.exists()
    await old.open()


@pytest.mark.timeout(240)
async def test_it_is_used_and_emptied(old: Rig) -> None:
    await old.open()
    thin = await old.expand(volume(old, "thin"), 64 * MIB)
    async with old.shown(thin) as path:
        assert Path(path, "data").read_bytes() == content("thin")
        grown = os.statvfs(path)
        assert grown.f_blocks * grown.f_frsize > 40 * MIB
    await old.roll_back(thin, snapshot(old, "thin-cut"), "back")
    assert await file_of(old, thin) == content("thin at the cut")
    rolled = volume(old, "rolled")
    await old.roll_back(rolled, safety(old), "forth")
    assert await file_of(old, rolled) == content(SAFETY)
    await old.reopen()
    assert [one.name for one in volume(old, "rolled").rollbacks] == [ROLLBACK, "forth"]
    copy = await old.volume("of-gone", source=snapshot(old, "gone-cut"), capabilities=(mounted(""),))
    assert await file_of(old, copy) == content("gone")
    await old.delete(group(old))
    for item in (*old.pool.snapshots.values(), *old.pool.volumes.values()):
        await old.delete(item)
    await old.reopen()
    assert old.pool.volumes == old.pool.snapshots == old.pool.groups == {}


@pytest.mark.timeout(240)
async def test_a_volume_of_before_is_renamed_and_still_found_by_its_name(old: Rig) -> None:
    """Its record has no label; with one, and without it again, the call that made it finds it."""
    await old.open()
    thin = volume(old, "thin")
    record = old.image(thin).parent / "record.json"
    before = json.loads(record.read_bytes())
    assert "label" not in before
    await labels_of(old).set_label(str(thin.id), "shop data")
    assert json.loads(record.read_bytes()) == before | {"label": "shop data"}
    await old.reopen()
    assert (volume(old, "thin").label, volume(old, "thin").uid) == ("shop data", thin.uid)
    await labels_of(old).set_label(str(thin.id), "")
    assert json.loads(record.read_bytes()) == before, "the version before finds what it wrote"


def labels_of(rig: Rig) -> Labels:
    return Labels(rig.context)

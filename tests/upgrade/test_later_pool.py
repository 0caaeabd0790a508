"""A pool that a later version wrote to, and the downgrade to this one: notes stay, and states are not guessed at."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.files import write_file
from support.node_rig import Rig, make_rig
from support.sizes import MIB

from csi_driver.domain.errors import Damaged, Precondition
from csi_driver.domain.model import Volume

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

NOTE = {"noted later": {"by": "a later version", "list": [1, None, "x"]}}


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with make_rig(tmp_path) as made:
        yield made


def objects(raw: Any) -> list[dict[str, Any]]:
    """Every object of a record whose keys are the driver's."""
    if isinstance(raw, list):
        return [found for inner in raw for found in objects(inner)]
    if not isinstance(raw, dict):
        return []
    return [raw, *objects([value for key, value in raw.items() if key not in {"parameters", "labels", *NOTE}])]


def record(rig: Rig, volume: Volume) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((rig.image(volume).parent / "record.json").read_bytes())
    return found


async def rewritten(rig: Rig, path: Path, **changes: Any) -> None:
    """A record as another version would have left it."""
    await rig.close()
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


async def test_notes_of_a_later_version_outlive_all_that_this_one_does(rig: Rig) -> None:
    volume = await rig.volume("v")
    first = await rig.snapshot("first", volume)
    await rig.roll_back(volume, first, "once")
    await rig.group("g", volume)
    await rig.rollbacks.hold(str(volume.id), "me")
    await rig.close()
    kept = dict.fromkeys((rig.disk.point / "pool.json", *rig.disk.point.glob("[vsg]*/*/record.json")), b"")
    assert len(kept) == 4
    for path in kept:
        raw = json.loads(path.read_bytes())
        for place in objects(raw):
            place.update(NOTE)
        path.write_text(json.dumps(raw))
        kept[path] = path.read_bytes()
    await rig.open()
    assert {path: path.read_bytes() for path in kept} == kept, "reading writes nothing"

    await rig.rollbacks.hold(str(volume.id), "me")
    assert all(NOTE.items() <= place.items() for place in objects(record(rig, volume))), "the hold that is renewed, too"
    await rig.rollbacks.release(str(volume.id), "me")
    await rig.show(volume)
    await rig.hide(volume)
    await rig.expand(volume, 128 * MIB)
    await rig.roll_back(rig.now(volume), first, "twice")
    await rig.reopen()
    once, twice = record(rig, volume).pop("rollbacks")
    assert NOTE.items() <= once.items()
    assert "noted later" not in twice
    left = record(rig, volume) | {"rollbacks": []}
    assert all(NOTE.items() <= place.items() for place in objects(left))
    snapshots = [path for path in kept if path.parent.parent.name != "volumes"]
    assert len(snapshots) == 3
    assert all(path.read_bytes() == kept[path] for path in snapshots)


async def test_a_disk_in_a_state_that_is_not_known_is_not_emptied(rig: Rig) -> None:
    """A format state that this version did not know was taken for a half-made file system."""
    volume = await rig.volume("v")
    target = await rig.show(volume)
    write_file(f"{target}/data", b"kept")
    await rig.hide(volume)
    path = rig.image(volume).parent / "record.json"
    await rewritten(rig, path, format="ext4, looked at")
    await rig.open()
    with pytest.raises(Precondition, match=r"recorded as 'ext4, looked at', which version .* does not know"):
        await rig.stage(rig.now(volume))
    copy = await rig.volume("copy", source=await rig.snapshot("s", rig.now(volume)))
    with pytest.raises(Precondition, match="does not know"):
        await rig.stage(copy)
    await rewritten(rig, path, format="ext4")
    await rig.open()
    assert Path(await rig.show(volume), "data").read_bytes() == b"kept"


async def test_a_record_of_a_later_schema_is_named_and_left(rig: Rig) -> None:
    volume = await rig.volume("v", "block")
    path = rig.image(volume).parent / "record.json"
    await rewritten(rig, path, schema=2)
    kept = path.read_bytes()
    with pytest.raises(Damaged, match="has schema 2, and this driver reads 1: a newer driver wrote it"):
        await rig.open()
    await rig.close()
    assert path.read_bytes() == kept
    path.write_text(json.dumps(json.loads(kept) | {"schema": 1}))
    await rig.open()

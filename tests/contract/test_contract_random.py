"""Many operations in an order that nobody thought of, against a model of bytes."""

import random

import pytest
from contract_rig import BLOCK, SIZE, World
from support.files import write_pieces

from csi_driver.domain.model import Snapshot, Volume


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_object_holds_what_the_model_says(world: World, seed: int) -> None:
    chance = random.Random(seed)
    disks: dict[str, tuple[Volume, bytearray]] = {}
    cuts: dict[str, tuple[Snapshot, bytes]] = {}
    steps = world.rig.random_steps
    for step in range(steps):
        action = chance.choice("new new write write write cut cut copy clone expand back drop uncut restart".split())
        name = f"{action}-{step}"
        disk = chance.choice(sorted(disks)) if disks else None
        cut = chance.choice(sorted(cuts)) if cuts else None
        if action == "new" and len(disks) < 6:
            disks[name] = (await world.volume(name), bytearray(SIZE))
        elif action == "write" and disk:
            volume, model = disks[disk]
            at = chance.randrange(volume.size // 512) * 512
            data = chance.randbytes(min(chance.choice([1, 512, BLOCK, 3 * BLOCK]), volume.size - at))
            async with world.shown(volume) as path:
                write_pieces(path, (at, data))
            model[at : at + len(data)] = data
        elif action == "cut" and disk:
            volume, model = disks[disk]
            cuts[name] = (await world.snapshot(name, volume), bytes(model))
        elif action == "copy" and cut and len(disks) < 8:
            snapshot, frozen = cuts[cut]
            more = chance.choice([0, BLOCK])
            copy = await world.volume(name, snapshot.size + more, source=snapshot)
            disks[name] = (copy, bytearray(frozen + bytes(more)))
        elif action == "clone" and disk and len(disks) < 8:
            volume, model = disks[disk]
            disks[name] = (await world.volume(name, 0, source=volume), bytearray(model))
        elif action == "expand" and disk:
            volume, model = disks[disk]
            disks[disk] = (await world.expand(volume, volume.size + BLOCK), model + bytes(BLOCK))
        elif action == "back" and disk:
            volume, model = disks[disk]
            own = sorted(n for n, (s, _) in cuts.items() if s.source_uid == volume.uid)
            if own:
                snapshot, frozen = cuts[chance.choice(own)]
                rolled, _ = await world.roll_back(volume, snapshot, name, safety="")
                cuts[f"safety-{step}"] = (world.snapshots.get(rolled.safety), bytes(model))
                model[:] = frozen + bytes(volume.size - len(frozen))
        elif action == "drop" and disk:
            await world.volumes.delete(str(disks.pop(disk)[0].id))
        elif action == "uncut" and cut:
            await world.snapshots.delete(str(cuts.pop(cut)[0].id))
        elif action == "restart":
            await world.reopen()
    await world.reopen()
    assert {v.id for v in world.volumes.list()[0]} == {v.id for v, _ in disks.values()}
    assert {s.id for s in world.snapshots.list()[0]} == {s.id for s, _ in cuts.values()}
    for volume, model in disks.values():
        assert await world.read(volume) == model, volume.name
    for snapshot, frozen in cuts.values():
        assert await world.content(snapshot) == frozen, snapshot.name
    assert (await world.volumes.capacity({}, []))[0] == 2 * (await world.backend.space()).total - sum(
        v.size for v, _ in disks.values()
    )

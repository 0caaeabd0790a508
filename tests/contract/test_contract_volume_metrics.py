"""The series of single volumes: what they say, that there are never more than allowed, and that they go with the volume."""

from __future__ import annotations

import os
from dataclasses import replace

from contract_rig import BLOCK, RAW_BLOCK, SIZE, World, request

from csi_driver.agent.gauges import VolumeMetrics
from csi_driver.agent.metric_readers import MetricReaders
from csi_driver.domain.errors import Unavailable
from csi_driver.host.helper.client import HelperPool


def readers(world: World, most: int = 500) -> MetricReaders:
    services = world.services
    return MetricReaders(world.pools, services.usage_scanner, services.dependencies.conditions, HelperPool(), most)


async def test_what_a_volume_takes_and_shares(world: World) -> None:
    read = readers(world)
    volume = await world.volume("v")
    await world.write(volume, (0, os.urandom(4 * BLOCK)))
    await world.snapshot("s", volume)
    await world.write(volume, (0, os.urandom(BLOCK)))
    before = VolumeMetrics("contract", str(volume.id), "", "", SIZE, snapshots=1)
    assert read.volumes().shown == [before]  # no figure rather than 0, until it was scanned
    await world.services.usage_scanner.scan(world.pool, pause=0)
    assert read.volumes().shown == [replace(before, used=4 * BLOCK, exclusive=BLOCK)]
    assert read.volumes().not_shown == {"contract": 0}


async def test_they_go_with_the_volume(world: World) -> None:
    read = readers(world)
    volume = await world.volume("v")
    await world.write(volume, (0, os.urandom(4 * BLOCK)))
    await world.services.usage_scanner.scan(world.pool, pause=0)
    await world.volumes.delete(str(volume.id))
    assert read.volumes().shown == []
    again = await world.volume("v")
    (shown,) = read.volumes().shown
    assert (shown.volume, shown.used) == (str(again.id), None)  # not what the one before it had
    world.pool.unavailable_reason = Unavailable("the disk is gone")
    assert (read.volumes().shown, read.volumes().not_shown) == ([], {})
    world.pool.unavailable_reason = None


async def test_there_are_never_more_than_allowed(world: World) -> None:
    made = []
    for number, blocks in enumerate([16, 24, 32, 24, 16]):
        made.append(await world.volume(f"v{number}", blocks * BLOCK))
    for most, chosen in ((0, []), (2, [2, 1]), (4, [2, 1, 3, 0]), (5, [2, 1, 3, 0, 4])):
        volumes = readers(world, most).volumes()
        assert [shown.volume for shown in volumes.shown] == [str(made[number].id) for number in chosen]
        assert volumes.not_shown == {"contract": 5 - most}
    await world.write(made[4], (0, os.urandom(8 * BLOCK)))
    await world.services.usage_scanner.scan(world.pool, pause=0)
    assert str(made[4].id) not in {shown.volume for shown in readers(world, 4).volumes().shown}
    await world.volumes.delete(str(made[2].id))
    shown = readers(world, 2).volumes().shown
    assert [volume.volume for volume in shown] == [str(made[1].id), str(made[3].id)]  # another takes its place


async def test_the_claim_is_that_of_the_pvc(world: World) -> None:
    asked = request("pvc-1", SIZE, None, 0, (RAW_BLOCK,))
    labels = {"csi.storage.k8s.io/pvc/name": "db", "csi.storage.k8s.io/pvc/namespace": "shop"}
    await world.volumes.create(replace(asked, labels=labels))
    (shown,) = readers(world).volumes().shown
    assert (shown.namespace, shown.claim) == ("shop", "db")

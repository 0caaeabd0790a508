"""Rollbacks in a whole controller: done by the one that leads, over its channels, and counted."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from controller_rig import DRIVER, ControllerRig
from support.rpc_rig import create_volume, places
from support.waiting import until

from csi_driver._pb import csi_pb2 as C
from csi_driver.kube.resources import PVCS, PVS, ROLLBACKS, SNAPSHOT_CONTENTS, SNAPSHOTS


async def figures(rig: ControllerRig) -> str:
    url = f"http://127.0.0.1:{rig.controller.probes.port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.text()


async def test_the_leader_takes_a_disk_back(rig: ControllerRig) -> None:
    async with asyncio.timeout(60):
        while not (await rig.identity.Probe(C.ProbeRequest())).ready.value:
            await asyncio.sleep(0.01)
    made = await rig.stub.CreateVolume(create_volume("pvc-1", accessibility_requirements=places("n-1")))
    volume_id = made.volume.volume_id
    cut = await rig.stub.CreateSnapshot(C.CreateSnapshotRequest(name="s", source_volume_id=volume_id))
    fake = rig.fake

    def put(kind: Any, name: str, **more: Any) -> str:
        return str(fake.put(kind, {"metadata": {"name": name}, **more})["metadata"]["uid"])

    uid = put(PVCS, "v1", spec={"volumeName": "pvc-1"}, status={"phase": "Bound"})
    ref = {"namespace": "default", "name": "v1", "uid": uid}
    put(PVS, "pvc-1", spec={"claimRef": ref, "csi": {"driver": DRIVER, "volumeHandle": volume_id}})
    uid = put(SNAPSHOTS, "s1", status={"readyToUse": True, "boundVolumeSnapshotContentName": "c1"})
    ref = {"namespace": "default", "name": "s1", "uid": uid}
    handle = {"snapshotHandle": cut.snapshot.snapshot_id}
    put(SNAPSHOT_CONTENTS, "c1", spec={"volumeSnapshotRef": ref, "driver": DRIVER}, status=handle)
    put(ROLLBACKS, "back", spec={"claimName": "v1", "snapshotName": "s1", "safetySnapshot": False})
    put(ROLLBACKS, "waits", spec={"claimName": "v1", "snapshotName": "later"})

    def phase(name: str) -> str:
        return str(((fake.get(ROLLBACKS, name) or {}).get("status") or {}).get("phase"))

    await until(lambda: (phase("back"), phase("waits")) == ("Completed", "Pending"))
    await until(lambda: not (fake.get(ROLLBACKS, "back") or {})["metadata"].get("finalizers"))
    volume = rig.agents["n-1"].pool.volumes[volume_id.rsplit(":", 1)[1]]
    assert [rolled.snapshot for rolled in volume.rollbacks] == [cut.snapshot.snapshot_id]
    metrics = await figures(rig)
    assert 'tidemark_rollbacks{phase="Completed"} 1.0' in metrics
    assert 'tidemark_rollbacks{phase="Pending"} 1.0' in metrics
    assert 'tidemark_rollbacks{phase="RollingBack"} 0.0' in metrics

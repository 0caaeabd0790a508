"""What real agents and a real controller say at /metrics, before and after something happened."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest
from agent.outside_rig import free, use
from controller.controller_rig import ControllerRig
from prometheus_rig import Recording
from support.agent_process import AgentRig
from support.fake_api import FakeApi
from support.ports import free_port
from support.rpc_rig import create_volume, places
from support.sizes import MIB

from csi_driver._pb import csi_pb2 as C
from csi_driver.domain.model import AccessMode, Capability, SizeRange
from csi_driver.domain.timestamps import format_timestamp
from csi_driver.kube.resources import PVCS, PVS, ROLLBACKS, SCHEDULES
from csi_driver.operator.agents import health
from csi_driver.rpc.clients.cli_client import CallRefused, Client

EXT4 = Capability("mount", AccessMode.MULTI_WRITER, "ext4")
PVC = "csi.storage.k8s.io/pvc"


@dataclass(frozen=True)
class Place:
    """Where one agent is, and the PVC that it serves."""

    node: str
    pool: str
    claim: str
    address: str


PLACES = (Place("n-1", "fast", "db", "10.0.0.1:9808"), Place("n-10", "bulk", "web", "10.0.0.2:9808"))
CONTROLLER = "10.0.0.3:9808"
CLAIMS = "shop"

SETTLED = (
    'tidemark_agent_reachable{node="n-1"} 1',
    'tidemark_agent_reachable{node="n-10"} 1',
    "tidemark_leading 1",
    'result="made"',
    'tidemark_rollbacks{phase="Pending"} 1',
)
"""What a controller says once it has seen everything."""


@dataclass
class Scrapes:
    """Two scrapes of each process, by its address."""

    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)

    def as_scraped(self, target: Callable[[str], dict[str, str]]) -> list[Recording]:
        """With the labels that a configuration of Prometheus gives to a target."""
        return [Recording(target(address), text, self.after[address]) for address, text in self.before.items()]


def by_the_operator(address: str) -> dict[str, str]:
    """As the chart's ServiceMonitor has it, in a release called blue."""
    component, node = next((("agent", p.node) for p in PLACES if p.address == address), ("controller", "n-1"))
    return {
        "job": f"blue-tidemark-{component}",
        "instance": node,
        "namespace": "storage",
        "pod": f"{component}-{address}",
    }


def by_hand(address: str) -> dict[str, str]:
    """As docs/how-to/monitoring.md has it: one job for all, and an address."""
    return {"job": "tidemark", "instance": address, "pod": f"pod-{address}"}


def text_of(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def record_agent(place: Place, root: Path, scrapes: Scrapes) -> None:
    """A volume in use, with snapshots, and some that are refused; an agent that begins again scans what there is."""
    port = free_port()
    rig = AgentRig(root, "1Gi", "--node-name", place.node, "--metrics-address", f"127.0.0.1:{port}")
    options = ("--pool", f"{place.pool}=reflink:{rig.pool}")

    def snapshots(client: Client, volume: str, *names: str) -> None:
        for name in names:
            client.create_snapshot(volume, name)
            with pytest.raises(CallRefused):
                client.create_snapshot(f"{volume[:-1]}{'1' if volume[-1] == '0' else '0'}", f"{name}-of-nothing")

    try:
        with rig.start(*options) as client:
            pvc = {f"{PVC}/name": place.claim, f"{PVC}/namespace": CLAIMS}
            volume = client.create_volume("v", SizeRange(64 * MIB), [EXT4], pvc).id
            client.create_volume("of-no-claim", SizeRange(32 * MIB), [EXT4])
            (use(rig, client, volume, "target", EXT4) / "file").write_bytes(b"x" * MIB)
            snapshots(client, volume, "s0")
        assert rig.stop() == 0
        with rig.start(*options) as client:
            snapshots(client, volume, "s1")
            deadline = time.monotonic() + 60
            while "tidemark_pool_extents{" not in (text := text_of(port)):  # the end of the scan
                assert time.monotonic() < deadline, text
                time.sleep(0.05)
            scrapes.before[place.address] = text
            snapshots(client, volume, "s2", "s3")
            scrapes.after[place.address] = text_of(port)
            free(rig, client, volume, "target")
        assert rig.stop() == 0
    finally:
        rig.clean()


async def record_controller(scrapes: Scrapes) -> None:
    """A leader with agents, a schedule that has taken a snapshot, and a rollback that waits."""
    with patch.object(health, "EVERY_SECONDS", 0.05):
        await _record_controller(scrapes)


async def _record_controller(scrapes: Scrapes) -> None:
    async with FakeApi() as fake, ControllerRig(fake) as rig:
        port = rig.controller.probes.port
        async with asyncio.timeout(60):
            while not (await rig.identity.Probe(C.ProbeRequest())).ready.value:
                await asyncio.sleep(0.01)
        made = await rig.stub.CreateVolume(create_volume("pvc-1", accessibility_requirements=places("n-1")))
        hour_ago = format_timestamp(int(time.time()) - 3600)  # so that the run of this minute is due at once
        meta = {"name": "db", "labels": {"app": "db"}, "creationTimestamp": hour_ago}
        bound = {"spec": {"volumeName": "pvc-1"}, "status": {"phase": "Bound"}}
        uid = fake.put(PVCS, {"metadata": meta, **bound}, CLAIMS)["metadata"]["uid"]
        source = {"driver": "csi.tidemark.dev", "volumeHandle": made.volume.volume_id}
        ref = {"namespace": CLAIMS, "name": "db", "uid": uid}
        fake.put(PVS, {"metadata": {"name": "pvc-1"}, "spec": {"claimRef": ref, "csi": source}})
        schedule = {"name": "often", "uid": "u", "generation": 1, "creationTimestamp": hour_ago}
        spec = {"every": "1m", "startingDeadline": "1h", "selector": {"matchLabels": {"app": "db"}}}
        fake.put(SCHEDULES, {"metadata": schedule, "spec": spec}, CLAIMS)
        fake.put(
            ROLLBACKS, {"metadata": {"name": "waits"}, "spec": {"claimName": "db", "snapshotName": "later"}}, CLAIMS
        )
        async with asyncio.timeout(60):
            text = ""
            while not all(part in text for part in SETTLED):
                text = await asyncio.to_thread(text_of, port)
                await asyncio.sleep(0.05)
        scrapes.before[CONTROLLER] = text
        await rig.stub.CreateVolume(create_volume("pvc-2", accessibility_requirements=places("n-1")))
        scrapes.after[CONTROLLER] = await asyncio.to_thread(text_of, port)

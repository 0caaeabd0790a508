"""A cluster in this process for rollbacks: an API in memory, agents behind mutual TLS, a snapshotter, a kubelet, a clock.

The operator takes one step at a time, on a clock that the test turns, and can be killed before or after any call that
changes something. What the disk must hold is known by a model.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from csi_driver.domain.errors import DriverError, InUse
from csi_driver.domain.model import AccessMode, Capability, SizeRange, Snapshot, Volume, VolumeRequest
from csi_driver.domain.timestamps import format_timestamp
from csi_driver.kube.client import Api
from csi_driver.kube.events import Events
from csi_driver.kube.informer import Informer
from csi_driver.kube.resources import EVENTS, PODS, PVCS, PVS, ROLLBACKS, SNAPSHOT_CLASSES, SNAPSHOT_CONTENTS, SNAPSHOTS
from csi_driver.operator.rollback.controller import FIRST_BACKOFF_SECONDS, RollbackController
from csi_driver.operator.rollback.reconciler import RollbackReconciler
from csi_driver.rpc.clients.agent_api import AgentApi
from csi_driver.service.snapshots import SnapshotRequest
from support.cluster_rig import Cluster
from support.dying import Dying, Killed, KillPoint
from support.fake_api import FakeApi
from support.rollback_cases import DRIVER, claim, content, pod, snapshot, snapshot_class, volume

SIZE = 4096
NAMESPACE = "shop"
RAW = Capability("block", AccessMode.WRITER)
CHANGING = {"create", "patch", "replace", "delete", "hold", "release", "roll_back"}


class World(KillPoint):
    """One claim `v1` on node n-1 with its disk, made again by `disk()`; `forward` turns the clock."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.offset = 0.0
        self.kills = 0
        self.agent_up = True
        self.names = itertools.count(1)
        self.cluster = Cluster(directory, now=lambda: int(self.now() * 1e9))
        self.api: Api

    def now(self) -> float:
        return time.time() + self.offset

    @asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        async with FakeApi() as self.fake, self.cluster:
            self.api = await self.fake.connect()
            self.fake.put(SNAPSHOT_CLASSES, snapshot_class())
            self.agent = self.cluster.agents["n-1"]
            self.nodes = self.agent.services.node_volumes
            self.snapshots = self.agent.services.snapshots
            await self.start()
            yield self

    async def start(self) -> None:
        """The operator's process, from nothing."""
        agents = Dying(AgentApi(self.cluster.channels), self, CHANGING)
        api: Any = Dying(self.api, self, CHANGING, but={EVENTS})
        events = Events(api, "tidemark")
        self.reconciler = RollbackReconciler(api, agents, events, DRIVER, self.now, self.now)  # type: ignore[arg-type]

    # ---- the cluster's objects

    async def disk(self) -> Volume:
        """A new disk under the claim v1; what the last test left is gone."""
        for kind in (ROLLBACKS, SNAPSHOTS, SNAPSHOT_CONTENTS, PVCS, PVS, PODS, EVENTS):
            for made in self.fake.all(kind):
                self.fake.remove(kind, made["metadata"]["name"], made["metadata"].get("namespace", ""))
        name = f"pvc-{next(self.names)}"
        request = VolumeRequest(name, SizeRange(SIZE), (RAW,))
        self.made = await self.agent.services.volumes.create(request)
        self.volume_id = str(self.made.id)
        self.model = b"\0"
        self.fake.put(PVCS, claim(metadata={"name": "v1", "namespace": NAMESPACE}, spec={"volumeName": name}))
        uid = self.got(PVCS, "v1")["metadata"]["uid"]
        spec = {"csi": {"driver": DRIVER, "volumeHandle": self.volume_id}}
        spec |= {"claimRef": {"namespace": NAMESPACE, "name": "v1", "uid": uid}}
        self.fake.put(PVS, volume(metadata={"name": name}, spec=spec))
        self.pv = name
        return self.made

    async def written_since_s1(self) -> None:
        """A new volume that holds `1`, its snapshot s1, and `2` written since."""
        await self.disk()
        await self.write(b"1")
        await self.cut("s1")
        await self.write(b"2")

    async def cut(self, name: str, volume_id: str = "") -> Snapshot:
        """A VolumeSnapshot that is ready."""
        request = SnapshotRequest(f"{name}-of-{self.pv}", volume_id or self.volume_id)
        made = await self.snapshots.create(request)
        self.fake.put(SNAPSHOTS, snapshot(metadata={"name": name, "namespace": NAMESPACE}))
        self.bind(name, str(made.id))
        return made

    def bind(self, name: str, handle: str) -> None:
        """A content for a VolumeSnapshot, and the snapshot ready."""
        uid = self.got(SNAPSHOTS, name)["metadata"]["uid"]
        ref = {"namespace": NAMESPACE, "name": name, "uid": uid}
        made = content(
            metadata={"name": f"content-{uid}"},
            spec={"driver": DRIVER, "volumeSnapshotRef": ref},
            status={"readyToUse": True, "snapshotHandle": handle},
        )
        self.fake.put(SNAPSHOT_CONTENTS, made)
        ready = {"readyToUse": True, "boundVolumeSnapshotContentName": f"content-{uid}"}
        self.fake.change(SNAPSHOTS, name, {"status": ready}, NAMESPACE)

    def ask(self, name: str = "back", to: str = "s1", **spec: Any) -> dict[str, Any]:
        """Apply a VolumeRollback."""
        spec = {"claimName": "v1", "snapshotName": to, "safetySnapshot": True, "keepSafety": 3, "timeout": "10m"} | spec
        meta = {"name": name, "namespace": NAMESPACE, "creationTimestamp": format_timestamp(self.now())}
        return self.fake.put(ROLLBACKS, {"metadata": meta, "spec": spec})

    def got(self, kind: Any, name: str) -> dict[str, Any]:
        found = self.fake.get(kind, name, NAMESPACE)
        assert found is not None
        return found

    def status(self, name: str = "back") -> dict[str, Any]:
        status: dict[str, Any] = self.got(ROLLBACKS, name).get("status") or {}
        return status

    async def ask_to_go(self, name: str = "back") -> None:
        await self.api.delete(ROLLBACKS, name, NAMESPACE)

    def there(self, name: str = "back") -> bool:
        return self.fake.get(ROLLBACKS, name, NAMESPACE) is not None

    def run_pod(self, name: str = "web-1", owner: tuple[str, str] | None = None) -> None:
        self.fake.put(PODS, pod(name, owner=owner))

    def end_pod(self, name: str = "web-1") -> None:
        self.fake.remove(PODS, name, NAMESPACE)

    async def snapshotter(self) -> None:
        """What snapshot-controller and csi-snapshotter do, once."""
        for made in self.fake.all(SNAPSHOTS):
            if (made.get("status") or {}).get("readyToUse"):
                continue
            named = self.got(PVCS, made["spec"]["source"]["persistentVolumeClaimName"])
            handle = self.got(PVS, named["spec"]["volumeName"])["spec"]["csi"]["volumeHandle"]
            cut = await self.snapshots.create(SnapshotRequest(f"snapshot-{made['metadata']['uid']}", handle))
            self.bind(made["metadata"]["name"], str(cut.id))

    async def agent_down(self) -> None:
        self.agent_up = False
        await self.agent.server.stop(0)

    async def agent_back(self) -> None:
        if not self.agent_up:
            await self.agent.start()
            self.agent_up = True

    # ---- the disk

    @property
    def disk_now(self) -> Volume:
        return self.agent.pool.volumes[self.made.id.hash]

    @property
    def holder(self) -> str:
        """Who holds the disk now."""
        return self.agent.context.holds.current_holder(self.disk_now)

    def bytes_of(self, item: Volume | Snapshot) -> bytes:
        """The first byte tells what was written last."""
        return Path(self.agent.backend._image(item).path).read_bytes()[:1]

    async def write(self, data: bytes) -> bool:
        """Stage, write, unstage, as the kubelet would for a short pod; False where that is refused."""
        staging = str(self.directory / "staging")
        try:
            await self.nodes.stage(self.volume_id, staging, RAW)
        except InUse:
            return False
        with open(os.path.join(staging, "device"), "r+b") as device:
            device.write(data)
        await self.nodes.unstage(self.volume_id, staging)
        self.model = data
        return True

    # ---- time and the operator

    async def step(self, name: str = "back") -> float | None:
        """One reconciliation; a killed operator is started again, and one that failed is repeated after its first backoff."""
        try:
            return (await self.reconciler.reconcile((NAMESPACE, name))).requeue_after
        except DriverError:
            return FIRST_BACKOFF_SECONDS
        except Killed:
            self.kills += 1
            self.kill_at = None
            await self.start()
            return 0.0

    async def run(self, name: str = "back", until: str = "", limit: int = 300) -> None:
        """Step, turning the clock by what each step says, until nothing is left to do, or up to a phase."""
        for _ in range(limit):
            if until and self.there(name) and self.status(name).get("phase") == until:
                return
            wait = await self.step(name)
            if wait is None:
                return
            self.offset += wait
            if wait and self.agent_up:
                await self.snapshotter()
        raise AssertionError(f"no end after {limit} steps: {self.status(name) if self.there(name) else 'gone'}")


@asynccontextmanager
async def reconciling(world: World) -> AsyncIterator[RollbackController]:
    """The reconciler, and a snapshotter that looks all the time."""
    informer = Informer(world.api, ROLLBACKS)
    informer.start()
    made = RollbackController(
        world.api,
        AgentApi(world.cluster.channels),
        informer,
        Events(world.api, "tidemark"),
        "csi.tidemark.dev",
        world.now,
    )

    async def snapshotter() -> None:
        while True:
            await world.snapshotter()
            await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(made.run()), asyncio.create_task(snapshotter())]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await informer.stop()


def nothing_left(world: World, name: str = "back") -> None:
    """No hold, no finalizer, nothing more to do."""
    assert world.holder == ""
    if world.there(name):
        assert not world.got(ROLLBACKS, name)["metadata"].get("finalizers")


async def completed(world: World, name: str, to: str, **spec: object) -> dict[str, object]:
    world.ask(name, to, **spec)
    await world.run(name)
    status = world.status(name)
    assert (status["phase"], status["reason"]) == ("Completed", "RolledBack"), status
    nothing_left(world, name)
    return status

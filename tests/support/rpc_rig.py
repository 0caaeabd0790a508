"""A whole agent in this process: a memory pool, the services, the server on a socket, and stubs that call it."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_driver._pb import csi_pb2, csi_pb2_grpc, tidemark_pb2_grpc
from csi_driver.backends.base import SnapshotTimings
from csi_driver.backends.memory.backend import Faults, MemoryBackend
from csi_driver.domain.capacity import CapacityPolicy
from csi_driver.domain.model import Snapshot, Volume
from csi_driver.rpc.agent.servicers import agent_servicers
from csi_driver.rpc.interceptors import CallTracker
from csi_driver.rpc.server import Server
from csi_driver.service.build import build_services
from csi_driver.service.pools import Pool, Pools

MIB = 1 << 20
GIB = 1 << 30
OWNER = "node-1"
CODE = grpc.StatusCode
Modes = csi_pb2.VolumeCapability.AccessMode


class MountableMemory(MemoryBackend):
    """Keeps records of volumes for mounting too; nothing can be mounted from it all the same."""

    async def create_volume(self, volume: Volume, source: Volume | Snapshot | None) -> SnapshotTimings:
        report = await super().create_volume(replace(volume, request=replace(volume.request, capabilities=())), source)
        await self.save_volume(volume)
        return report


class Recorder:
    """What the observers of calls and cuts were told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.lates: list[tuple[str, str]] = []
        self.cuts: list[str] = []
        self.checks: list[str] = []

    def call(self, method: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.calls.append((method, code))

    def after_cancel(self, method: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.lates.append((method, code))

    def snapshot_taken(self, pool: str, report: SnapshotTimings) -> None:
        self.cuts.append(pool)

    def checked(self, pool: str, result: str) -> None:
        self.checks.append(result)


class Rig:
    """One agent and its clients."""

    def __init__(self, directory: Path, observer: Any = None) -> None:
        self.directory = directory
        self.seen = Recorder()
        self.faults = Faults()
        self.clock = itertools.count(1_700_000_000_123_456_789, 1_000_003)
        self.backend = MountableMemory("default", OWNER, 64 * GIB, faults=self.faults, now=lambda: next(self.clock))
        self.other = MountableMemory("other", OWNER, 8 * GIB, now=lambda: next(self.clock))
        self.opened = [Pool(self.backend, CapacityPolicy()), Pool(self.other, CapacityPolicy())]
        self.pools = Pools(OWNER, self.opened)
        self.pools.locks.patience = (
            0.0  # what stands still here stands until the test lets it go: nobody need wait to see that
        )
        uids = itertools.count()
        services = build_services(
            self.pools, now=lambda: next(self.clock), new_uid=lambda: f"uid-{next(uids)}", observer=self.seen
        )
        self.context = services.dependencies
        self.volumes, self.snapshots = services.volumes, services.snapshots
        self.nodes, self.trees = services.node_volumes, services.lineage
        self.ready: Any = lambda: True
        self.calls = CallTracker(observer or self.seen)
        self.servicers = agent_servicers(services, "csi.tidemark.dev", OWNER, lambda: bool(self.ready()))
        self.server = Server(f"unix://{directory}/csi/csi.sock", self.servicers, [self.calls])

    async def __aenter__(self) -> Rig:
        for pool in self.opened:
            await pool.open()
        await self.server.start()
        self.channel = self.connect()
        self.identity = csi_pb2_grpc.IdentityStub(self.channel)
        self.controller = csi_pb2_grpc.ControllerStub(self.channel)
        self.groups = csi_pb2_grpc.GroupControllerStub(self.channel)
        self.node = csi_pb2_grpc.NodeStub(self.channel)
        self.tidemark = tidemark_pb2_grpc.TidemarkStub(self.channel)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.channel.close()
        await self.server.stop(0)
        await self.calls.drain(5)
        for backend in (self.backend, self.other):
            await backend.close()
            backend.discard()

    def connect(self, *options: tuple[str, Any]) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"unix://{self.server.path}", options=options or None)

    def contents(self) -> dict[str, Any]:
        """All that a refused call must leave alone: what lies in the pools, and what the services know of it."""
        found: dict[str, Any] = {}
        for pool in self.opened:
            backend = pool.backend
            assert isinstance(backend, MemoryBackend)
            for kind in ("_volumes", "_snapshots", "_groups"):
                for key, held in getattr(backend, kind).items():
                    sizes = {name: (image.size, image.allocated) for name, image in held.images.items()}
                    found[f"{pool.name}{kind}/{key}"] = (held.record, sizes)
            found[f"{pool.name} index"] = (dict(pool.volumes), dict(pool.snapshots), dict(pool.groups), pool.pending)
            found[f"{pool.name} shown"] = sorted(
                path for volume in pool.volumes.values() for path in backend._access.paths(volume)
            )
        found["locks"] = (dict(self.pools.locks._exclusive), dict(self.pools.locks._shared))
        return found

    def path(self, name: str) -> str:
        return str(self.directory / name)

    # Requests that succeed as they are, to be changed by the tests.

    async def volume(self, name: str = "v", size: int = MIB, **fields: Any) -> csi_pb2.Volume:
        answer = await self.controller.CreateVolume(create_volume(name, size, **fields))
        return answer.volume

    async def snapshot(self, volume_id: str, name: str = "s") -> csi_pb2.Snapshot:
        request = csi_pb2.CreateSnapshotRequest(name=name, source_volume_id=volume_id)
        return (await self.controller.CreateSnapshot(request)).snapshot

    async def group(self, *ids: str, name: str = "g") -> csi_pb2.VolumeGroupSnapshot:
        request = csi_pb2.CreateVolumeGroupSnapshotRequest(name=name, source_volume_ids=ids)
        return (await self.groups.CreateVolumeGroupSnapshot(request)).group_snapshot

    async def stage(self, volume_id: str) -> str:
        staging = self.path("staging")
        request = csi_pb2.NodeStageVolumeRequest(
            volume_id=volume_id, staging_target_path=staging, volume_capability=block()
        )
        await self.node.NodeStageVolume(request)
        return staging


def block(mode: int = Modes.SINGLE_NODE_WRITER) -> csi_pb2.VolumeCapability:
    return csi_pb2.VolumeCapability(
        block=csi_pb2.VolumeCapability.BlockVolume(),
        access_mode=Modes(mode=mode),  # type: ignore[arg-type]
    )


def mount(fs_type: str = "", mode: int = Modes.SINGLE_NODE_WRITER, **fields: Any) -> csi_pb2.VolumeCapability:
    return csi_pb2.VolumeCapability(
        mount=csi_pb2.VolumeCapability.MountVolume(fs_type=fs_type, **fields),
        access_mode=Modes(mode=mode),  # type: ignore[arg-type]
    )


def create_volume(name: str = "v", size: int = MIB, **fields: Any) -> csi_pb2.CreateVolumeRequest:
    fields.setdefault("volume_capabilities", [block()])
    if size:
        fields.setdefault("capacity_range", csi_pb2.CapacityRange(required_bytes=size))
    return csi_pb2.CreateVolumeRequest(name=name, **fields)


def from_snapshot(snapshot_id: str) -> csi_pb2.VolumeContentSource:
    return csi_pb2.VolumeContentSource(snapshot=csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=snapshot_id))


def from_volume(volume_id: str) -> csi_pb2.VolumeContentSource:
    return csi_pb2.VolumeContentSource(volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id=volume_id))


def places(*owners: str, key: str = "topology.csi.tidemark.dev/node") -> csi_pb2.TopologyRequirement:
    found = [csi_pb2.Topology(segments={key: owner}) for owner in owners]
    return csi_pb2.TopologyRequirement(requisite=found, preferred=found[:1])


async def refused(call: Any, code: grpc.StatusCode, *words: str) -> str:
    """The call must fail so, with a message that has these words, says what to do, and carries no details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    assert error.code() is code, f"{error.code()}: {error.details()}"
    message = error.details() or ""
    for word in words:
        assert word in message
    assert len(message.encode()) <= 1024
    # A reason and a way out: "reason: what to do", or "reason; what to do".
    assert ": " in message or "; " in message, message
    assert "grpc-status-details-bin" not in dict(error.trailing_metadata() or ())
    return message


async def outlived(make: Callable[[float], Awaitable[Any]], pause: Any) -> None:
    """Make a call whose deadline passes while the work for it stands at `pause`, however long the way there takes.

    `make` is given the seconds. Those after a deadline that passed too early may find the work of that one, and are refused.
    """
    seconds = 0.2
    while not pause.reached.is_set():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await make(seconds)
        assert caught.value.code() in {CODE.DEADLINE_EXCEEDED, CODE.ABORTED}
        seconds *= 2


async def refused_unchanged(rig: Rig, call: Any, code: grpc.StatusCode, *words: str) -> str:
    """The call must fail so and leave the pools as they were."""
    before = rig.contents()
    message = await refused(call, code, *words)
    assert rig.contents() == before
    return message

"""The controller's port to the agents, over their gRPC services. See service/agents.py."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
import structlog

from csi_driver._pb import csi_pb2, tidemark_pb2
from csi_driver.domain.capacity import human
from csi_driver.domain.errors import Damaged, DriverError, NotFound, OtherVersion, Unavailable
from csi_driver.domain.ids import PoolRef
from csi_driver.domain.model import CompletedRollback, Hold
from csi_driver.domain.routing import known_pool
from csi_driver.rpc import convert
from csi_driver.rpc.agent.identity import CERTIFICATES
from csi_driver.rpc.clients.agent_channels import AgentChannels
from csi_driver.rpc.errors import from_status
from csi_driver.service.agent_routing import AgentRouter, Purpose
from csi_driver.service.agents import AgentPool, FullPool, VolumeDescription
from csi_driver.service.rollbacks import RollbackRequest

PAGE_SIZE = 1000
"""Volumes of one answer of ListVolumes."""

PROBE_SECONDS = 5.0
"""For calls that take no lock and answer from memory."""

RECORD_SECONDS = 20.0
"""For calls that read or change a record. DescribeVolume asks the kernel too, which answers at once or not at all."""

ROLLBACK_SECONDS = 120.0
"""For Rollback: the clone of a badly fragmented image takes this long. The agent goes on after it; a retry finds it."""

Answer = TypeVar("Answer")

log = structlog.get_logger()


class AgentApi:
    """All agents, each reached by its owner. See service.agents.AgentApi."""

    def __init__(self, channels: AgentChannels) -> None:
        self._channels = channels
        self._router = AgentRouter(self)

    async def describe_volume(self, volume_id: str) -> VolumeDescription:
        """See RollbackAgents."""
        try:
            volume, snapshots = await self._describe(volume_id)
        except Unavailable as error:
            owner = known_pool(volume_id, "volume").owner
            discovery = self._channels.discovery
            # While the cluster knows the node, or an agent there, the agent may yet tell what became of the volume.
            if not discovery.is_decommissioned(owner) or discovery.endpoint(owner) is not None:
                raise
            raise NotFound(f"{volume_id} was lost with node {owner}, which was decommissioned") from error
        return VolumeDescription(
            id=volume.id,
            uid=volume.uid,
            snapshots=snapshots,
            used_by=tuple(volume.used_by),
            hold=_hold(volume.hold) if volume.HasField("hold") else None,
            rollbacks=tuple(
                CompletedRollback(r.name, r.snapshot_id, r.at.ToNanoseconds(), r.safety_snapshot_id)
                for r in volume.rollbacks
            ),
        )

    async def hold(self, volume_id: str, holder: str) -> None:
        """See RollbackAgents."""
        request = tidemark_pb2.HoldRequest(volume_id=volume_id, holder=holder)
        await self._call("Hold", volume_id, request, tidemark_pb2.HoldResponse, RECORD_SECONDS)

    async def release(self, volume_id: str, holder: str) -> None:
        """See RollbackAgents."""
        request = tidemark_pb2.ReleaseRequest(volume_id=volume_id, holder=holder)
        await self._call("Release", volume_id, request, tidemark_pb2.ReleaseResponse, RECORD_SECONDS)

    async def roll_back(self, request: RollbackRequest) -> None:
        """See RollbackAgents."""
        message = tidemark_pb2.RollbackRequest(
            volume_id=request.volume_id,
            snapshot_id=request.snapshot_id,
            name=request.name,
            holder=request.holder,
            skip_safety_snapshot=request.skip_safety,
            safety_snapshot_id=request.safety,
        )
        await self._call("Rollback", request.volume_id, message, tidemark_pb2.RollbackResponse, ROLLBACK_SECONDS)

    async def list_volumes(self) -> Mapping[str, Sequence[str]]:
        """See VolumeLister."""
        return await self._of_each(self._known_owners(), self._volume_ids)

    async def available_capacity(self, owner: str, pool: str, parameters: Mapping[str, str]) -> int:
        """See AgentCapacity."""
        request = csi_pb2.GetCapacityRequest(
            parameters={**({"pool": pool} if pool else {}), **parameters}, accessible_topology=convert.topology(owner)
        )
        method, kind = "csi.v1.Controller/GetCapacity", csi_pb2.GetCapacityResponse
        try:
            answer = await self._channels.call(owner, method, request, kind, PROBE_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"agent of node {owner} does not report its capacity: {error.details()}") from error
        return int(answer.available_capacity)

    async def full_pools(self) -> Mapping[str, Sequence[FullPool]]:
        """See FullPoolLister."""
        return await self._of_each(self._known_owners(), self._full_pools)

    async def list_pools(self) -> Mapping[str, Sequence[AgentPool]]:
        """See PoolLister."""
        return await self._of_each(self._known_owners(), self._agent_pools)

    async def reachable_agents(self) -> Mapping[str, bool]:
        """See AgentHealth."""
        owners = self._known_owners()
        answers = await self._of_each(owners, self._probe)
        return {owner: owner in answers for owner in owners}

    async def close_removed(self) -> None:
        """See AgentHealth."""
        await self._channels.close_removed()

    async def loaded_certificates(self) -> Mapping[str, str]:
        """See CertificateReports."""
        discovery = self._channels.discovery
        if not discovery.has_synced():
            raise Unavailable("the list of agents was not read yet: the agents to wait for are not known")
        endpoints = [discovery.endpoint(owner) for owner in discovery.owners()]
        owners = [endpoint.owner for endpoint in endpoints if endpoint and endpoint.address and endpoint.ready]
        answers = await asyncio.gather(*(self._fingerprint(owner) for owner in owners))
        return dict(zip(owners, answers, strict=True))

    def _known_owners(self) -> list[str]:
        discovery = self._channels.discovery
        return discovery.owners() if discovery.has_synced() else []

    async def _of_each(self, owners: Sequence[str], ask: Callable[[str], Awaitable[Answer]]) -> dict[str, Answer]:
        """Ask all agents at the same time; an owner whose agent does not answer is left out."""

        async def answer_of(owner: str) -> Answer | None:
            try:
                return await ask(owner)
            except (DriverError, grpc.aio.AioRpcError) as error:
                log.debug("agent does not answer", node=owner, call=ask.__name__.strip("_"), error=str(error))
                return None

        answers = await asyncio.gather(*(answer_of(owner) for owner in owners))
        return {owner: answer for owner, answer in zip(owners, answers, strict=True) if answer is not None}

    async def _volume_ids(self, owner: str) -> list[str]:
        method, kind = "csi.v1.Controller/ListVolumes", csi_pb2.ListVolumesResponse
        ids: list[str] = []
        token = ""
        while True:
            request = csi_pb2.ListVolumesRequest(max_entries=PAGE_SIZE, starting_token=token)
            answer = await self._channels.call(owner, method, request, kind, RECORD_SECONDS)
            ids += [entry.volume.volume_id for entry in answer.entries]
            token = answer.next_token
            if not token:
                return ids

    async def _full_pools(self, owner: str) -> list[FullPool]:
        return [_full_pool(owner, pool) for pool in await self._pools(owner) if pool.full]

    async def _agent_pools(self, owner: str) -> list[AgentPool]:
        return [AgentPool(PoolRef(pool.owner, pool.name), pool.uuid) for pool in await self._pools(owner)]

    async def _pools(self, owner: str) -> Sequence[tidemark_pb2.Pool]:
        method, kind = "tidemark.v1.Tidemark/ListPools", tidemark_pb2.ListPoolsResponse
        answer = await self._channels.call(owner, method, tidemark_pb2.ListPoolsRequest(), kind, PROBE_SECONDS)
        pools: Sequence[tidemark_pb2.Pool] = answer.pools
        return pools

    async def _probe(self, owner: str) -> bool:
        method, kind = "csi.v1.Identity/Probe", csi_pb2.ProbeResponse
        await self._channels.call(owner, method, csi_pb2.ProbeRequest(), kind, PROBE_SECONDS)
        return True

    async def _fingerprint(self, owner: str) -> str:
        method, kind = "csi.v1.Identity/GetPluginInfo", csi_pb2.GetPluginInfoResponse
        try:
            answer = await self._channels.call(owner, method, csi_pb2.GetPluginInfoRequest(), kind, PROBE_SECONDS)
        except (Unavailable, grpc.aio.AioRpcError) as error:
            log.warning("agent does not report its certificates", node=owner, error=str(error))
            return ""
        return str(answer.manifest.get(CERTIFICATES, ""))

    async def _describe(self, volume_id: str) -> tuple[tidemark_pb2.TreeNode, dict[str, int]]:
        """Return a volume, and the time of each of its own snapshots by id."""
        request = tidemark_pb2.DescribeVolumeRequest(volume_id=volume_id)
        kind = tidemark_pb2.DescribeVolumeResponse
        try:
            answer = await self._call("DescribeVolume", volume_id, request, kind, RECORD_SECONDS)
        except OtherVersion:
            return await self._describe_by_tree(volume_id)
        return answer.volume, {snapshot.id: snapshot.created.ToNanoseconds() for snapshot in answer.snapshots}

    async def _describe_by_tree(self, volume_id: str) -> tuple[tidemark_pb2.TreeNode, dict[str, int]]:
        """Return the same from an agent of 4414c43, which does not have DescribeVolume."""
        request = tidemark_pb2.GetTreeRequest(volume_id=volume_id)
        tree = await self._call("GetTree", volume_id, request, tidemark_pb2.GetTreeResponse, RECORD_SECONDS)
        volume = next((node for node in tree.nodes if node.id == volume_id and node.kind == node.VOLUME), None)
        if volume is None:
            raise Damaged(f"the agent's answer about {volume_id} does not contain that volume: report this")
        return volume, {
            node.id: node.created.ToNanoseconds()
            for node in tree.nodes
            if node.kind == node.SNAPSHOT and node.parent_uid == volume.uid
        }

    async def _call(self, method: str, volume_id: str, request: Any, answer: type[Any], seconds: float) -> Any:
        """Call tidemark.v1 at the agent that has the volume; what it refuses is raised as an error of domain.errors."""
        owner = await self._router.agent_for(known_pool(volume_id, "volume"), Purpose.NODE, volume_id)
        try:
            return await self._channels.call(owner, f"tidemark.v1.Tidemark/{method}", request, answer, seconds)
        except grpc.aio.AioRpcError as error:
            raise from_status(error, f"the agent of node {owner}") from error


def _hold(hold: tidemark_pb2.TreeNode.Hold) -> Hold:
    return Hold(hold.holder, hold.expires.ToNanoseconds(), hold.since.ToNanoseconds())


def _full_pool(owner: str, pool: tidemark_pb2.Pool) -> FullPool:
    would_free = tuple(
        f"{tidemark_pb2.TreeNode.Kind.Name(freed.kind).lower()} {freed.name} ({human(freed.exclusive_bytes)})"
        for freed in pool.would_free
    )
    return FullPool(owner, pool.name, pool.total_bytes, pool.free_bytes, would_free)

"""csi.v1.Controller over all agents."""

from collections.abc import Callable, Iterable
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import Int64Value

from csi_driver._pb import csi_pb2
from csi_driver.domain.errors import InvalidRequest, OutOfRange, OutOfSpace
from csi_driver.domain.ids import is_owner
from csi_driver.domain.page_tokens import token_after
from csi_driver.domain.requests import split_labels
from csi_driver.domain.routing import in_page_order, known_pool, pool_of
from csi_driver.rpc import convert
from csi_driver.rpc.agent.controller import CAPABILITIES, MAX_PAGE
from csi_driver.rpc.agent.unimplemented import NotOffered
from csi_driver.rpc.clients.agent_channels import AgentChannels
from csi_driver.rpc.convert import required
from csi_driver.rpc.forwarding.forwarder import Context, Forwarder, by_id, deletion_by_id
from csi_driver.service.agent_routing import AgentRouter, Purpose
from csi_driver.service.placement import Placement

_Rpc = csi_pb2.ControllerServiceCapability.RPC
_FINAL = {grpc.StatusCode.RESOURCE_EXHAUSTED: OutOfSpace, grpc.StatusCode.OUT_OF_RANGE: OutOfRange}
"""Refusals of CreateVolume after which another node may be tried."""


class ForwardingController(Forwarder, NotOffered):
    """Forwards by id; new volumes by their source or the placement; puts lists and sums together."""

    service = "csi.v1.Controller"

    DeleteVolume = deletion_by_id("volume_id", csi_pb2.DeleteVolumeResponse)
    ValidateVolumeCapabilities = by_id("volume", "volume_id", csi_pb2.ValidateVolumeCapabilitiesResponse)
    ControllerGetVolume = by_id("volume", "volume_id", csi_pb2.ControllerGetVolumeResponse)
    ControllerExpandVolume = by_id("volume", "volume_id", csi_pb2.ControllerExpandVolumeResponse, Purpose.NODE)
    CreateSnapshot = by_id(
        "volume", "source_volume_id", csi_pb2.CreateSnapshotResponse, Purpose.NODE, name="the snapshot's name"
    )
    DeleteSnapshot = deletion_by_id("snapshot_id", csi_pb2.DeleteSnapshotResponse)
    GetSnapshot = by_id("snapshot", "snapshot_id", csi_pb2.GetSnapshotResponse)

    def __init__(self, channels: AgentChannels, router: AgentRouter, placement: Placement) -> None:
        super().__init__(channels, router)
        self._placement = placement

    async def CreateVolume(
        self, request: csi_pb2.CreateVolumeRequest, context: Context
    ) -> csi_pb2.CreateVolumeResponse:
        """Forward a clone to its source's node, whichever was selected: the pod follows. Place an empty volume."""
        required(request.name, "the volume's name")

        async def create(owner: str) -> csi_pb2.CreateVolumeResponse:
            try:
                return await self.forward(owner, "CreateVolume", request, csi_pb2.CreateVolumeResponse, context)
            except grpc.aio.AioRpcError as error:
                if error.code() in _FINAL:
                    details = error.details() or f"not enough space on node {owner}"
                    raise _FINAL[error.code()](details) from error
                raise

        source = convert.source(request)
        if source is not None:
            # A volume is frozen while it is cloned; a snapshot is only read.
            purpose = Purpose.NODE if source.kind == "volume" else Purpose.RECORD
            return await create(await self.router.agent_for(known_pool(source.id, source.kind), purpose, source.id))
        _, labels = split_labels(request.parameters, "parameters")
        topologies = request.accessibility_requirements
        owners = dict.fromkeys(
            convert.owner(topology) for topology in (*topologies.preferred, *topologies.requisite) if topology.segments
        )
        return await self._placement.create(request.name, labels, list(owners), create)

    async def ListVolumes(self, request: csi_pb2.ListVolumesRequest, context: Context) -> csi_pb2.ListVolumesResponse:
        """Return one page over all agents, in the order of ids. UNAVAILABLE if an agent does not answer."""
        entries, token = await self._page(
            request, self.owners(), "ListVolumes", csi_pb2.ListVolumesResponse,
            lambda entry: entry.volume.volume_id, context,
        )  # fmt: skip
        return csi_pb2.ListVolumesResponse(entries=entries, next_token=token)

    async def ListSnapshots(
        self, request: csi_pb2.ListSnapshotsRequest, context: Context
    ) -> csi_pb2.ListSnapshotsResponse:
        """As ListVolumes. A filter by id asks the agent of that id alone; an id that no agent gave out matches nothing."""
        filters = [object_id for object_id in (request.snapshot_id, request.source_volume_id) if object_id]
        pools = {object_id: pool for object_id in filters if (pool := pool_of(object_id)) is not None}
        if len(pools) < len(set(filters)) or len({pool.owner for pool in pools.values()}) > 1:
            return csi_pb2.ListSnapshotsResponse()  # a snapshot is on the node of its volume
        owners = {await self.router.agent_for(pool, Purpose.RECORD, object_id) for object_id, pool in pools.items()}
        entries, token = await self._page(
            request, owners or self.owners(), "ListSnapshots", csi_pb2.ListSnapshotsResponse,
            lambda entry: entry.snapshot.snapshot_id, context,
        )  # fmt: skip
        return csi_pb2.ListSnapshotsResponse(entries=entries, next_token=token)

    async def GetCapacity(self, request: csi_pb2.GetCapacityRequest, context: Context) -> csi_pb2.GetCapacityResponse:
        """Return that of one topology; without one, the sum over all agents and the largest volume that one can hold."""
        answer = csi_pb2.GetCapacityResponse
        if request.accessible_topology.segments:
            owner = convert.owner(request.accessible_topology)
            if not is_owner(owner):
                return answer(maximum_volume_size=Int64Value(value=0))  # not a topology of this driver
            return await self.forward(owner, "GetCapacity", request, answer, context)
        capacities = [await self.forward(owner, "GetCapacity", request, answer, context) for owner in self.owners()]
        return answer(
            available_capacity=sum(capacity.available_capacity for capacity in capacities),
            maximum_volume_size=Int64Value(
                value=max((capacity.maximum_volume_size.value for capacity in capacities), default=0)
            ),
            minimum_volume_size=Int64Value(
                value=min((capacity.minimum_volume_size.value for capacity in capacities), default=0)
            ),
        )

    async def ControllerGetCapabilities(
        self, _request: csi_pb2.ControllerGetCapabilitiesRequest, _context: Context
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        """Return those of an agent."""
        capabilities = [csi_pb2.ControllerServiceCapability(rpc=_Rpc(type=kind)) for kind in CAPABILITIES]
        return csi_pb2.ControllerGetCapabilitiesResponse(capabilities=capabilities)

    async def _page(
        self,
        request: Any,
        owners: Iterable[str],
        method: str,
        answer: type[Any],
        id_of: Callable[[Any], str],
        context: Context,
    ) -> tuple[list[Any], str]:
        """Return the entries of one page, and the token of the next (empty at the end)."""
        if request.max_entries < 0:
            raise InvalidRequest(f"max_entries {request.max_entries} is negative: use 0 for all")
        limit = min(request.max_entries or MAX_PAGE, MAX_PAGE)
        token = request.starting_token
        entries: list[Any] = []
        ordered = in_page_order(owners, token)
        for index, owner in enumerate(ordered):
            page = type(request)()
            page.CopyFrom(request)
            page.max_entries, page.starting_token = limit - len(entries), token
            part = await self.forward(owner, method, page, answer, context)
            entries.extend(part.entries)
            if part.next_token:
                return entries, part.next_token
            if len(entries) == limit and index + 1 < len(ordered):
                return entries, token_after(id_of(entries[-1]))
            token = ""
        return entries, ""

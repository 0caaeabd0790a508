"""The controller's CSI services: find the agent that owns an id, and pass the same message on.

No state of its own, so that every replica is active. What an agent answers goes back as it came; only an agent that
cannot be reached is spoken for here, and an id that no agent can have given out.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import Int64Value

from csi_driver._pb import csi_pb2, csi_pb2_grpc
from csi_driver.domain.errors import InvalidRequest, OutOfRange, OutOfSpace, Unavailable
from csi_driver.domain.page_tokens import token_after
from csi_driver.domain.requests import split_labels
from csi_driver.domain.routing import in_page_order, known_owner, one_owner, owner_of
from csi_driver.rpc import convert
from csi_driver.rpc.agent.controller import CAPABILITIES, MAX_PAGE
from csi_driver.rpc.agent.unimplemented import NotOffered
from csi_driver.rpc.clients.agent_channels import AgentChannels
from csi_driver.rpc.convert import required
from csi_driver.service.placement import Placement

_Context = grpc.aio.ServicerContext[Any, Any]
_Rpc = csi_pb2.ControllerServiceCapability.RPC
_GroupRpc = csi_pb2.GroupControllerServiceCapability.RPC
Answer = TypeVar("Answer", bound=Message)

log = structlog.get_logger()


class Forwarder:
    """Passing on, shared by the services below. Deadline and cancellation go along with the message."""

    def __init__(self, agents: AgentChannels) -> None:
        self._agents = agents

    async def _to(self, owner: str, method: str, request: Message, answer: type[Answer], context: _Context) -> Answer:
        result = await self._agents.call(owner, method, request, answer, context.time_remaining())
        assert isinstance(result, answer)
        return result

    def _everyone(self) -> list[str]:
        """All owners. Raises Unavailable before the list was read once: whoever is missing in it would be left out."""
        if not self._agents.discovery.known():
            raise Unavailable("this controller has not read the list of agents yet: the call succeeds in a moment")
        return self._agents.discovery.owners()

    async def _delete(
        self, object_id: str, method: str, request: Message, answer: type[Answer], context: _Context
    ) -> Answer:
        """What no agent can have is deleted already, and so is what was on a node that was forgotten."""
        owner = owner_of(object_id)
        if owner is None:
            return answer()
        try:
            return await self._to(owner, method, request, answer, context)
        except Unavailable as error:
            if not self._agents.discovery.forgotten(owner):
                raise
            log.warning("deleted with its node, which was forgotten", id=object_id, method=method, why=str(error))
            return answer()


class ForwardingController(Forwarder, NotOffered):
    """csi.v1.Controller over all agents."""

    def __init__(self, agents: AgentChannels, placement: Placement) -> None:
        super().__init__(agents)
        self._placement = placement

    async def CreateVolume(
        self, request: csi_pb2.CreateVolumeRequest, context: _Context
    ) -> csi_pb2.CreateVolumeResponse:
        """At the source's node, whichever was chosen: the pod follows. An empty one where the placement says."""
        required(request.name, "the volume's name")
        kind = csi_pb2.CreateVolumeResponse

        async def create(owner: str) -> csi_pb2.CreateVolumeResponse:
            try:
                return await self._to(owner, "csi.v1.Controller/CreateVolume", request, kind, context)
            except grpc.aio.AioRpcError as error:
                final = {grpc.StatusCode.RESOURCE_EXHAUSTED: OutOfSpace, grpc.StatusCode.OUT_OF_RANGE: OutOfRange}
                if error.code() in final:
                    raise final[error.code()](error.details() or f"no room on node {owner}") from error
                raise

        source = convert.source(request)
        if source is not None:
            return await create(known_owner(source.id, source.kind))
        _, labels = split_labels(request.parameters, "parameters")
        wanted = request.accessibility_requirements
        order = dict.fromkeys(convert.owner(p) for p in (*wanted.preferred, *wanted.requisite) if p.segments)
        return await self._placement.make(request.name, labels, list(order), create)

    async def DeleteVolume(
        self, request: csi_pb2.DeleteVolumeRequest, context: _Context
    ) -> csi_pb2.DeleteVolumeResponse:
        """By id."""
        volume_id = required(request.volume_id, "volume_id")
        kind = csi_pb2.DeleteVolumeResponse
        return await self._delete(volume_id, "csi.v1.Controller/DeleteVolume", request, kind, context)

    async def ValidateVolumeCapabilities(
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, context: _Context
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        """By id."""
        owner = known_owner(required(request.volume_id, "volume_id"), "volume")
        kind = csi_pb2.ValidateVolumeCapabilitiesResponse
        return await self._to(owner, "csi.v1.Controller/ValidateVolumeCapabilities", request, kind, context)

    async def ControllerGetVolume(
        self, request: csi_pb2.ControllerGetVolumeRequest, context: _Context
    ) -> csi_pb2.ControllerGetVolumeResponse:
        """By id."""
        owner = known_owner(required(request.volume_id, "volume_id"), "volume")
        kind = csi_pb2.ControllerGetVolumeResponse
        return await self._to(owner, "csi.v1.Controller/ControllerGetVolume", request, kind, context)

    async def ControllerExpandVolume(
        self, request: csi_pb2.ControllerExpandVolumeRequest, context: _Context
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        """By id."""
        owner = known_owner(required(request.volume_id, "volume_id"), "volume")
        kind = csi_pb2.ControllerExpandVolumeResponse
        return await self._to(owner, "csi.v1.Controller/ControllerExpandVolume", request, kind, context)

    async def CreateSnapshot(
        self, request: csi_pb2.CreateSnapshotRequest, context: _Context
    ) -> csi_pb2.CreateSnapshotResponse:
        """Where its volume is."""
        required(request.name, "the snapshot's name")
        owner = known_owner(required(request.source_volume_id, "source_volume_id"), "volume")
        kind = csi_pb2.CreateSnapshotResponse
        return await self._to(owner, "csi.v1.Controller/CreateSnapshot", request, kind, context)

    async def DeleteSnapshot(
        self, request: csi_pb2.DeleteSnapshotRequest, context: _Context
    ) -> csi_pb2.DeleteSnapshotResponse:
        """By id."""
        snapshot_id = required(request.snapshot_id, "snapshot_id")
        kind = csi_pb2.DeleteSnapshotResponse
        return await self._delete(snapshot_id, "csi.v1.Controller/DeleteSnapshot", request, kind, context)

    async def GetSnapshot(self, request: csi_pb2.GetSnapshotRequest, context: _Context) -> csi_pb2.GetSnapshotResponse:
        """By id."""
        owner = known_owner(required(request.snapshot_id, "snapshot_id"), "snapshot")
        kind = csi_pb2.GetSnapshotResponse
        return await self._to(owner, "csi.v1.Controller/GetSnapshot", request, kind, context)

    async def ListVolumes(self, request: csi_pb2.ListVolumesRequest, context: _Context) -> csi_pb2.ListVolumesResponse:
        """One page over all agents, in the order of ids. One silent agent makes it UNAVAILABLE: never a shorter list."""
        entries, token = await self._pages(
            request, self._everyone(), "csi.v1.Controller/ListVolumes", csi_pb2.ListVolumesResponse,
            lambda entry: entry.volume.volume_id, context,
        )  # fmt: skip
        return csi_pb2.ListVolumesResponse(entries=entries, next_token=token)

    async def ListSnapshots(
        self, request: csi_pb2.ListSnapshotsRequest, context: _Context
    ) -> csi_pb2.ListSnapshotsResponse:
        """As ListVolumes. A filter by id asks that id's agent alone; an id of nobody's matches nothing."""
        filters = [text for text in (request.snapshot_id, request.source_volume_id) if text]
        owners = [owner for owner in map(owner_of, filters) if owner is not None]
        if len(owners) < len(filters) or len(set(owners)) > 1:  # a snapshot lies where its volume does
            return csi_pb2.ListSnapshotsResponse()
        entries, token = await self._pages(
            request, set(owners) or self._everyone(), "csi.v1.Controller/ListSnapshots",
            csi_pb2.ListSnapshotsResponse, lambda entry: entry.snapshot.snapshot_id, context,
        )  # fmt: skip
        return csi_pb2.ListSnapshotsResponse(entries=entries, next_token=token)

    async def GetCapacity(self, request: csi_pb2.GetCapacityRequest, context: _Context) -> csi_pb2.GetCapacityResponse:
        """Of the node that is asked for; without a place, of all: the sum, and the largest that one of them can hold."""
        method, kind = "csi.v1.Controller/GetCapacity", csi_pb2.GetCapacityResponse
        if request.accessible_topology.segments:
            asked = convert.owner(request.accessible_topology)
            if owner_of(f"{asked}:p:{'0' * 32}") is None:
                return kind(maximum_volume_size=Int64Value(value=0))  # a place that is none of ours has no room
            return await self._to(asked, method, request, kind, context)
        found = [await self._to(owner, method, request, kind, context) for owner in self._everyone()]
        return kind(
            available_capacity=sum(one.available_capacity for one in found),
            maximum_volume_size=Int64Value(value=max((one.maximum_volume_size.value for one in found), default=0)),
            minimum_volume_size=Int64Value(value=min((one.minimum_volume_size.value for one in found), default=0)),
        )

    async def ControllerGetCapabilities(
        self, _request: csi_pb2.ControllerGetCapabilitiesRequest, _context: _Context
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        """Those of an agent: the controller adds and takes nothing."""
        found = [csi_pb2.ControllerServiceCapability(rpc=_Rpc(type=kind)) for kind in CAPABILITIES]
        return csi_pb2.ControllerGetCapabilitiesResponse(capabilities=found)

    async def _pages(
        self,
        request: Any,
        owners: Any,
        method: str,
        kind: type[Any],
        id_of: Callable[[Any], str],
        context: _Context,
    ) -> tuple[list[Any], str]:
        if request.max_entries < 0:
            raise InvalidRequest(f"max_entries {request.max_entries} is negative: use 0 for all")
        limit = min(request.max_entries or MAX_PAGE, MAX_PAGE)
        token = request.starting_token
        entries: list[Any] = []
        ordered = in_page_order(owners, token)
        for place, owner in enumerate(ordered):
            page = type(request)()
            page.CopyFrom(request)
            page.max_entries, page.starting_token = limit - len(entries), token
            answer = await self._to(owner, method, page, kind, context)
            entries.extend(answer.entries)
            if answer.next_token:
                return entries, answer.next_token
            if len(entries) == limit and place + 1 < len(ordered):
                return entries, token_after(id_of(entries[-1]))
            token = ""
        return entries, ""


class RoutedGroups(Forwarder, csi_pb2_grpc.GroupControllerServicer):
    """csi.v1.GroupController over all agents: a group lies on one node."""

    async def GroupControllerGetCapabilities(
        self, _request: csi_pb2.GroupControllerGetCapabilitiesRequest, _context: _Context
    ) -> csi_pb2.GroupControllerGetCapabilitiesResponse:
        """Those of an agent."""
        rpc = _GroupRpc(type=_GroupRpc.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT)
        found = [csi_pb2.GroupControllerServiceCapability(rpc=rpc)]
        return csi_pb2.GroupControllerGetCapabilitiesResponse(capabilities=found)

    async def CreateVolumeGroupSnapshot(
        self, request: csi_pb2.CreateVolumeGroupSnapshotRequest, context: _Context
    ) -> csi_pb2.CreateVolumeGroupSnapshotResponse:
        """Where all members are; FAILED_PRECONDITION names the nodes where they lie apart."""
        required(request.name, "the group snapshot's name")
        if not request.source_volume_ids:
            raise InvalidRequest("source_volume_ids is empty: name the volumes of the group")
        owner = one_owner([required(one, "one of source_volume_ids") for one in request.source_volume_ids])
        kind = csi_pb2.CreateVolumeGroupSnapshotResponse
        return await self._to(owner, "csi.v1.GroupController/CreateVolumeGroupSnapshot", request, kind, context)

    async def DeleteVolumeGroupSnapshot(
        self, request: csi_pb2.DeleteVolumeGroupSnapshotRequest, context: _Context
    ) -> csi_pb2.DeleteVolumeGroupSnapshotResponse:
        """By id."""
        group_id = required(request.group_snapshot_id, "group_snapshot_id")
        kind = csi_pb2.DeleteVolumeGroupSnapshotResponse
        return await self._delete(group_id, "csi.v1.GroupController/DeleteVolumeGroupSnapshot", request, kind, context)

    async def GetVolumeGroupSnapshot(
        self, request: csi_pb2.GetVolumeGroupSnapshotRequest, context: _Context
    ) -> csi_pb2.GetVolumeGroupSnapshotResponse:
        """By id."""
        owner = known_owner(required(request.group_snapshot_id, "group_snapshot_id"), "group snapshot")
        kind = csi_pb2.GetVolumeGroupSnapshotResponse
        return await self._to(owner, "csi.v1.GroupController/GetVolumeGroupSnapshot", request, kind, context)

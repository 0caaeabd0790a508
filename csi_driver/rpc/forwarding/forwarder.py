"""Forwarding of calls: find the agent by the id in a request, and pass the same message on.

The services of this package are tables of calls by id; only calls that name no id, or several, have code of their own.
Nothing is remembered between calls, so every replica of the controller serves. An agent's answer goes back as it came. The
controller answers by itself only if the agent cannot be reached, or if no agent can have given out the id.
"""

from collections.abc import Awaitable
from typing import Any, Literal, Protocol, TypeVar, cast

import grpc
import structlog
from google.protobuf.message import Message

from csi_driver.domain.errors import Unavailable
from csi_driver.domain.routing import known_pool, pool_of
from csi_driver.rpc.clients.agent_channels import AgentChannels
from csi_driver.rpc.convert import required
from csi_driver.service.agent_routing import AgentRouter, Purpose

Context = grpc.aio.ServicerContext[Any, Any]
Kind = Literal["volume", "snapshot", "group snapshot"]
Answer = TypeVar("Answer", bound=Message)
Answer_co = TypeVar("Answer_co", covariant=True)

log = structlog.get_logger()


class Forwarder:
    """A service over all agents. The deadline and the cancellation of a call go along with its message."""

    service: str
    """Its full name, such as csi.v1.Controller."""

    def __init__(self, channels: AgentChannels, router: AgentRouter) -> None:
        self._channels = channels
        self.router = router

    async def forward(
        self, owner: str, method: str, request: Message, answer: type[Answer], context: Context
    ) -> Answer:
        """Pass a call of this service on to the agent of an owner. Raises Unavailable and AioRpcError."""
        path = f"{self.service}/{method}"
        result = await self._channels.call(owner, path, request, answer, context.time_remaining())
        assert isinstance(result, answer)
        return result

    async def forward_deletion(
        self, object_id: str, method: str, request: Message, answer: type[Answer], context: Context
    ) -> Answer:
        """Pass a deletion on by id. It is done already if no agent can have given out the id, or if its node was
        decommissioned.
        """
        pool = pool_of(object_id)
        if pool is None:
            return answer()
        try:
            owner = await self.router.agent_for(pool, Purpose.RECORD, object_id)
            return await self.forward(owner, method, request, answer, context)
        except Unavailable as error:
            if not self._channels.discovery.is_decommissioned(pool.owner):
                raise
            log.warning("deleted with decommissioned node", id=object_id, method=method, error=str(error))
            return answer()

    def owners(self) -> list[str]:
        """Return all owners. Raises Unavailable until the list of agents was read: an answer without some would be wrong."""
        if not self._channels.discovery.has_synced():
            raise Unavailable("this controller has not read the list of agents yet: the call succeeds in a moment")
        return self._channels.discovery.owners()


class Handler(Protocol[Answer_co]):
    """A method of a Forwarder, as its caller sees it."""

    def __call__(self, request: Any, context: Any) -> Awaitable[Answer_co]:
        """Serve one call."""
        ...


def by_id(
    kind: Kind, field: str, answer: type[Answer], purpose: Purpose = Purpose.RECORD, **names: str
) -> Handler[Answer]:
    """Make the method that forwards by the id in `field`, an id of a `kind`; it is named as its answer's type.

    `names` are other fields that must not be empty, with what a refusal calls them.
    """
    method = _method(answer)

    async def handle(forwarder: Forwarder, request: Any, context: Context) -> Answer:
        for name, what in names.items():
            required(getattr(request, name), what)
        object_id = required(getattr(request, field), field)
        owner = await forwarder.router.agent_for(known_pool(object_id, kind), purpose, object_id)
        return await forwarder.forward(owner, method, request, answer, context)

    handle.__name__ = method
    return cast(Handler[Answer], handle)


def deletion_by_id(field: str, answer: type[Answer]) -> Handler[Answer]:
    """Make the method that forwards a deletion by the id in `field`; it is named as its answer's type."""
    method = _method(answer)

    async def handle(forwarder: Forwarder, request: Any, context: Context) -> Answer:
        object_id = required(getattr(request, field), field)
        return await forwarder.forward_deletion(object_id, method, request, answer, context)

    handle.__name__ = method
    return cast(Handler[Answer], handle)


def _method(answer: type[Message]) -> str:
    """Return the name of the call: in both protocols the answer of X is an XResponse."""
    return answer.DESCRIPTOR.name.removesuffix("Response")

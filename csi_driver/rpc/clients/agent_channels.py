"""Channels from the controller to the agents: kept, re-used, found dead within seconds, replaced with their certificates.

Nothing here waits for an agent to come back: an agent that is not reachable is reported as such at once.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc

from csi_driver import __version__
from csi_driver._pb import csi_pb2
from csi_driver.domain.errors import OtherVersion, Unavailable
from csi_driver.rpc import tls
from csi_driver.rpc.errors import is_unknown_call
from csi_driver.service.discovery import Discovery

CONNECT_SECONDS = 2.0
"""For a connection: an agent that is up answers in milliseconds, and the sidecars retry by themselves."""

_OPTIONS = (
    # An agent is a pod of this cluster. With `https_proxy` in the environment gRPC would have a proxy connect to it.
    ("grpc.enable_http_proxy", 0),
    ("grpc.ssl_target_name_override", tls.AGENT),
    # A channel whose peer lost its power answers nothing: found after 10 + 5 seconds, also between calls.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Measured: without this a silent peer is given up after 70 s, whatever the line above says.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # An agent that restarts is back in a second; gRPC's own back-off would grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A pool's whole tree is one message.
    ("grpc.max_receive_message_length", -1),
    # One connection per channel: gRPC would else share one between channels of the same target and credentials.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(slots=True)
class _Channel:
    """A channel, what it was made with, and how many calls use it."""

    address: str
    material: tls.TlsFiles
    channel: grpc.aio.Channel
    calls: int = 0


class AgentChannels:
    """The agents, by owner. Used on one event loop."""

    def __init__(self, discovery: Discovery, identity: tls.TlsDirectory) -> None:
        self.discovery = discovery
        self._latest = tls.ReloadingTlsFiles(identity)
        self._channels: dict[str, _Channel] = {}
        self._replaced: list[_Channel] = []

    async def call(self, owner: str, method: str, request: Any, answer: type[Any], timeout: float | None) -> Any:
        """Make one call, `package.Service/Method`, to the agent of `owner`; it refuses by grpc.aio.AioRpcError.

        Raises Unavailable if the agent cannot be reached, naming it and what was tried; OtherVersion if it does not have the
        call. `timeout` in seconds is the caller's own deadline; when the caller goes away, the call to the agent is
        cancelled with it.
        """
        link = self._channel_to(owner)
        # A closed channel takes no call, so the last call that uses a replaced channel closes it.
        link.calls += 1
        try:
            await self._connect(owner, link)
            forward = link.channel.unary_unary(
                f"/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
            return await forward(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise Unavailable(f"agent of node {owner}: {error.details()}") from error
            if is_unknown_call(error):
                raise OtherVersion(
                    f"the agent of node {owner} is of version {await _version(link)} and does not have {method}, which this "
                    f"controller, of version {__version__}, needs: nothing was done; bring both to one version"
                ) from error
            raise
        finally:
            link.calls -= 1
            await self._close_unused()

    async def close_removed(self) -> None:
        """Close the channels to nodes that the cluster no longer has: each would try to connect for ever."""
        if self.discovery.has_synced():
            for owner in [owner for owner in self._channels if self.discovery.endpoint(owner) is None]:
                self._replaced.append(self._channels.pop(owner))
        await self._close_unused()

    async def close(self) -> None:
        """Drop all channels, with the calls on them."""
        channels, self._channels, self._replaced = [*self._channels.values(), *self._replaced], {}, []
        await asyncio.gather(*(link.channel.close() for link in channels), return_exceptions=True)

    async def _close_unused(self) -> None:
        unused = [link for link in self._replaced if not link.calls]
        # Removed from the list before the first wait: other calls end here meanwhile.
        self._replaced = [link for link in self._replaced if link.calls]
        for link in unused:
            await link.channel.close()

    async def _connect(self, owner: str, link: _Channel) -> None:
        if link.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return
        try:
            await asyncio.wait_for(link.channel.channel_ready(), CONNECT_SECONDS)
        except TimeoutError:
            raise Unavailable(
                f"the agent of node {owner} does not answer at {link.address}: look at that node and at the agent's "
                "pod; the call succeeds by itself when they are back"
            ) from None

    def _channel_to(self, owner: str) -> _Channel:
        endpoint = self.discovery.endpoint(owner)
        if endpoint is None or not endpoint.address:
            raise Unavailable(
                f"no agent is known for node {owner}: check that the node exists and runs the agent's pod"
                + ("" if self.discovery.has_synced() else " (this controller has not read the list of agents yet)")
            )
        link = self._channels.get(owner)
        material = self._latest()
        if link is not None and (link.address, link.material) == (endpoint.address, material):
            return link
        if link is not None:
            # Calls on the old channel go on to their end: a rotation of certificates drops none.
            self._replaced.append(link)
        channel = grpc.aio.secure_channel(endpoint.address, tls.channel_credentials(material), options=_OPTIONS)
        self._channels[owner] = link = _Channel(endpoint.address, material, channel)
        return link


async def _version(link: _Channel) -> str:
    """Return the version that an agent reports, for a message."""
    ask = link.channel.unary_unary(
        "/csi.v1.Identity/GetPluginInfo",
        request_serializer=csi_pb2.GetPluginInfoRequest.SerializeToString,
        response_deserializer=csi_pb2.GetPluginInfoResponse.FromString,
    )
    try:
        return str((await ask(csi_pb2.GetPluginInfoRequest(), timeout=CONNECT_SECONDS)).vendor_version)
    except grpc.aio.AioRpcError as error:
        return f"unknown ({error.code().name})"

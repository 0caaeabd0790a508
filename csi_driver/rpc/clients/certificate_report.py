"""Which certificates the agents use now, asked of each: a rotation of the authority goes on when all have followed."""

import asyncio
from collections.abc import Mapping

import grpc
import structlog

from csi_driver._pb import csi_pb2
from csi_driver.domain.errors import Precondition, Unavailable
from csi_driver.rpc import tls
from csi_driver.rpc.clients.agent_channels import AgentChannels

CERTIFICATES = "tidemark.dev/certificates"
"""Key in the manifest of GetPluginInfo on an agent's TLS listener: the fingerprint of what the next handshake uses."""

ASK_SECONDS = 5.0
"""For one agent's answer, which reads three small files."""

log = structlog.get_logger()


def plugin_manifest(identity: tls.TlsDirectory) -> Mapping[str, str]:
    """What an agent tells of its certificates; nothing where they are not good ones, which no rotation takes for a yes."""
    try:
        return {CERTIFICATES: identity.fingerprint()}
    except Precondition as error:
        log.error("certificates are not used", why=str(error))
        return {}


async def loaded_by_agents(agents: AgentChannels) -> dict[str, str]:
    """The fingerprint that each agent reports, by owner; empty where one does not answer. Raises Unavailable before the
    list of agents was read once.

    An agent on a node that is not ready is left out: its files are written anew before it runs again, and a machine that
    is away for a month must not hold a rotation up for as long.
    """
    if not agents.discovery.known():
        raise Unavailable("the list of agents was not read yet: nobody knows whom to wait for")
    places = [agents.discovery.place(owner) for owner in agents.discovery.owners()]
    asked = [place.owner for place in places if place is not None and place.address and place.ready]
    return dict(zip(asked, await asyncio.gather(*(_ask(agents, owner) for owner in asked)), strict=True))


async def _ask(agents: AgentChannels, owner: str) -> str:
    method, kind = "csi.v1.Identity/GetPluginInfo", csi_pb2.GetPluginInfoResponse
    try:
        answer = await agents.call(owner, method, csi_pb2.GetPluginInfoRequest(), kind, ASK_SECONDS)
    except (Unavailable, grpc.aio.AioRpcError) as error:
        log.warning("an agent does not tell its certificates", node=owner, why=str(error))
        return ""
    told: str = answer.manifest.get(CERTIFICATES, "")
    return told

"""Who may talk to whom: the chain and the role, on both sides; and certificates that change under running calls."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from support.cluster_rig import Cluster, write_identity
from support.rpc_rig import CODE, create_volume, places
from test_router import refused, volume

from csi_driver._pb import csi_pb2 as C
from csi_driver._pb import csi_pb2_grpc
from csi_driver.domain.errors import Precondition, Unavailable
from csi_driver.operator.certificates import ca
from csi_driver.rpc import tls
from csi_driver.rpc.clients.agent_channels import AgentChannels
from csi_driver.rpc.tls_server import SecureServer

ASK = C.GetCapacityRequest()


async def ask(agent_address: str, credentials: grpc.ChannelCredentials | None, name: str = tls.AGENT) -> object:
    options = [("grpc.ssl_target_name_override", name)]
    if credentials is None:
        channel = grpc.aio.insecure_channel(agent_address)
    else:
        channel = grpc.aio.secure_channel(agent_address, credentials, options=options)
    async with channel:
        return await csi_pb2_grpc.ControllerStub(channel).GetCapacity(ASK, timeout=60)


async def test_a_controller_is_served(cluster: Cluster) -> None:
    own = tls.channel_credentials(cluster.controllers_identity.read())
    assert await ask(cluster.agents["n-1"].address, own)


async def test_strangers_are_not_served(cluster: Cluster) -> None:
    """No certificate, plain text, another authority's, an agent's: nothing reaches the services."""
    address = cluster.agents["n-1"].address
    await refused(ask(address, None), CODE.UNAVAILABLE)
    await refused(ask(address, grpc.ssl_channel_credentials(cluster.root.certificate)), CODE.UNAVAILABLE)
    foreign = ca.new_ca()
    stranger = cluster.identity("stranger", tls.CONTROLLER, foreign, trusted=cluster.root.certificate)
    await refused(ask(address, tls.channel_credentials(stranger.read())), CODE.UNAVAILABLE)
    agent = tls.channel_credentials(cluster.agents_identity.read())
    await refused(ask(address, agent), CODE.PERMISSION_DENIED, tls.CONTROLLER)
    assert cluster.agents["n-1"].seen.calls == []


async def test_an_expired_certificate_is_not_served(cluster: Cluster) -> None:
    old = ca.issue(cluster.root, tls.CONTROLLER, now=datetime.now(UTC) - timedelta(days=2), days=1)
    identity = write_identity(cluster.directory / "old", cluster.root, old)
    await refused(ask(cluster.agents["n-1"].address, tls.channel_credentials(identity.read())), CODE.UNAVAILABLE)


@pytest.mark.parametrize("who", ["a controller", "another authority's agent"])
async def test_a_controller_talks_to_agents_alone(cluster: Cluster, who: str) -> None:
    """A controller's certificate is not accepted as an agent's."""
    agent = cluster.agents["n-1"]
    await agent.server.stop(0)
    if who == "a controller":
        agent.identity = cluster.controllers_identity
    else:
        foreign = ca.new_ca()
        agent.identity = cluster.identity("false", tls.AGENT, foreign, trusted=cluster.root.certificate)
    await agent.start()
    request = create_volume("v", accessibility_requirements=places("n-1"))
    await refused(cluster.controller.CreateVolume(request), CODE.UNAVAILABLE, "n-1")
    assert agent.seen.calls == []


async def test_a_rotation_of_the_authority_drops_no_call(cluster: Cluster) -> None:
    """Trust both, reissue, trust the new one alone, while 200 calls run; afterwards the old one is worth nothing."""
    old, new = cluster.root, ca.new_ca()
    both = old.certificate + new.certificate
    old_caller = tls.channel_credentials(cluster.controllers_identity.read())
    done = 0

    async def caller(number: int) -> None:
        nonlocal done
        for turn in range(10):
            owner = ("n-1", "n-10")[number % 2]
            made = await volume(cluster, f"{number} {turn}", owner)
            await cluster.controller.DeleteVolume(C.DeleteVolumeRequest(volume_id=made))
            done += 1
            await asyncio.sleep(0.05)

    async def rotate() -> None:
        steps = [
            (old, old, both),  # (who signed the agents', the controllers', what is trusted)
            (new, old, both),
            (new, new, both),
            (new, new, new.certificate),
        ]
        for agents, controllers, trusted in steps:
            write_identity(cluster.agents_identity.directory, agents, ca.issue(agents, tls.AGENT), trusted)
            write_identity(
                cluster.controllers_identity.directory,
                controllers,
                ca.issue(controllers, tls.CONTROLLER),
                trusted,
            )
            await asyncio.sleep(0.15)

    await asyncio.gather(rotate(), *(caller(number) for number in range(20)))
    assert done == 200
    address = cluster.agents["n-1"].address
    await refused(ask(address, old_caller), CODE.UNAVAILABLE)
    assert await ask(address, tls.channel_credentials(cluster.controllers_identity.read()))


async def test_files_that_cannot_be_read(cluster: Cluster, tmp_path: Path) -> None:
    """At start: a refusal that names the file. Later: an agent goes on with what it had."""
    nowhere = tls.TlsDirectory(tmp_path / "nowhere")
    with pytest.raises(Precondition, match=r"ca\.crt cannot be read"):
        await SecureServer(("127.0.0.1", 0), nowhere, tls.CONTROLLER, []).start()
    (cluster.agents_identity.directory / "tls.key").unlink()
    own = tls.channel_credentials(cluster.controllers_identity.read())
    assert await ask(cluster.agents["n-1"].address, own)


async def test_a_taken_port_is_refused(cluster: Cluster) -> None:
    taken = ("127.0.0.1", cluster.agents["n-1"].port)
    with pytest.raises(Precondition, match="cannot be listened on"):
        await SecureServer(taken, cluster.agents_identity, tls.CONTROLLER, []).start()


async def test_a_channel_to_nobody(cluster: Cluster) -> None:
    agents = AgentChannels(cluster.discovery, cluster.controllers_identity)
    with pytest.raises(Unavailable, match="no agent is known for node nowhere"):
        await agents.call("nowhere", "csi.v1.Controller/GetCapacity", ASK, C.GetCapacityResponse, 5)
    await agents.close()


def test_a_key_is_never_shown() -> None:
    pair = ca.new_ca()
    assert b"PRIVATE KEY" in pair.key
    assert "PRIVATE" not in repr(pair)

"""Certificates on disk that change: what is wrong changes nothing, and a call in hand ends on the channel it began on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.cluster_rig import Cluster, write_identity
from support.rpc_rig import CODE, create_volume, places
from test_mutual_tls import ask
from test_router import refused, volume

from csi_driver.domain.errors import Precondition
from csi_driver.operator.certificates import ca
from csi_driver.rpc import tls
from csi_driver.rpc.clients.agent_api import AgentApi
from csi_driver.rpc.tls_server import SecureServer


def replace(identity: tls.TlsDirectory, root: ca.KeyPair, role: str) -> None:
    write_identity(identity.directory, root, ca.issue(root, role))


@pytest.mark.parametrize("wrong", ["empty", "no PEM", "another's"])
@pytest.mark.parametrize("name", ["ca.crt", "tls.crt", "tls.key"])
async def test_wrong_files_take_nobody_away(cluster: Cluster, name: str, wrong: str) -> None:
    """An agent and a controller go on with the last good ones, new connections included, and follow the next good ones."""
    # Another authority's ca.crt would be a good one: nothing on this side could see that it is meant for others.
    other = cluster.identity("other", tls.AGENT).directory / ("tls.key" if name == "ca.crt" else name)
    content = {"empty": b"", "no PEM": b"\xff", "another's": other.read_bytes()}[wrong]
    agent = cluster.agents["n-1"]
    assert await volume(cluster, "first", "n-1")
    for identity in (cluster.agents_identity, cluster.controllers_identity):
        (identity.directory / name).write_bytes(content)
    with pytest.raises(Precondition, match="do not fit together"):
        tls.check(cluster.agents_identity.read())
    assert await volume(cluster, "before", "n-1")
    # A controller that is known to be good, on a connection of its own.
    own = cluster.identity("another controller", tls.CONTROLLER)
    assert await ask(agent.address, tls.channel_credentials(own.read()))
    new = ca.new_ca()
    replace(cluster.agents_identity, new, tls.AGENT)
    replace(cluster.controllers_identity, new, tls.CONTROLLER)
    assert await volume(cluster, "after", "n-1")
    await refused(ask(agent.address, tls.channel_credentials(own.read())), CODE.UNAVAILABLE)


async def test_an_agent_does_not_start_with_a_key_of_another_certificate(cluster: Cluster) -> None:
    other = cluster.identity("other", tls.AGENT)
    (other.directory / "tls.key").write_bytes((cluster.agents_identity.directory / "tls.key").read_bytes())
    with pytest.raises(Precondition, match="do not fit together") as caught:
        await SecureServer(("127.0.0.1", 0), other, tls.CONTROLLER, []).start()
    assert "PRIVATE" not in str(caught.value)


async def test_a_running_call_ends_on_the_channel_that_it_began_on(cluster: Cluster) -> None:
    """The controller's certificate is replaced twice meanwhile, and other calls use the new ones."""
    pause = cluster.agents["n-1"].faults.pause("create_volume")
    slow = asyncio.ensure_future(volume(cluster, "slow", "n-1"))
    await pause.reached.wait()
    for turn in range(2):
        replace(cluster.controllers_identity, cluster.root, tls.CONTROLLER)
        await volume(cluster, f"meanwhile {turn}", "n-10")
        assert await cluster.controller.GetCapacity(capacity("n-1"))
    pause.release()
    assert (await slow).startswith("n-1:")


def capacity(owner: str) -> object:
    from csi_driver._pb import csi_pb2

    topology = create_volume("x", accessibility_requirements=places(owner)).accessibility_requirements.preferred[0]
    return csi_pb2.GetCapacityRequest(accessible_topology=topology)


def test_a_mounted_secret_is_read_of_one_making(tmp_path: Path) -> None:
    """Laid out as the kubelet does; the old directory may be gone while it is read."""
    for number in ("1", "2"):
        (tmp_path / f"..{number}").mkdir()
        for name in ("ca.crt", "tls.crt", "tls.key"):
            (tmp_path / f"..{number}" / name).write_text(f"{number} {name}")
    (tmp_path / "..data").symlink_to("..1")
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    identity = tls.TlsDirectory(tmp_path)
    assert identity.read() == (b"1 ca.crt", b"1 tls.crt", b"1 tls.key")
    (tmp_path / "..next").symlink_to("..2")
    (tmp_path / "..next").rename(tmp_path / "..data")
    assert identity.read() == (b"2 ca.crt", b"2 tls.crt", b"2 tls.key")
    (tmp_path / "..2" / "tls.key").unlink()
    with pytest.raises(Precondition, match=r"tls\.key cannot be read"):
        identity.read()


async def test_agents_tell_what_they_hold(cluster: Cluster) -> None:
    """A silent agent is not taken for one that has followed; one whose node is not ready is not waited for."""
    agents = AgentApi(cluster.channels)
    held = cluster.agents_identity.fingerprint()
    assert await agents.loaded_certificates() == {"n-1": held, "n-10": held}
    replace(cluster.agents_identity, cluster.root, tls.AGENT)
    assert cluster.agents_identity.fingerprint() != held
    assert set((await agents.loaded_certificates()).values()) == {cluster.agents_identity.fingerprint()}
    await cluster.agents["n-10"].server.stop(0)
    assert (await agents.loaded_certificates())["n-10"] == ""
    cluster.ready("n-10", False)
    assert set(await agents.loaded_certificates()) == {"n-1"}

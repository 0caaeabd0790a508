"""Agent and controller of different versions: what one does not know goes through, and what the other lacks is said."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from rich.console import Console
from support.cluster_rig import AgentOnTls, Cluster
from support.rpc_rig import CODE, create_volume, places, refused

from csi_driver import __version__
from csi_driver._pb import csi_pb2 as C
from csi_driver._pb import tidemark_pb2 as T
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.tree import draw
from csi_driver.domain.errors import OtherVersion, Unavailable
from csi_driver.rpc.agent.tidemark import Tidemark
from csi_driver.rpc.clients import cli_client, cli_messages
from csi_driver.rpc.clients.agent_api import AgentApi

LATER = b"\x80\x7d\x07"
"""Field 2000 of any message, the number 7: nobody here knows it."""


class LaterAgent(Tidemark):
    """Knows a field more in each message of ours that it is sent or answers with, and a kind of object."""

    def __init__(self, before: Tidemark) -> None:
        super().__init__(
            before._rollbacks, before._lineage, before._fullness, before._labels, before._deletion_estimates
        )
        self.requests: list[bytes] = []

    async def Hold(self, request: Any, context: Any) -> Any:
        self.requests.append(request.SerializeToString())
        answer = await super().Hold(request, context)
        return T.HoldResponse.FromString(answer.SerializeToString() + LATER)

    async def GetTree(self, request: Any, context: Any) -> Any:
        answer = await super().GetTree(request, context)
        nodes = [T.TreeNode.FromString(node.SerializeToString() + LATER) for node in answer.nodes]
        return T.GetTreeResponse(nodes=[*nodes, T.TreeNode(id="n-1:default:" + "0" * 32, name="tape", kind=9)])


async def served_again(agent: AgentOnTls, *servicers: object) -> None:
    """The agent is replaced by another one at the same address."""
    await agent.server.stop(0)
    agent.servicers = list(servicers)
    await agent.start()


async def volume(cluster: Cluster, name: str = "v") -> str:
    request = create_volume(name, accessibility_requirements=places("n-1"))
    return (await cluster.controller.CreateVolume(request)).volume.volume_id


async def test_what_the_controller_does_not_know_goes_through_it(cluster: Cluster) -> None:
    agent = cluster.agents["n-1"]
    (before,) = [one for one in agent.servicers if isinstance(one, Tidemark)]
    later = LaterAgent(before)
    await served_again(agent, *(one for one in agent.servicers if one is not before), later)
    made = await volume(cluster)
    asked = T.HoldRequest.FromString(T.HoldRequest(volume_id=made, holder="me").SerializeToString() + LATER)
    held = await cluster.tidemark.Hold(asked)
    assert LATER in later.requests[0]
    assert LATER in held.SerializeToString()
    for request in (T.GetTreeRequest(volume_id=made), T.GetTreeRequest()):
        nodes = (await cluster.tidemark.GetTree(request)).nodes
        assert {node.id: LATER in node.SerializeToString() for node in nodes}[made]
        assert 9 in {node.kind for node in nodes}
    described = await AgentApi(cluster.channels).describe_volume(made)
    assert described.hold is not None, "a disk is found among what nobody knows"


async def test_a_call_that_the_agent_lacks_names_both_versions_and_is_waited_for(cluster: Cluster) -> None:
    made = await volume(cluster)
    agent = cluster.agents["n-1"]
    await served_again(agent, *(one for one in agent.servicers if not isinstance(one, Tidemark)))
    lacks = f"of version {__version__} and does not have tidemark.v1.Tidemark/"
    words = ("n-1", lacks, f"of version {__version__}, needs")
    await refused(cluster.tidemark.Hold(T.HoldRequest(volume_id=made, holder="me")), CODE.UNIMPLEMENTED, *words)
    await refused(cluster.tidemark.GetTree(T.GetTreeRequest()), CODE.UNIMPLEMENTED, *words)
    # To a rollback it is no answer at all: neither a final no, nor a disk that is gone.
    with pytest.raises(OtherVersion) as caught:
        await AgentApi(cluster.channels).describe_volume(made)
    assert isinstance(caught.value, Unavailable)
    # What both know goes on.
    assert (await cluster.controller.ControllerGetVolume(C.ControllerGetVolumeRequest(volume_id=made))).volume.volume_id


async def test_an_agent_whose_version_cannot_be_asked_for_is_named_all_the_same(cluster: Cluster) -> None:
    agent = cluster.agents["n-1"]
    await served_again(agent, *(one for one in agent.servicers if isinstance(one, Tidemark)))
    method, kind = "csi.v1.Controller/GetCapacity", C.GetCapacityResponse
    with pytest.raises(OtherVersion, match=r"node n-1 is of version unknown \(UNIMPLEMENTED\)"):
        await cluster.channels.call("n-1", method, C.GetCapacityRequest(), kind, 5)


async def test_the_command_says_what_is_lacking(cluster: Cluster) -> None:
    def ask() -> None:
        with cli_client.Client(f"unix://{cluster.directory}/csi.sock") as made:
            made._own("Levitate", T.HoldRequest(), T.HoldResponse, 5)

    words = rf"does not have tidemark.v1.Tidemark/Levitate.* version {__version__}"
    with pytest.raises(cli_client.CallRefused, match=words) as caught:
        await asyncio.to_thread(ask)
    assert caught.value.code == "UNIMPLEMENTED"


def test_the_command_shows_a_kind_that_it_does_not_know() -> None:
    node = cli_messages.tree_node(T.TreeNode(id="n-1:default:" + "0" * 32, name="tape", kind=9, size_bytes=4096))
    assert node.kind == "other"
    drawn = io.StringIO()
    Console(file=drawn, width=200).print(draw(AgentObjects([node])))
    assert "tape  of a kind that this version does not know" in drawn.getvalue()

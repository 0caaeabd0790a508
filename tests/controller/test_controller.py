"""The controller as a process of a cluster: when it is ready, what it finds, what it tells, how it ends."""

from __future__ import annotations

import asyncio

import aiohttp
import grpc
import pytest
from controller_rig import NAMESPACE, ControllerRig, agent_pod, node, ready, until_ready
from support.fake_api import Call, FakeApi, Fault
from support.rpc_rig import CODE, create_volume, places
from support.waiting import until

from csi_driver._pb import csi_pb2 as C
from csi_driver.domain.errors import Precondition
from csi_driver.kube.resources import LEASES, NODES, PODS


async def http(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def test_it_serves_as_soon_as_it_has_read_the_cluster(rig: ControllerRig) -> None:
    await until_ready(rig.identity)
    info = await rig.identity.GetPluginInfo(C.GetPluginInfoRequest())
    assert info.name == "csi.tidemark.dev"
    for owner in rig.agents:
        request = create_volume(f"v {owner}", accessibility_requirements=places(owner))
        assert (await rig.stub.CreateVolume(request)).volume.volume_id.startswith(f"{owner}:")
    assert len((await rig.stub.ListVolumes(C.ListVolumesRequest())).entries) == 2
    assert await http(rig.controller.probes.port, "/healthz") == (200, "alive\n")
    assert (await http(rig.controller.probes.port, "/readyz"))[0] == 200
    _, figures = await http(rig.controller.probes.port, "/metrics")
    assert 'tidemark_calls_total{code="OK",method="csi.v1.Controller/CreateVolume"} 2.0' in figures
    assert "tidemark_mirror_age_seconds" in figures


async def test_a_controller_without_the_cluster_says_so_and_waits(fake: FakeApi) -> None:
    rig = ControllerRig(fake)

    def refuse(call: Call) -> None:
        raise Fault(503, "ServiceUnavailable", "not yet")

    fake.hooks.append(refuse)
    async with rig:
        assert not await ready(rig.identity)
        status, why = await http(rig.controller.probes.port, "/readyz")
        assert (status, "not read yet: pods, nodes" in why) == (503, True)
        assert (await http(rig.controller.probes.port, "/healthz"))[0] == 200
        asked = C.ControllerGetVolumeRequest(volume_id="n-1:default:" + "0" * 32)
        with pytest.raises(grpc.aio.AioRpcError, match="not read the list"):
            await rig.stub.ControllerGetVolume(asked)
        fake.hooks.clear()
        await until_ready(rig.identity)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.stub.ControllerGetVolume(asked)
        assert caught.value.code() is CODE.NOT_FOUND  # the agent was asked


async def test_it_is_not_ready_without_a_certificate(rig: ControllerRig) -> None:
    await until_ready(rig.identity)
    (rig.root / "tls" / "..data").rename(rig.root / "away")
    assert not await ready(rig.identity)
    assert "tls.key" in (await http(rig.controller.probes.port, "/readyz"))[1]
    (rig.root / "away").rename(rig.root / "tls" / "..data")
    assert await ready(rig.identity)


async def test_agents_come_and_go(rig: ControllerRig) -> None:
    """A pod that is replaced, a node without an agent, a node that is gone: each is followed at once."""
    await until_ready(rig.identity)
    request = create_volume("v", accessibility_requirements=places("n-1"))
    made = (await rig.stub.CreateVolume(request)).volume.volume_id
    asked = C.ControllerGetVolumeRequest(volume_id=made)
    agent = rig.agents["n-1"]

    await agent.server.stop(0)
    agent.port = 0
    await agent.start()
    rig.fake.put(PODS, agent_pod("agent-new", "n-1", agent.port), NAMESPACE)
    rig.fake.remove(PODS, "agent-n-1", NAMESPACE)
    discovery = rig.controller._discovery
    await until(lambda: (discovery.endpoint("n-1") or agent).address == agent.address)
    assert (await rig.stub.ControllerGetVolume(asked)).volume.volume_id == made

    rig.fake.put(NODES, node("n-2"))
    await until(lambda: "n-2" in discovery.owners())
    with pytest.raises(grpc.aio.AioRpcError, match="n-2") as caught:
        await rig.stub.ListVolumes(C.ListVolumesRequest())
    assert caught.value.code() is CODE.UNAVAILABLE
    rig.fake.remove(NODES, "n-2")
    await until(lambda: "n-2" not in discovery.owners())
    assert len((await rig.stub.ListVolumes(C.ListVolumesRequest())).entries) == 1


async def test_who_answers_is_a_figure(rig: ControllerRig, monkeypatch: pytest.MonkeyPatch) -> None:
    from csi_driver.operator.agents import health

    monkeypatch.setattr(health, "EVERY_SECONDS", 0.05)
    second = await rig.start("second", operator=False)
    await rig.agents["n-10"].server.stop(0)

    async def figure(node_name: str) -> str:
        _, text = await http(second.probes.port, "/metrics")
        wanted = f'tidemark_agent_reachable{{node="{node_name}"}} '
        return next((line[len(wanted) :] for line in text.splitlines() if line.startswith(wanted)), "")

    async with asyncio.timeout(60):
        while (await figure("n-1"), await figure("n-10")) != ("1.0", "0.0"):
            await asyncio.sleep(0.01)
    await second.stop()


async def test_one_of_two_leads_and_both_serve(rig: ControllerRig) -> None:
    def holder() -> str:
        return str((rig.fake.get(LEASES, "tidemark-operator", NAMESPACE) or {"spec": {}})["spec"].get("holderIdentity"))

    await until(lambda: holder() == "csi")
    second = await rig.start("second")
    await rig.channel.close()
    rig.connect("second")
    await until_ready(rig.identity)
    request = create_volume("v", accessibility_requirements=places("n-1"))
    assert (await rig.stub.CreateVolume(request)).volume.volume_id.startswith("n-1:")
    await rig.controller.stop()
    async with asyncio.timeout(60):
        while "tidemark_leading 1.0" not in (await http(second.probes.port, "/metrics"))[1]:
            await asyncio.sleep(0.01)
    assert holder() == "second"
    await second.stop()
    assert holder() == ""


async def test_a_lease_that_somebody_has_spoilt_ends_nothing_for_good(
    fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    from csi_driver.controller import supervisor

    monkeypatch.setattr(supervisor, "RESTART_SECONDS", 0.05)
    fake.put(LEASES, {"metadata": {"name": "tidemark-operator"}, "spec": {"leaseTransitions": "many"}}, NAMESPACE)
    async with ControllerRig(fake) as rig:
        await until(lambda: len(fake.asked("get", LEASES)) > 2)
        fake.remove(LEASES, "tidemark-operator", NAMESPACE)
        async with asyncio.timeout(60):
            while "tidemark_leading 1.0" not in (await http(rig.controller.probes.port, "/metrics"))[1]:
                await asyncio.sleep(0.01)


async def test_calls_that_run_end_before_the_controller_does(rig: ControllerRig) -> None:
    await until_ready(rig.identity)
    pause = rig.agents["n-1"].faults.pause("create_volume")
    request = create_volume("v", accessibility_requirements=places("n-1"))
    running = asyncio.ensure_future(rig.stub.CreateVolume(request))
    await pause.reached.wait()
    stopping = asyncio.create_task(rig.controller.stop())
    await until(lambda: rig.controller._stopping)
    pause.release()
    assert (await running).volume.volume_id.startswith("n-1:")
    await stopping
    assert not (rig.root / "csi.sock").exists()


async def test_what_cannot_be_had_is_said(fake: FakeApi) -> None:
    rig = ControllerRig(fake)
    async with rig:
        with pytest.raises(Precondition, match="--kubeconfig"):
            await rig.start("other", kubeconfig="/nowhere")
        taken = ("127.0.0.1", rig.controller.probes.port)
        with pytest.raises(Precondition, match="--metrics-address"):
            await rig.start("other", metrics_address=taken)
        with pytest.raises(Precondition, match="another process serves"):
            await rig.start("csi")

"""The authority is rotated under running calls: by the steps of the operator, over connections that are real."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from pathlib import Path

import pytest
from support.cluster_rig import AgentOnTls, Cluster
from support.fake_api import FakeApi
from support.rpc_rig import CODE, create_volume
from test_mutual_tls import ask
from test_router import refused, volume

from csi_driver._pb import csi_pb2 as C
from csi_driver.kube.client import Object
from csi_driver.kube.resources import PODS, SECRETS
from csi_driver.kube.tls_secret import LOADED_PREFIX, TlsSecretFiles, loaded_by_pods
from csi_driver.operator.certificates.dependencies import CertificateDependencies
from csi_driver.operator.certificates.observe import CertificateSecrets, CertificateSpec
from csi_driver.operator.certificates.reconciler import CertificateReconciler
from csi_driver.rpc import tls
from csi_driver.rpc.clients.agent_api import AgentApi
from csi_driver.rpc.clients.agent_channels import AgentChannels

NAMESPACE = "tidemark"
OWNERS = ("n-1", "n-10", "n-2")


class Silent:
    async def emit(self, obj: Object, type: str, reason: str, message: str) -> None:  # noqa: A002
        pass


class Trusted(Cluster):
    """Three agents, each with files of its own as from its kubelet, and two controllers; all get theirs from Secrets."""

    def __init__(self, directory: Path, fake: FakeApi) -> None:
        super().__init__(directory)
        self.fake = fake
        self.controllers_identity = tls.TlsDirectory(directory / "pod-1")
        self.other_identity = tls.TlsDirectory(directory / "pod-2")
        self.agents = {owner: AgentOnTls(owner, tls.TlsDirectory(directory / owner)) for owner in OWNERS}
        for name in ("pod-1", "pod-2"):
            pod = {"metadata": {"name": name, "labels": {"a": "controller"}}, "spec": {"nodeName": "n"}}
            fake.put(PODS, pod | {"status": {"phase": "Running"}}, NAMESPACE)
        ended = {"metadata": {"name": "pod-0", "labels": {"a": "controller"}}, "spec": {"nodeName": "n"}}
        fake.put(PODS, ended | {"status": {"phase": "Succeeded"}}, NAMESPACE)

    async def prepare(self) -> None:
        api = await self.fake.connect()
        self.other = AgentChannels(self.discovery, self.other_identity)

        async def controllers(secret: Object) -> Mapping[str, str]:
            return await loaded_by_pods(api, NAMESPACE, "a=controller", "pod-", secret)

        async def agents(_: Object) -> Mapping[str, str]:
            return await AgentApi(self.other).loaded_certificates()

        wanted = [
            CertificateSpec("controller", "controller-tls", (tls.CONTROLLER, "hook.ns.svc"), controllers),
            CertificateSpec("agent", "agent-tls", (tls.AGENT,), agents),
        ]
        expiry: dict[str, datetime] = {}
        dependencies = CertificateDependencies(api, NAMESPACE, "", Silent(), expiry.__setitem__)
        self.keeper = CertificateReconciler(dependencies, CertificateSecrets("authority", wanted))
        await self.keeper.do_all()
        self.materials = [
            *(
                TlsSecretFiles(api, NAMESPACE, "controller-tls", self.directory / pod, pod)
                for pod in ("pod-1", "pod-2")
            ),
            *(TlsSecretFiles(api, NAMESPACE, "agent-tls", self.directory / owner) for owner in OWNERS),
        ]
        for material in self.materials:
            await material.refresh()

    async def rotate(self) -> None:
        """Every peer loads what is new at a pace of its own."""
        patch = {"metadata": {"annotations": {"tidemark.dev/rotate": ""}}}
        self.fake.change(SECRETS, "authority", patch, NAMESPACE)

        async def follow(material: TlsSecretFiles, every: float) -> None:
            while True:
                await asyncio.sleep(every)
                await material.refresh()

        following = [
            asyncio.ensure_future(follow(material, 0.02 + 0.05 * number))
            for number, material in enumerate(self.materials)
        ]
        try:
            while (await self.keeper.do_all()).waiting:
                await asyncio.sleep(0.02)
        finally:
            for task in following:
                task.cancel()
            await asyncio.wait(following)
        for material in self.materials:
            await material.refresh()


@pytest.fixture
async def trusted() -> AsyncIterator[Trusted]:
    with tempfile.TemporaryDirectory(prefix="tm-") as directory:
        async with FakeApi() as fake:
            made = Trusted(Path(directory), fake)
            await made.prepare()
            async with made:
                yield made
            await made.other.close()


async def test_two_hundred_calls_at_once_see_nothing_of_a_rotation(trusted: Trusted) -> None:
    """200 callers, over two controllers and three agents, call from before its begin until after its end; one call lasts
    for all of it. Afterwards the old authority is worth nothing.
    """
    old_caller = tls.channel_credentials(trusted.controllers_identity.read())
    old_root = trusted.controllers_identity.read()[0]
    over = asyncio.Event()
    done = 0
    first = asyncio.Event()

    async def caller(number: int) -> None:
        nonlocal done
        owner = OWNERS[number % 3]
        while not over.is_set():
            if number % 2:
                made = await volume(trusted, f"volume {number}", owner)
                await trusted.controller.DeleteVolume(C.DeleteVolumeRequest(volume_id=made))
            else:
                request, method = create_volume(f"volume {number}"), "csi.v1.Controller/CreateVolume"
                answer = await trusted.other.call(owner, method, request, C.CreateVolumeResponse, 30)
                gone = C.DeleteVolumeRequest(volume_id=answer.volume.volume_id)
                await trusted.other.call(owner, "csi.v1.Controller/DeleteVolume", gone, C.DeleteVolumeResponse, 30)
            done += 1
            if done >= 200:
                first.set()

    pause = trusted.agents["n-2"].faults.pause("create_volume")
    slow = asyncio.ensure_future(volume(trusted, "slow", "n-2"))
    await pause.reached.wait()
    callers = [asyncio.ensure_future(caller(number)) for number in range(200)]
    waiting = asyncio.ensure_future(first.wait())
    await asyncio.wait({waiting, *callers}, return_when=asyncio.FIRST_COMPLETED)
    await trusted.rotate()
    over.set()
    await asyncio.gather(*callers)
    pause.release()
    assert (await slow).startswith("n-2:")
    assert done >= 200
    authority, *_ = trusted.controllers_identity.read()
    assert authority != old_root
    assert authority.count(b"BEGIN CERTIFICATE") == 1
    for owner in OWNERS:
        address = trusted.agents[owner].address
        await refused(ask(address, old_caller), CODE.UNAVAILABLE)
        assert await ask(address, tls.channel_credentials(trusted.controllers_identity.read()))


async def test_a_rotation_waits_for_a_replica_that_has_not_loaded_its_files(trusted: Trusted) -> None:
    first, second, *kubelets = trusted.materials
    trusted.fake.change(SECRETS, "authority", {"metadata": {"annotations": {"tidemark.dev/rotate": ""}}}, NAMESPACE)
    assert (await trusted.keeper.do_all()).waiting == (*OWNERS, "pod-1", "pod-2")
    for material in (first, *kubelets):
        await material.refresh()
    assert (await trusted.keeper.do_all()).waiting == ("pod-2",)
    await trusted.agents["n-1"].server.stop(0)
    assert (await trusted.keeper.do_all()).waiting == ("n-1", "pod-2")
    trusted.ready("n-1", False)
    trusted.fake.change(PODS, "pod-2", {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, NAMESPACE)
    assert (await trusted.keeper.do_all()).waiting == ("n-10", "n-2", "pod-1"), "the next phase has begun"
    secret = trusted.fake.get(SECRETS, "controller-tls", NAMESPACE)
    assert secret is not None
    assert not [key for key in secret["metadata"]["annotations"] if key.startswith(LOADED_PREFIX)], (
        "what was reported is out of date"
    )
    await second.refresh()

"""The agent as a pod's only container: what the kubelet asks it, and what controllers reach."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from outside_rig import agent_of
from support.agent_process import ready
from support.cluster_rig import write_identity
from support.kubelet import Kubelet
from support.machine import why_no_pool
from support.ports import free_port

from csi_driver._pb import csi_pb2, csi_pb2_grpc
from csi_driver.operator.certificates import ca
from csi_driver.rpc import tls
from csi_driver.rpc.agent.identity import CERTIFICATES

NAME = "csi.tidemark.dev"
SOCKET = f"{NAME}-reg.sock"
CODE = grpc.StatusCode


class Pod:
    """A directory with what a pod has, and the agent's process. A memory pool: nothing here is about disks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.registry, self.certificates, self.log = root / "registry", root / "tls", root / "log"
        for directory in (self.registry, self.certificates):
            directory.mkdir()
        self.endpoint = f"unix://{root}/csi.sock"
        self.port, self.http = free_port(), free_port()
        self.authority = ca.new_ca()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> None:
        variables = {
            "TIDEMARK_POOL": "default=memory:",
            "CSI_ENDPOINT": self.endpoint,
            "TIDEMARK_NODE_NAME": "node1",
            "TIDEMARK_LISTEN": f"127.0.0.1:{self.port}",
            "TIDEMARK_CERTIFICATES": str(self.certificates),
            "TIDEMARK_REGISTER": str(self.registry),
            "TIDEMARK_KUBELET_SOCKET": self.endpoint.removeprefix("unix://"),
            "TIDEMARK_METRICS_ADDRESS": f"127.0.0.1:{self.http}",
            "TIDEMARK_LOG_FORMAT": "json",
        }
        self.process = agent_of([], variables | environment, self.log)

    def until_it_serves(self) -> None:
        assert self.process is not None
        ready(self.endpoint, self.process, self.log).close()

    def certify(self, role: str = tls.AGENT) -> None:
        write_identity(self.certificates, self.authority, ca.issue(self.authority, role))

    def ask(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    async def until_ready(self) -> None:
        async with asyncio.timeout(30):
            while True:
                with suppress(urllib.error.URLError):  # it does not listen yet
                    if (await asyncio.to_thread(self.ask, "readyz"))[0] == 200:
                        return
                await asyncio.sleep(0.05)

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    @asynccontextmanager
    async def channel(self, role: str | None) -> AsyncIterator[grpc.aio.Channel]:
        """As somebody with a certificate of this role; None: plain text."""
        target = f"127.0.0.1:{self.port}"
        if role is None:
            channel = grpc.aio.insecure_channel(target)
        else:
            pair = ca.issue(self.authority, role)
            own = tls.channel_credentials((self.authority.certificate, pair.certificate, pair.key))
            channel = grpc.aio.secure_channel(target, own, options=[("grpc.ssl_target_name_override", tls.AGENT)])
        async with channel:
            yield channel

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture
def pod() -> Iterator[Pod]:
    with tempfile.TemporaryDirectory(prefix="tm-") as root:
        made = Pod(Path(root))
        try:
            yield made
        finally:
            made.end()


async def refused(call: Any, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    assert refusal.value.code() is code, refusal.value


async def test_controllers_are_served_as_soon_as_there_are_certificates(pod: Pod) -> None:
    pod.start()
    pod.until_it_serves()  # the socket, for the kubelet: volumes that are here already must mount
    status, text = pod.ask("readyz")
    assert status == 503
    assert "tls: " in text
    assert "ca.crt" in text
    assert pod.ask("healthz")[0] == 200
    (waiting,) = pod.logged("cannot serve controllers yet, retrying")
    assert "ca.crt" in waiting["why"]

    pod.certify()
    await pod.until_ready()
    async with pod.channel(tls.CONTROLLER) as channel:
        identity = csi_pb2_grpc.IdentityStub(channel)
        assert (await identity.Probe(csi_pb2.ProbeRequest(), timeout=10)).ready.value
        info = await identity.GetPluginInfo(csi_pb2.GetPluginInfoRequest(), timeout=10)
        assert info.manifest[CERTIFICATES] == tls.TlsDirectory(pod.certificates).fingerprint()
        answer = await csi_pb2_grpc.ControllerStub(channel).GetCapacity(csi_pb2.GetCapacityRequest(), timeout=10)
        assert answer.available_capacity > 0
        # Node is the kubelet's: on its socket alone.
        info = csi_pb2.NodeGetInfoRequest()
        await refused(csi_pb2_grpc.NodeStub(channel).NodeGetInfo(info, timeout=10), CODE.UNIMPLEMENTED)
    async with grpc.aio.insecure_channel(pod.endpoint) as channel:
        assert (await csi_pb2_grpc.NodeStub(channel).NodeGetInfo(info, timeout=10)).node_id == "node1"
    for role, code in ((tls.AGENT, CODE.PERMISSION_DENIED), (None, CODE.UNAVAILABLE)):
        async with pod.channel(role) as channel:
            stub = csi_pb2_grpc.ControllerStub(channel)
            await refused(stub.GetCapacity(csi_pb2.GetCapacityRequest(), timeout=10), code)
    assert "tidemark_calls_total" in pod.ask("metrics")[1]


async def test_certificates_that_cannot_be_used_are_not_the_end(pod: Pod) -> None:
    pod.certify()
    right = (pod.certificates / "tls.key").read_bytes()
    (pod.certificates / "tls.key").write_bytes(ca.issue(pod.authority, tls.AGENT).key)
    pod.start()
    pod.until_it_serves()
    status, text = pod.ask("readyz")
    assert status == 503
    assert "do not fit together" in text
    assert "PRIVATE" not in pod.log.read_text()
    (pod.certificates / "tls.key").write_bytes(right)
    await pod.until_ready()


async def test_the_kubelet_finds_it_once_it_is_ready(pod: Pod) -> None:
    async with Kubelet(pod.registry) as kubelet:
        kubelet.refusals = ["not now"]
        pod.start()
        await kubelet.until("registered", SOCKET)
        assert kubelet.drivers == {NAME: "node1"}
        async with asyncio.timeout(10):  # it heard the verdict, and has yet to pass it on
            while not (await asyncio.to_thread(pod.ask, "readyz"))[1].endswith("registered: yes\n"):
                await asyncio.sleep(0.02)
        (line,) = pod.logged("not registered with the kubelet")
        assert line["level"] == "error"
        assert "not now" in line["why"]
        assert pod.process is not None
        for number in (signal.SIGTERM, signal.SIGKILL):
            pod.process.send_signal(number)
            await asyncio.to_thread(pod.process.wait, 30)
            assert kubelet.drivers == {NAME: "node1"}, "a new pod, and one that ends, would be refused by the kubelet"
            before = kubelet.heard.count(("registered", SOCKET))
            pod.start()
            await kubelet.until("registered", SOCKET, before + 1)
        assert ("removed", SOCKET) not in kubelet.heard


def test_a_registry_that_is_not_there(pod: Pod) -> None:
    pod.start(TIDEMARK_REGISTER=str(pod.root / "nowhere"))
    assert pod.process is not None
    assert pod.process.wait(30) == 1
    assert "plugins_registry" in pod.log.read_text()


async def test_it_goes_at_sigterm(pod: Pod) -> None:
    pod.certify()
    pod.start()
    await pod.until_ready()
    assert pod.process is not None
    pod.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(pod.process.wait, 30) == 0
    assert not os.path.exists(pod.endpoint.removeprefix("unix://"))


@pytest.mark.root
async def test_pods_end_although_the_pools_disk_is_away(pod: Pod) -> None:
    """An agent that refused to start would keep them for ever."""
    if reason := why_no_pool():
        pytest.skip(reason)
    pod.certify()
    target = pod.root / "target"
    target.mkdir()
    async with Kubelet(pod.registry) as kubelet:
        pod.start(TIDEMARK_POOL=f"{pod.root}/disk")
        await kubelet.until("registered", SOCKET)
        status, text = pod.ask("readyz")
        assert status == 503
        assert "pools: " in text
        assert "mount the pool's disk" in text
        async with grpc.aio.insecure_channel(pod.endpoint) as channel:
            node, volume = csi_pb2_grpc.NodeStub(channel), f"node1:default:{'0' * 32}"
            request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume, target_path=str(target))
            await node.NodeUnpublishVolume(request, timeout=30)
            assert not target.exists()
            capacity = csi_pb2_grpc.ControllerStub(channel).GetCapacity(csi_pb2.GetCapacityRequest(), timeout=10)
            await refused(capacity, CODE.UNAVAILABLE)

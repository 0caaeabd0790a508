"""A whole controller, as its command would run it: agents on mutual TLS, and a Kubernetes API in memory."""

from __future__ import annotations

import asyncio
import tempfile
from base64 import b64encode
from pathlib import Path
from typing import Any

import grpc
from support.cluster_rig import AgentOnTls, write_identity
from support.fake_api import FakeApi, Object

from csi_driver._pb import csi_pb2 as C
from csi_driver._pb import csi_pb2_grpc, tidemark_pb2_grpc
from csi_driver.controller.main import Controller
from csi_driver.controller.settings import ControllerSettings
from csi_driver.domain.certificates import FILES
from csi_driver.domain.routing import TOPOLOGY_KEY
from csi_driver.kube.resources import NODES, PODS, PVCS, PVS, SECRETS
from csi_driver.operator.certificates import ca as authority
from csi_driver.rpc import tls

NAMESPACE = "tidemark"
DRIVER = "csi.tidemark.dev"


def node(name: str, ready: bool = True, labelled: bool = True) -> Object:
    return {
        "metadata": {"name": name, "labels": {TOPOLOGY_KEY: name} if labelled else {}},
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}]},
    }


def agent_pod(name: str, node_name: str, port: int, **more: Any) -> Object:
    return {
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/name": "tidemark", "app.kubernetes.io/component": "agent"},
            "ownerReferences": [{"kind": "DaemonSet", "name": more.get("owner", "tidemark-agent")}],
        },
        "spec": {
            "nodeName": node_name,
            "containers": [{"name": "agent", "ports": [{"name": "grpc", "containerPort": port}]}],
        },
        "status": {
            "phase": "Running",
            "podIP": more.get("ip", "127.0.0.1"),
            "conditions": [{"type": "Ready", "status": "True" if more.get("ready", True) else "False"}],
        },
    }


def volume(name: str, handle: str, driver: str = DRIVER) -> Object:
    return {"metadata": {"name": name}, "spec": {"csi": {"driver": driver, "volumeHandle": handle}}}


class ControllerRig:
    """Agents n-1 and n-10, the objects that a cluster would have of them, and a controller that has read them."""

    def __init__(self, fake: FakeApi) -> None:
        self.fake = fake
        # Not tmp_path: its names are longer than a socket's path may be.
        self._directory = tempfile.TemporaryDirectory(prefix="tm-")
        self.root = Path(self._directory.name)
        ca = authority.new_ca()
        agents = write_identity(self.root / "agents", ca, authority.issue(ca, tls.AGENT))
        write_identity(self.root / "controllers", ca, authority.issue(ca, tls.CONTROLLER))
        for name in ("agents", "controllers"):
            self.put_secret(name)
        self.agents = {owner: AgentOnTls(owner, agents) for owner in ("n-1", "n-10")}

    async def __aenter__(self) -> ControllerRig:
        for agent in self.agents.values():
            await agent.pool.open()
            await agent.start()
            self.add(agent)
        self.controller = await self.start("csi")
        self.connect("csi")
        return self

    def add(self, agent: AgentOnTls) -> None:
        """Its node and its pod."""
        self.fake.put(NODES, node(agent.owner))
        self.fake.put(PODS, agent_pod(f"agent-{agent.owner}", agent.owner, agent.port), NAMESPACE)

    async def start(self, socket: str, **more: Any) -> Controller:
        """One more replica, on a socket of its own."""
        settings = {
            "endpoint": f"unix://{self.root}/{socket}.sock",
            "certificates": str(self.root / "tls"),
            "controller_secret": "controllers",
            "agent_secret": "agents",
            "kubeconfig": self.fake.kubeconfig(self.root / "kubeconfig"),
            "metrics_address": ("127.0.0.1", 0),
            "pod_name": socket,
        }
        made = Controller(ControllerSettings(**(settings | more)))
        try:
            await made.start()
        except BaseException:
            await made.stop()
            raise
        return made

    def put_secret(self, name: str) -> None:
        """Certificates of the user's own: what lies in a directory, as a Secret."""
        data = {key: b64encode((self.root / name / key).read_bytes()).decode() for key in FILES}
        self.fake.put(SECRETS, {"metadata": {"name": name}, "type": "kubernetes.io/tls", "data": data}, NAMESPACE)

    def connect(self, socket: str) -> None:
        self.channel = grpc.aio.insecure_channel(f"unix://{self.root}/{socket}.sock")
        self.identity = csi_pb2_grpc.IdentityStub(self.channel)
        self.stub = csi_pb2_grpc.ControllerStub(self.channel)
        self.tidemark = tidemark_pb2_grpc.TidemarkStub(self.channel)

    async def __aexit__(self, *exc: object) -> None:
        await self.channel.close()
        await self.controller.stop()
        for agent in self.agents.values():
            await agent.server.stop(0)
            await agent.calls.drain(5)
            await agent.backend.close()
            agent.backend.discard()
        self._directory.cleanup()

    def claim(self, name: str, selected: str = "") -> Object:
        """A claim as the API has it, for whose pod a node may be selected."""
        notes = {"volume.kubernetes.io/selected-node": selected} if selected else {}
        return self.fake.put(PVCS, {"metadata": {"name": name, "annotations": notes}}, "ns")

    def note(self, name: str, key: str) -> str | None:
        """An annotation of a claim."""
        found = self.fake.get(PVCS, name, "ns")
        return (found or {})["metadata"].get("annotations", {}).get(key)

    def persist(self, name: str, handle: str) -> None:
        """What the provisioner makes of a volume."""
        self.fake.put(PVS, volume(name, handle))


async def ready(stub: csi_pb2_grpc.IdentityStub) -> bool:
    # A socket is there a moment before its server listens at it.
    return bool((await stub.Probe(C.ProbeRequest(), wait_for_ready=True)).ready.value)


async def until_ready(stub: csi_pb2_grpc.IdentityStub) -> None:
    async with asyncio.timeout(60):
        while not await ready(stub):
            await asyncio.sleep(0.01)

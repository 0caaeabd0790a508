"""Several agents in this process, each on a mutual-TLS port, and a controller on a socket that routes to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from csi_driver._pb import csi_pb2_grpc, tidemark_pb2_grpc
from csi_driver.backends.memory.backend import Faults, MemoryBackend
from csi_driver.domain.capacity import CapacityPolicy
from csi_driver.operator.certificates import ca
from csi_driver.rpc import tls
from csi_driver.rpc.agent.identity import Identity, certificate_manifest
from csi_driver.rpc.agent.servicers import agent_servicers, for_controllers
from csi_driver.rpc.clients.agent_api import AgentApi
from csi_driver.rpc.clients.agent_channels import AgentChannels
from csi_driver.rpc.forwarding.controller import ForwardingController
from csi_driver.rpc.forwarding.group_controller import ForwardingGroupController
from csi_driver.rpc.forwarding.tidemark import ForwardingTidemark
from csi_driver.rpc.interceptors import CallTracker
from csi_driver.rpc.server import Server
from csi_driver.rpc.tls_server import CONNECTION_SECONDS, SecureServer
from csi_driver.service.agent_routing import AgentRouter
from csi_driver.service.build import build_services
from csi_driver.service.discovery import AgentEndpoint
from csi_driver.service.placement import Placement, PvcPlacement
from csi_driver.service.pools import Pool, Pools
from support.rpc_rig import Recorder
from support.sizes import GIB


def write_identity(directory: Path, root: ca.KeyPair, pair: ca.KeyPair, trusted: bytes = b"") -> tls.TlsDirectory:
    """Lay out a certificate as Kubernetes mounts it; `trusted` replaces the authority's own certificate."""
    directory.mkdir(exist_ok=True, mode=0o700)
    for name, data in (("ca.crt", trusted or root.certificate), ("tls.crt", pair.certificate), ("tls.key", pair.key)):
        (directory / f".{name}").write_bytes(data)
        (directory / f".{name}").rename(directory / name)
    return tls.TlsDirectory(directory)


class Discovered:
    """Discovery that a test changes."""

    def __init__(self) -> None:
        self.places: dict[str, AgentEndpoint] = {}
        self.read = True
        self.given_up: set[str] = set()

    def endpoint(self, owner: str) -> AgentEndpoint | None:
        return self.places.get(owner)

    def owners(self) -> list[str]:
        return list(self.places)

    def has_synced(self) -> bool:
        return self.read

    def is_decommissioned(self, owner: str) -> bool:
        return owner in self.given_up


class OneClaim:
    """One claim, for which everything is made."""

    def __init__(self) -> None:
        self.node: str | None = None
        self.written: list[str] = []

    async def find(self, volume: str, labels: Any) -> PvcPlacement:
        return PvcPlacement(selected_owner=self.node, chosen_owner=self.written[-1] if self.written else None)

    async def choose(self, placement: PvcPlacement, owner: str) -> PvcPlacement:
        self.written.append(owner)
        return replace(placement, chosen_owner=owner)


class AgentOnTls:
    """An agent with one memory pool; `now` is its clock, in Unix nanoseconds."""

    def __init__(
        self, owner: str, identity: tls.TlsDirectory, size: int = 64 * GIB, now: Callable[[], int] = time.time_ns
    ) -> None:
        self.owner = owner
        self.identity = identity
        self.faults = Faults()
        self.seen = Recorder()
        self.backend = MemoryBackend("default", owner, size, faults=self.faults, now=now)
        self.pool = Pool(self.backend, CapacityPolicy())
        self.services = services = build_services(Pools(owner, [self.pool]), now=now)
        self.context = services.dependencies
        self.fullness = services.fullness
        self.calls = CallTracker(self.seen)
        manifest = partial(certificate_manifest, identity)
        self.servicers = for_controllers(agent_servicers(services, "csi.tidemark.dev", owner, lambda: True, manifest))
        self.port = 0
        self.connection_seconds = CONNECTION_SECONDS
        self.earlier: list[grpc.aio.ServerInterceptor] = []
        """What makes it an agent of an earlier version."""

    async def start(self) -> None:
        self.server = SecureServer(
            ("127.0.0.1", self.port),
            self.identity,
            tls.CONTROLLER,
            self.servicers,
            [*self.earlier, self.calls],
            self.connection_seconds,
        )
        await self.server.start()
        self.port = self.server.port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def asked(self, method: str) -> int:
        """How often a call ended here."""
        return sum(1 for name, _ in self.seen.calls if name.endswith(f"/{method}"))


class Cluster:
    """Agents n-1 and n-10 (so that the order of ids differs from that of names), and one controller."""

    def __init__(self, directory: Path, now: Callable[[], int] = time.time_ns) -> None:
        self.directory = directory
        self.root = ca.new_ca()
        self.agents_identity = self.identity("agents", tls.AGENT)
        self.controllers_identity = self.identity("controllers", tls.CONTROLLER)
        self.agents = {owner: AgentOnTls(owner, self.agents_identity, now=now) for owner in ("n-1", "n-10")}
        self.discovery = Discovered()
        self.claim = OneClaim()
        self.seen = Recorder()

    def identity(self, name: str, role: str, root: ca.KeyPair | None = None, trusted: bytes = b"") -> tls.TlsDirectory:
        root = root or self.root
        return write_identity(self.directory / name, root, ca.issue(root, role), trusted)

    async def __aenter__(self) -> Cluster:
        for agent in self.agents.values():
            await agent.pool.open()
            await agent.start()
            self.discovery.places[agent.owner] = AgentEndpoint(agent.owner, agent.address)
        self.channels = AgentChannels(self.discovery, self.controllers_identity)
        router = AgentRouter(AgentApi(self.channels))
        self.calls = CallTracker(self.seen, shielded=False)
        self.server = Server(
            f"unix://{self.directory}/csi.sock",
            [
                Identity("csi.tidemark.dev", self.discovery.has_synced),
                ForwardingController(self.channels, router, Placement(self.discovery, self.claim)),
                ForwardingGroupController(self.channels, router),
                ForwardingTidemark(self.channels, router),
            ],
            [self.calls],
        )
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"unix://{self.directory}/csi.sock")
        self.controller = csi_pb2_grpc.ControllerStub(self.channel)
        self.groups = csi_pb2_grpc.GroupControllerStub(self.channel)
        self.tidemark = tidemark_pb2_grpc.TidemarkStub(self.channel)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.channel.close()
        await self.server.stop(0)
        await self.channels.close()
        for agent in self.agents.values():
            await agent.server.stop(0)
            await agent.calls.drain(5)
            await agent.backend.close()
            agent.backend.discard()

    def ready(self, owner: str, ready: bool) -> None:
        self.discovery.places[owner] = replace(self.discovery.places[owner], ready=ready)

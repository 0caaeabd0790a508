"""The topology controller over an API in memory, on a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime

from csi_driver.domain.errors import Unavailable
from csi_driver.kube.informers import InformerFactory
from csi_driver.kube.resources import NODES, PODS, PVCS, PVS, STORAGE_CLASSES
from csi_driver.operator.agents.discovery import trim_node, trim_pv
from csi_driver.operator.topology.controller import Informers, TopologyController, trim_pvc, trim_unscheduled_pod
from csi_driver.service.agents import AgentCapacity
from support.fake_api import FakeApi, Object
from support.sizes import GIB
from support.topology_objects import DRIVER, Objects


class Capacities:
    """Agents that answer what a test says."""

    def __init__(self) -> None:
        self.left: dict[str, int | None] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []

    async def available_capacity(self, owner: str, pool: str, parameters: Mapping[str, str]) -> int:
        self.asked.append((owner, pool, dict(parameters)))
        left = self.left.get(owner, 100 * GIB)
        if left is None:
            raise Unavailable(f"the agent of node {owner} does not answer")
        return left


class TopologyRig(Objects):
    """The controller, on a clock that a test moves."""

    def __init__(self, fake: FakeApi, agents: AgentCapacity | None = None) -> None:
        super().__init__(fake)
        self.capacities = Capacities()
        self._agents = agents or self.capacities
        self.seen: list[tuple[str, str, str]] = []
        self.time = 1000.0
        self.now = datetime(2026, 1, 2, tzinfo=UTC)

    async def begin(self) -> None:
        api = await self.fake.connect()
        self.factory = InformerFactory(api)
        for_kind = self.factory.for_kind
        self.informers = Informers(
            for_kind(PVCS, transform=trim_pvc),
            for_kind(PODS, fields="spec.nodeName=", transform=trim_unscheduled_pod),
            for_kind(NODES, transform=trim_node),
            for_kind(PVS, transform=trim_pv),
            for_kind(STORAGE_CLASSES),
        )
        self.controller = TopologyController(
            api, self.informers, self._agents, self, DRIVER, lambda: self.time, lambda: self.now
        )

    async def emit(self, obj: Object, type: str, reason: str, message: str) -> None:  # noqa: A002
        assert type == "Warning"
        assert obj["metadata"]["uid"]
        self.seen.append((f"{obj['kind']} {obj['metadata']['name']}", reason, message))

    async def reconcile(self, seconds: float = 2.0) -> None:
        """Let the informers follow, and look once, `seconds` later."""
        self.time += seconds
        async with asyncio.timeout(60):
            for informer in (
                self.informers.pvcs,
                self.informers.pods,
                self.informers.nodes,
                self.informers.pvs,
                self.informers.storage_classes,
            ):
                await informer.wait_synced()
                while not self._followed(informer):
                    await asyncio.sleep(0.005)
        await self.controller.reconcile()

    def _followed(self, informer: object) -> bool:
        have = {one["metadata"]["uid"]: one["metadata"]["resourceVersion"] for one in informer.all()}  # type: ignore[attr-defined]
        kind = informer.kind  # type: ignore[attr-defined]
        there = [obj for obj in self.fake.all(kind) if kind != PODS or not obj["spec"].get("nodeName")]
        return have == {obj["metadata"]["uid"]: obj["metadata"]["resourceVersion"] for obj in there}

    def reasons(self, about: str) -> list[str]:
        return [reason for who, reason, _ in self.seen if who == about]

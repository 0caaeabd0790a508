"""The topology controller over an API in memory, on a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime

from csi_driver.domain.errors import Unavailable
from csi_driver.kube.informers import InformerFactory
from csi_driver.kube.resources import NODES, PODS, PVCS, PVS, STORAGE_CLASSES
from csi_driver.operator.agents.discovery import trim_node, trim_pv
from csi_driver.operator.topology.controller import CONCURRENCY, TopologyController
from csi_driver.operator.topology.observe import Informers
from csi_driver.operator.topology.trim import trim_pvc, trim_unscheduled_pod
from csi_driver.service.agents import AgentCapacity
from support.fake_api import FakeApi, Object
from support.queues import settle
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
    """The controller with its work queues, on a clock that a test moves. It works in `reconcile` only."""

    def __init__(self, fake: FakeApi, agents: AgentCapacity | None = None) -> None:
        super().__init__(fake)
        self.capacities = Capacities()
        self._agents = agents or self.capacities
        self.seen: list[tuple[str, str, str]] = []
        self.time = 1000.0
        self.now = datetime(2026, 1, 2, tzinfo=UTC)
        self.running: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        self._api = api = await self.fake.connect()
        self.factory = InformerFactory(api)
        for_kind = self.factory.for_kind
        self.informers = Informers(
            for_kind(PVCS, transform=trim_pvc),
            for_kind(PODS, fields="spec.nodeName=", transform=trim_unscheduled_pod),
            for_kind(NODES, transform=trim_node),
            for_kind(PVS, transform=trim_pv),
            for_kind(STORAGE_CLASSES),
        )
        self.lead()

    def lead(self) -> None:
        """Have a controller, which runs from the next `reconcile` on; another leader has another one."""
        self.controller = TopologyController(
            self._api, self.informers, self._agents, self, DRIVER, lambda: self.time, lambda: self.now
        )
        self._queues = (self.controller._pvc_queue, self.controller._pod_queue)

    async def stop(self) -> None:
        if self.running is not None:
            self.running.cancel()
            with suppress(asyncio.CancelledError):
                await self.running
        await self.factory.stop()

    async def emit(self, obj: Object, type: str, reason: str, message: str) -> None:  # noqa: A002
        assert type == "Warning"
        assert obj["metadata"]["uid"]
        self.seen.append((f"{obj['kind']} {obj['metadata']['name']}", reason, message))

    async def reconcile(self, seconds: float = 2.0) -> None:
        """Let the informers follow, and then the controller do all that is due `seconds` later."""
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
            if self.running is None:
                self.running = asyncio.create_task(self.controller.run())
                while not self.informers.pvcs._handlers:
                    await asyncio.sleep(0)
            assert not self.running.done(), self.running
            self._set_concurrency(CONCURRENCY)
            await settle(lambda: self.time, *self._queues)
            self._set_concurrency(0)  # else what is due next depends on which informer is the first to see a change

    def _set_concurrency(self, concurrency: int) -> None:
        for queue in self._queues:
            queue._concurrency = concurrency

    def _followed(self, informer: object) -> bool:
        have = {one["metadata"]["uid"]: one["metadata"]["resourceVersion"] for one in informer.all()}  # type: ignore[attr-defined]
        kind = informer.kind  # type: ignore[attr-defined]
        there = [obj for obj in self.fake.all(kind) if kind != PODS or not obj["spec"].get("nodeName")]
        return have == {obj["metadata"]["uid"]: obj["metadata"]["resourceVersion"] for obj in there}

    def reasons(self, about: str) -> list[str]:
        return [reason for who, reason, _ in self.seen if who == about]

"""The reconciler of pins over an API in memory, on a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime

from fake_api import FakeApi, Object
from pin_rig import DRIVER, Objects

from csi_driver.domain.errors import Unavailable
from csi_driver.kube.informers import Mirrors
from csi_driver.kube.resources import NODES, PODS, PVCS, PVS, STORAGE_CLASSES
from csi_driver.operator.agents.discovery import keep_node, keep_volume
from csi_driver.operator.topology.controller import Informers, TopologyController, keep_claim, trim_unscheduled_pod
from csi_driver.service.agents import AgentCapacity

GIB = 1 << 30


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


class Leading(Objects):
    """The reconciler, on a clock that a test moves."""

    def __init__(self, fake: FakeApi, agents: AgentCapacity | None = None) -> None:
        super().__init__(fake)
        self.capacities = Capacities()
        self._agents = agents or self.capacities
        self.seen: list[tuple[str, str, str]] = []
        self.time = 1000.0
        self.now = datetime(2026, 1, 2, tzinfo=UTC)

    async def begin(self) -> None:
        api = await self.fake.connect()
        self.mirrors = Mirrors(api)
        of = self.mirrors.of
        self.copies = Informers(
            of(PVCS, keep=keep_claim),
            of(PODS, fields="spec.nodeName=", keep=trim_unscheduled_pod),
            of(NODES, keep=keep_node),
            of(PVS, keep=keep_volume),
            of(STORAGE_CLASSES),
        )
        self.pins = TopologyController(
            api, self.copies, self._agents, self, DRIVER, lambda: self.time, lambda: self.now
        )

    async def emit(self, obj: Object, type: str, reason: str, message: str) -> None:  # noqa: A002
        assert type == "Warning"
        assert obj["metadata"]["uid"]
        self.seen.append((f"{obj['kind']} {obj['metadata']['name']}", reason, message))

    async def look(self, seconds: float = 2.0) -> None:
        """Let the copies follow, and look once, `seconds` later."""
        self.time += seconds
        async with asyncio.timeout(60):
            for mirror in (
                self.copies.claims,
                self.copies.pods,
                self.copies.nodes,
                self.copies.volumes,
                self.copies.classes,
            ):
                await mirror.wait_synced()
                while not self._followed(mirror):
                    await asyncio.sleep(0.005)
        await self.pins.look()

    def _followed(self, mirror: object) -> bool:
        have = {one["metadata"]["uid"]: one["metadata"]["resourceVersion"] for one in mirror.all()}  # type: ignore[attr-defined]
        kind = mirror.kind  # type: ignore[attr-defined]
        there = [obj for obj in self.fake.all(kind) if kind != PODS or not obj["spec"].get("nodeName")]
        return have == {obj["metadata"]["uid"]: obj["metadata"]["resourceVersion"] for obj in there}

    def reasons(self, about: str) -> list[str]:
        return [reason for who, reason, _ in self.seen if who == about]

"""The capacity that agents report, cached for as long as it takes nobody to notice."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from csi_driver.domain.errors import Unavailable
from csi_driver.operator.topology.data_source import SourceLocation
from csi_driver.operator.topology.planner import AgentUnreachable
from csi_driver.service.agents import AgentCapacity

MAX_AGE_SECONDS = 2.0
"""Age at which an answer is asked for again. No watch shows that a pool has room again, or that an agent answers again, so this
is also how soon a PVC that waits for one of them goes on."""


@dataclass(frozen=True, slots=True)
class CapacityAnswer:
    """Bytes that an agent can still provision, and until when this counts, by the clock."""

    capacity: int | AgentUnreachable
    expires: float


class CapacityCache:
    """Asks an agent once for all PVCs that are alike. All of them get the same time to ask again: one of them asks then."""

    def __init__(self, agents: AgentCapacity, clock: Callable[[], float]) -> None:
        self._agents = agents
        self._clock = clock
        self._answers: dict[tuple[object, ...], CapacityAnswer] = {}
        self._queries: dict[tuple[object, ...], asyncio.Task[CapacityAnswer]] = {}

    async def query(self, location: SourceLocation, parameters: Mapping[str, str]) -> CapacityAnswer:
        """Return the capacity for new volumes of a class with these parameters where a data source is."""
        key = (location, *sorted(parameters.items()))
        answer = self._answers.get(key)
        if answer is not None and self._clock() < answer.expires:
            return answer
        if key not in self._queries:
            task = self._queries[key] = asyncio.create_task(self._ask(key, location, parameters))
            task.add_done_callback(lambda _: self._queries.pop(key, None))
        return await self._queries[key]

    async def _ask(
        self, key: tuple[object, ...], location: SourceLocation, parameters: Mapping[str, str]
    ) -> CapacityAnswer:
        capacity: int | AgentUnreachable
        try:
            capacity = await self._agents.available_capacity(location.owner, location.pool, parameters)
        except Unavailable:
            capacity = AgentUnreachable()
        now = self._clock()
        self._answers = {other: answer for other, answer in self._answers.items() if now < answer.expires}
        answer = self._answers[key] = CapacityAnswer(capacity, now + MAX_AGE_SECONDS)
        return answer

"""What runs beside the routing of calls: the one place where a reconciler, or anything of its kind, is plugged in.

A part is a class with `async run()`, which goes on until it is cancelled. One that fails is begun again after a pause,
and harms nobody else. It is made by a factory from all that a controller has.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from csi_driver.controller_settings import ControllerSettings
from csi_driver.controller_telemetry import ControllerTelemetry
from csi_driver.kube.api import Api
from csi_driver.kube.events import Events
from csi_driver.kube.mirrors import Mirrors
from csi_driver.operator.names import Ours
from csi_driver.rpc.agents import Agents
from csi_driver.service.discovery import Discovery

RESTART_SECONDS = 5.0
"""Before a part that failed is begun again."""

log = structlog.get_logger()


class Part(Protocol):
    """One thing that is kept going."""

    async def run(self) -> None:
        """Go on until cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class Room:
    """All that a part may be made of."""

    settings: ControllerSettings
    ours: Ours
    api: Api
    mirrors: Mirrors
    events: Events
    discovery: Discovery
    agents: Agents
    telemetry: ControllerTelemetry


Factory = Callable[[Room], Part]


def _certificates(room: Room) -> Part:
    from csi_driver.app import trust

    return trust.keeper(room)


def _own_files(room: Room) -> Part:
    from csi_driver.app import trust

    return trust.own_files(room)


def _orphans(room: Room) -> Part:
    from csi_driver.kube.kinds import VOLUMES
    from csi_driver.operator.discovery import keep_volume
    from csi_driver.operator.orphans import Orphans
    from csi_driver.rpc.inventory import AgentInventory

    volumes = room.mirrors.of(VOLUMES, keep=keep_volume)
    tell = room.telemetry.orphans.set
    return Orphans(AgentInventory(room.agents), volumes, room.ours.driver, room.events, tell)


def _full_pools(room: Room) -> Part:
    from csi_driver.operator.full_pools import FullPoolEvents
    from csi_driver.rpc.fullness import AgentFullness

    return FullPoolEvents(AgentFullness(room.agents), room.events)


def _rollbacks(room: Room) -> Part:
    from csi_driver.app import rollbacks

    return rollbacks.reconciler(room)


def _schedules(room: Room) -> Part:
    from csi_driver.app import schedules

    return schedules.reconciler(room)


def _reach(room: Room) -> Part:
    from csi_driver.rpc.reach import Reach

    return Reach(room.agents, room.telemetry.reached)


def _webhook(room: Room) -> Part:
    from csi_driver.app import pins

    return pins.webhook(room)


def _pins(room: Room) -> Part:
    from csi_driver.app import pins

    return pins.reconciler(room)


ON_EVERY_REPLICA: list[Factory] = [_certificates, _own_files, _webhook, _reach]
"""Begun with the controller, before it is ready: what each replica needs for itself."""

ON_THE_LEADER: list[Factory] = [_pins, _orphans, _full_pools, _rollbacks, _schedules]
"""Begun by the one that holds the Lease, and cancelled when it must not any more."""


class _Lead:
    """Asks for the Lease, and runs what the leader runs while it has it."""

    def __init__(self, room: Room) -> None:
        self._room = room

    async def run(self) -> None:
        from csi_driver.kube.lease import Leader

        room = self._room
        await Leader(room.api, room.ours.namespace, room.ours.lease, room.settings.pod_name).run(self._lead)

    async def _lead(self) -> None:
        self._room.telemetry.leading.set(1)
        try:
            await keep_going(ON_THE_LEADER, self._room)
        finally:
            self._room.telemetry.leading.set(0)


async def run_all(room: Room) -> None:
    """Run all that this controller is told to, until cancelled; the lease is given back then."""
    await keep_going([*ON_EVERY_REPLICA, *([_Lead] if room.settings.operator else [])], room)


async def keep_going(factories: Sequence[Factory], room: Room) -> None:
    """Make these parts and run them all, until cancelled."""
    async with asyncio.TaskGroup() as group:
        for factory in factories:
            group.create_task(_keep_one(factory, room))


async def _keep_one(factory: Factory, room: Room) -> None:
    while True:
        try:
            await factory(room).run()
            log.error("a part has ended by itself", part=_name(factory), again_in=RESTART_SECONDS)
        except Exception:
            log.exception("a part has failed", part=_name(factory), again_in=RESTART_SECONDS)
        await asyncio.sleep(RESTART_SECONDS)


def _name(factory: Factory) -> str:
    return str(getattr(factory, "__name__", factory)).lstrip("_")

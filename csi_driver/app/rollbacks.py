"""Puts the reconciler of VolumeRollbacks together: over the agents' channels, with its figures."""

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import structlog

from csi_driver.domain.errors import DriverError
from csi_driver.kube.kinds import ROLLBACKS
from csi_driver.operator.rollback_wish import Phase
from csi_driver.operator.rollbacks import Rollbacks
from csi_driver.rpc.disks import AgentDisks

if TYPE_CHECKING:
    from csi_driver.app.parts import Part, Room

UNSERVED_SECONDS = 30.0
"""Between looks for the definition of VolumeRollback, where the cluster has none."""


log = structlog.get_logger()


class _Reconciler:
    def __init__(self, room: "Room") -> None:
        self._room = room

    async def run(self) -> None:
        """Reconcile as soon as the cluster knows VolumeRollbacks. Until cancelled."""
        room = self._room
        await _until_served(room)
        mirror = room.mirrors.of(ROLLBACKS)
        rollbacks = Rollbacks(room.api, AgentDisks(room.agents), mirror, room.events, room.ours.driver)
        gauge = room.telemetry.rollbacks
        for phase in Phase:
            gauge.labels(str(phase)).set_function(partial(_count, rollbacks, phase))
        try:
            await rollbacks.run()
        finally:
            gauge.clear()


async def _until_served(room: "Room") -> None:
    """Wait until the cluster knows the kind; before, its mirror would only fail."""
    while True:
        try:
            if await room.api.served(ROLLBACKS.group, ROLLBACKS.version, ROLLBACKS.plural):
                return
            why = "the chart's definitions are not installed"
        except DriverError as error:
            why = str(error)
        log.warning("VolumeRollbacks are not served", why=why, again_in=UNSERVED_SECONDS)
        await asyncio.sleep(UNSERVED_SECONDS)


def _count(rollbacks: Rollbacks, phase: Phase) -> float:
    return rollbacks.phases()[str(phase)]


def reconciler(room: "Room") -> "Part":
    """The part that the leader runs."""
    return _Reconciler(room)

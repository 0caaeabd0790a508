"""Puts the reconciler of SnapshotSchedules together: copies of what it looks at, and its figures."""

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from csi_driver.domain.errors import DriverError
from csi_driver.kube.api import Api
from csi_driver.kube.errors import Refused
from csi_driver.kube.kinds import CONTENTS, ROLLBACKS, SCHEDULES, SNAPSHOTS, Kind
from csi_driver.operator.schedule_view import KEPT, OPTIONAL
from csi_driver.operator.schedules import Schedules

if TYPE_CHECKING:
    from csi_driver.app.parts import Part, Room
    from csi_driver.controller_telemetry import ControllerTelemetry

UNSERVED_SECONDS = 30.0
"""Between looks for the definitions of schedules and snapshots, where the cluster has none."""

NEEDED = (SCHEDULES, SNAPSHOTS, CONTENTS, ROLLBACKS)
"""Without the first there is nothing to do, and without rollbacks nobody knows which snapshots one wants: that the chart brings
them is worth waiting for. The other custom kinds may be missing, and the core's never are."""

log = structlog.get_logger()


class _Reconciler:
    def __init__(self, room: "Room") -> None:
        self._room = room

    async def run(self) -> None:
        """Reconcile as soon as the cluster knows schedules, snapshots and rollbacks. Until cancelled."""
        room, settings = self._room, self._room.settings
        await until_served(room.api)
        optional = {kind for kind in OPTIONAL if await readable(room.api, kind)}
        kinds = [kind for kind in KEPT if kind not in OPTIONAL or kind in optional]
        mirrors = {kind: room.mirrors.of(kind, keep=KEPT[kind]) for kind in kinds}
        figures = Figures(room.telemetry)
        schedules = Schedules(
            room.api, mirrors, room.events, settings.driver_name, figures, settings.snapshots_in_flight
        )
        try:
            await schedules.run()
        finally:
            figures.clear()


class Figures:
    """See operator.schedule_observer.ScheduleObserver."""

    def __init__(self, telemetry: "ControllerTelemetry") -> None:
        self._late = telemetry.schedule_late
        self._snapshots = telemetry.schedule_snapshots

    def made(self, namespace: str, name: str) -> None:
        """See ScheduleObserver."""
        self._snapshots.labels(namespace, name, "made").inc()

    def failed(self, namespace: str, name: str) -> None:
        """See ScheduleObserver."""
        self._snapshots.labels(namespace, name, "failed").inc()

    def deleted(self, namespace: str, name: str) -> None:
        """See ScheduleObserver."""
        self._snapshots.labels(namespace, name, "deleted").inc()

    def late(self, namespace: str, name: str, since: int | None) -> None:
        """See ScheduleObserver. What is late grows with the clock, also while nobody looks at the schedule."""
        gauge = self._late.labels(namespace, name)
        if since is None:
            gauge.set_function(lambda: 0.0)
        else:
            gauge.set_function(lambda: max(0.0, time.time() - since))

    def gone(self, namespace: str, name: str) -> None:
        """See ScheduleObserver."""
        self._late.remove(namespace, name)
        for result in ("made", "failed", "deleted"):
            self._snapshots.remove(namespace, name, result)

    def clear(self) -> None:
        """Another replica tells from now on."""
        self._late.clear()


async def readable(api: Api, kind: Kind) -> bool:
    """Whether the cluster serves a kind, and this account may read it: a feature of the chart may be off."""
    if not await api.served(kind.group, kind.version, kind.plural):
        return False
    try:
        await api.get(kind, "none", "default" if kind.namespaced else "")
    except Refused:
        return False
    return True


async def until_served(api: Api) -> None:
    """Wait for the kinds that are needed, and say which are missing."""
    while True:
        try:
            missing = [str(kind) for kind in NEEDED if not await readable(api, kind)]
            if not missing:
                return
            why = f"{', '.join(missing)} cannot be read: definitions, or rights of the chart, are not there"
        except DriverError as error:
            why = str(error)
        log.warning("SnapshotSchedules are not followed", why=why, again_in=UNSERVED_SECONDS)
        await asyncio.sleep(UNSERVED_SECONDS)


def reconciler(room: "Room") -> "Part":
    """The part that the leader runs."""
    return _Reconciler(room)

"""Puts the reconciler of VolumeRollbacks together: over the agents' channels, with its figures."""

import asyncio
from functools import partial

import structlog

from csi_driver.controller.component import Component, ControllerContext
from csi_driver.domain.errors import DriverError
from csi_driver.kube.resources import ROLLBACKS
from csi_driver.operator.rollback.controller import RollbackController
from csi_driver.operator.rollback.resource import Phase

UNSERVED_SECONDS = 30.0
"""Between checks for the definition of VolumeRollback, where the cluster has none."""


log = structlog.get_logger()


class _Reconciler:
    def __init__(self, context: ControllerContext) -> None:
        self._context = context

    async def run(self) -> None:
        """Reconcile as soon as the cluster knows VolumeRollbacks. Until cancelled."""
        context = self._context
        await _until_served(context)
        informer = context.informers.for_kind(ROLLBACKS)
        rollbacks = RollbackController(
            context.api, context.agents, informer, context.events, context.installation.driver
        )
        gauge = context.metrics.rollbacks
        for phase in Phase:
            gauge.labels(str(phase)).set_function(partial(_count, rollbacks, phase))
        try:
            await rollbacks.run()
        finally:
            gauge.clear()


async def _until_served(context: ControllerContext) -> None:
    """Wait until the cluster knows the kind; before, its informer would only fail."""
    while True:
        try:
            if await context.api.served(ROLLBACKS.group, ROLLBACKS.version, ROLLBACKS.plural):
                return
            why = "the chart's definitions are not installed"
        except DriverError as error:
            why = str(error)
        log.warning("VolumeRollbacks are not served", why=why, again_in=UNSERVED_SECONDS)
        await asyncio.sleep(UNSERVED_SECONDS)


def _count(rollbacks: RollbackController, phase: Phase) -> float:
    return rollbacks.phases()[str(phase)]


def reconciler(context: ControllerContext) -> Component:
    """The part that the leader runs."""
    return _Reconciler(context)

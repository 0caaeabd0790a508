"""Puts the reconciler of VolumeRollbacks together: over the agents' channels, with its figures."""

from functools import partial

from csi_driver.controller.component import Component, ControllerContext
from csi_driver.controller.served import until_served
from csi_driver.kube.resources import ROLLBACKS
from csi_driver.operator.rollback.controller import RollbackController
from csi_driver.operator.rollback.resource import Phase


class _Reconciler:
    def __init__(self, context: ControllerContext) -> None:
        self._context = context

    async def run(self) -> None:
        """Reconcile as soon as the cluster knows VolumeRollbacks. Until cancelled."""
        context = self._context
        await until_served(context.api, "VolumeRollbacks", [ROLLBACKS])
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


def _count(rollbacks: RollbackController, phase: Phase) -> float:
    return rollbacks.phases()[str(phase)]


def reconciler(context: ControllerContext) -> Component:
    """The part that the leader runs."""
    return _Reconciler(context)

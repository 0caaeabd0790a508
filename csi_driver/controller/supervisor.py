"""Keeps components running: one that fails is restarted after a pause, and does not stop others."""

import asyncio
from collections.abc import Sequence

import structlog

from csi_driver.controller.component import ControllerContext, Factory
from csi_driver.controller.components import ON_EVERY_REPLICA, ON_THE_LEADER
from csi_driver.kube.leader_election import LeaderElector

RESTART_SECONDS = 5.0
"""Before a component that failed is restarted."""

log = structlog.get_logger()


class _LeaderComponents:
    """Takes part in the leader election, and runs the leader's components while it leads."""

    def __init__(self, context: ControllerContext) -> None:
        self._context = context

    async def run(self) -> None:
        context = self._context
        installation, name = context.installation, context.settings.pod_name
        await LeaderElector(context.api, installation.namespace, installation.lease, name).run(self._lead)

    async def _lead(self) -> None:
        self._context.metrics.leading.set(1)
        try:
            await run_supervised(ON_THE_LEADER, self._context)
        finally:
            self._context.metrics.leading.set(0)


async def run_all(context: ControllerContext) -> None:
    """Run all components that the settings enable, until cancelled; the Lease is released then."""
    leader: list[Factory] = [_LeaderComponents] if context.settings.operator else []
    await run_supervised([*ON_EVERY_REPLICA, *leader], context)


async def run_supervised(factories: Sequence[Factory], context: ControllerContext) -> None:
    """Build these components and run them all, until cancelled."""
    async with asyncio.TaskGroup() as group:
        for factory in factories:
            group.create_task(_keep_one(factory, context))


async def _keep_one(factory: Factory, context: ControllerContext) -> None:
    while True:
        try:
            await factory(context).run()
            log.error("controller component exited unexpectedly", component=_name(factory), restart_in=RESTART_SECONDS)
        except Exception:
            log.exception("controller component failed", component=_name(factory), restart_in=RESTART_SECONDS)
        await asyncio.sleep(RESTART_SECONDS)


def _name(factory: Factory) -> str:
    return f"{factory.__module__.rpartition('.')[2]}.{factory.__qualname__}"

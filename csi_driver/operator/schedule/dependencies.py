"""What the controller of SnapshotSchedules and its reconciler are built from."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from csi_driver.kube.client import Api
from csi_driver.kube.events import Events
from csi_driver.kube.informer import Informer
from csi_driver.kube.resources import Kind
from csi_driver.operator.schedule.metrics import ScheduleMetrics
from csi_driver.operator.schedule.resource import LEAST_PERIOD

IN_FLIGHT_PER_NODE = 4
"""Snapshots and groups that schedules have under way on one node: each of them stops writes for a moment."""


@dataclass(frozen=True, slots=True)
class ScheduleDependencies:
    """`informers` holds those of schedule.cache.TRIMMERS, except optional kinds that the cluster does not serve.

    `limit` is IN_FLIGHT_PER_NODE or what the user has set, `least_period` is in seconds, and below a minute for tests only;
    `now` is the wall clock.
    """

    api: Api
    informers: Mapping[Kind, Informer]
    events: Events
    driver: str
    metrics: ScheduleMetrics
    limit: int = IN_FLIGHT_PER_NODE
    least_period: int = LEAST_PERIOD
    now: Callable[[], float] = time.time

"""Wires the services of one agent: what depends on what is written here, for the agent and for the tests alike."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from csi_driver.service.deletion_estimates import DeletionEstimates
from csi_driver.service.dependencies import Observer, ServiceDependencies, Unobserved
from csi_driver.service.fullness import Fullness
from csi_driver.service.group_snapshots import GroupSnapshots
from csi_driver.service.health import HealthScanner
from csi_driver.service.labels import Labels
from csi_driver.service.lineage import Lineage
from csi_driver.service.node_volumes import NodeVolumes
from csi_driver.service.pools import Pools
from csi_driver.service.rollbacks import Rollbacks
from csi_driver.service.snapshots import Snapshots
from csi_driver.service.usage_scanner import UsageScanner
from csi_driver.service.volumes import Volumes


def _new_uid() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Services:
    """All services of one agent. The last three work in the background: their `run` returns only when it is cancelled."""

    dependencies: ServiceDependencies
    volumes: Volumes
    snapshots: Snapshots
    group_snapshots: GroupSnapshots
    node_volumes: NodeVolumes
    rollbacks: Rollbacks
    lineage: Lineage
    labels: Labels
    deletion_estimates: DeletionEstimates
    usage_scanner: UsageScanner
    fullness: Fullness
    health_scanner: HealthScanner


def build_services(
    pools: Pools,
    *,
    observer: Observer | None = None,
    now: Callable[[], int] = time.time_ns,
    new_uid: Callable[[], str] = _new_uid,
) -> Services:
    """Build the services over pools that need not be open yet. Nothing runs before a caller starts it.

    `now`: Unix time in nanoseconds.
    """
    dependencies = ServiceDependencies(pools, now=now, new_uid=new_uid, observer=observer or Unobserved())
    snapshots = Snapshots(dependencies)
    usage_scanner = UsageScanner(dependencies)
    return Services(
        dependencies=dependencies,
        volumes=Volumes(dependencies),
        snapshots=snapshots,
        group_snapshots=GroupSnapshots(dependencies),
        node_volumes=NodeVolumes(dependencies),
        rollbacks=Rollbacks(dependencies, snapshots),
        lineage=Lineage(dependencies),
        labels=Labels(dependencies),
        deletion_estimates=DeletionEstimates(dependencies),
        usage_scanner=usage_scanner,
        fullness=Fullness(pools, usage_scanner),
        health_scanner=HealthScanner(dependencies),
    )

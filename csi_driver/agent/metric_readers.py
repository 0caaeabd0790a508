"""Reads what a scrape exports from the state of the agent. The scraping thread calls these: they read memory and statvfs."""

from time import time_ns

from csi_driver.agent.metrics import NodeMetrics, PoolMetrics, UnhealthyVolume
from csi_driver.domain.errors import Unavailable
from csi_driver.host.helper.client import HelperPool
from csi_driver.service.conditions import Conditions, pvc_of
from csi_driver.service.fullness import has_run_full
from csi_driver.service.pools import Pools
from csi_driver.service.usage_scanner import UsageScanner


class MetricReaders:
    """The callables for AgentMetrics.watch."""

    def __init__(self, pools: Pools, scanner: UsageScanner, conditions: Conditions, helpers: HelperPool) -> None:
        self._pools = pools
        self._scanner = scanner
        self._conditions = conditions
        self._helpers = helpers

    def pools(self) -> list[PoolMetrics]:
        """Return the metrics of all pools but those that are unavailable."""
        metrics = []
        for pool in self._pools:
            try:
                account = pool.ensure_available().last_account()
            except Unavailable:
                continue
            if account is None:
                continue
            scan = self._scanner.totals(pool.name)
            metrics.append(
                PoolMetrics(
                    pool=pool.name,
                    total=account.space.total,
                    used=account.space.total - account.space.free,
                    committed=account.committed,
                    available=account.available,
                    full=has_run_full(pool, account),
                    volumes=len(pool.volumes),
                    snapshots=len(pool.snapshots),
                    exclusive=scan.exclusive if scan.at else None,
                    extents=scan.extents if scan.at else None,
                    walked=(time_ns() - scan.at) / 1e9 if scan.at else None,
                )
            )
        return metrics

    def node(self) -> NodeMetrics:
        """Return the metrics of this agent."""
        return NodeMetrics(sum(pool.backend.attached_devices for pool in self._pools), self._helpers.stuck)

    def unhealthy_volumes(self) -> list[UnhealthyVolume]:
        """Return the volumes whose file systems have a problem, with their PVCs."""
        volumes = []
        for volume, condition in self._conditions.all():
            namespace, _, pvc = pvc_of(volume).partition("/")
            volumes.append(UnhealthyVolume(volume.id.pool, str(volume.id), namespace, pvc, condition.kind))
        return volumes

"""Reads what a scrape exports from the state of the agent. The scraping thread calls these: they read memory and statvfs."""

import heapq
from time import time_ns

from csi_driver.agent.gauges import (
    LimitMetrics,
    NodeMetrics,
    PoolMetrics,
    UnhealthyVolume,
    VolumeMetrics,
    VolumesMetrics,
)
from csi_driver.domain.errors import Unavailable
from csi_driver.domain.model import Volume
from csi_driver.host.helper.client import HelperPool
from csi_driver.service.conditions import Conditions, pvc_of
from csi_driver.service.fullness import has_run_full
from csi_driver.service.pools import Pool, Pools
from csi_driver.service.usage_scanner import UsageScanner


class MetricReaders:
    """Implements agent.gauges.GaugeReaders."""

    def __init__(
        self, pools: Pools, scanner: UsageScanner, conditions: Conditions, helpers: HelperPool, most_volumes: int
    ) -> None:
        self._pools = pools
        self._scanner = scanner
        self._conditions = conditions
        self._helpers = helpers
        self._most_volumes = most_volumes

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
                    limits=tuple(
                        LimitMetrics(pool.name, limit.name, limit.used, limit.total, limit.refuse_at)
                        for limit in account.space.limits
                    ),
                )
            )
        return metrics

    def volumes(self) -> VolumesMetrics:
        """Return the metrics of the largest volumes, the older one first if two have the same size.

        Which volumes these are changes with the volumes alone, not with what is written to them: a volume that comes and goes
        in this list would be new series again and again.
        """
        not_shown: dict[str, int] = {}
        candidates: list[tuple[Pool, Volume]] = []
        for pool in self._pools:
            try:
                volumes = list(pool.ensure_available().volumes.values())
            except Unavailable:
                continue
            not_shown[pool.name] = len(volumes)
            candidates += [(pool, volume) for volume in volumes]
        chosen = heapq.nsmallest(self._most_volumes, candidates, key=_largest_first)
        for pool, _ in chosen:
            not_shown[pool.name] -= 1
        return VolumesMetrics([self._volume(pool, volume) for pool, volume in chosen], not_shown)

    def _volume(self, pool: Pool, volume: Volume) -> VolumeMetrics:
        namespace, _, pvc = pvc_of(volume).partition("/")
        usage = self._scanner.last_usage(volume)
        return VolumeMetrics(
            pool=pool.name,
            volume=str(volume.id),
            namespace=namespace,
            claim=pvc,
            size=volume.size,
            snapshots=pool.snapshot_count(volume.uid),
            used=usage.exclusive + usage.shared if usage else None,
            exclusive=usage.exclusive if usage else None,
        )

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


def _largest_first(candidate: tuple[Pool, Volume]) -> tuple[int, int, str]:
    volume = candidate[1]
    return -volume.size, volume.created, str(volume.id)

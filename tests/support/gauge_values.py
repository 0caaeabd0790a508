"""What an agent's gauges show, as a test says it."""

from __future__ import annotations

from collections.abc import Sequence

from csi_driver.agent.gauges import (
    LimitMetrics,
    NodeMetrics,
    PoolMetrics,
    UnhealthyVolume,
    VolumeMetrics,
    VolumesMetrics,
)

EVERY_POOL = PoolMetrics(
    "fast", 1, 1, 1, 1, 1, 1, exclusive=1, extents=1, walked=1.0, limits=(LimitMetrics("fast", "metadata", 1, 3, 2),)
)
EVERY_VOLUME = VolumeMetrics("fast", "n1:fast:0", "shop", "db", size=1, snapshots=1, used=1, exclusive=1)
NOTHING = NodeMetrics(loop_devices=0, abandoned=0)
NONE = VolumesMetrics()
SICK = UnhealthyVolume("fast", "n1:fast:0", "shop", "db", "ShutDown")


class GaugeValues:
    """Implements agent.gauges.GaugeReaders."""

    def __init__(
        self,
        pools: Sequence[PoolMetrics] = (),
        node: NodeMetrics = NOTHING,
        volumes: VolumesMetrics = NONE,
        unhealthy: Sequence[UnhealthyVolume] = (),
    ) -> None:
        self._pools, self._node, self._volumes, self._unhealthy = pools, node, volumes, unhealthy

    def pools(self) -> Sequence[PoolMetrics]:
        return self._pools

    def volumes(self) -> VolumesMetrics:
        return self._volumes

    def unhealthy_volumes(self) -> Sequence[UnhealthyVolume]:
        return self._unhealthy

    def node(self) -> NodeMetrics:
        return self._node


EVERYTHING = GaugeValues([EVERY_POOL], NodeMetrics(1, 0), VolumesMetrics([EVERY_VOLUME], {"fast": 0}), [SICK])
"""A value of each gauge."""

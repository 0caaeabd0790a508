"""Volumes that no PersistentVolume of the cluster names."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from csi_driver.cli.cluster import call
from csi_driver.controller.settings import DEFAULT_NAMESPACE, DEFAULT_RELEASE

if TYPE_CHECKING:
    from csi_driver.kube.client import Api
    from csi_driver.rpc.clients.cli_client import Node

YOUNG = timedelta(hours=1)
"""A younger volume may yet get its PersistentVolume."""


def orphaned(volumes: "Sequence[Node]", kubeconfig: str, driver: str, api_proxy: str) -> "list[Node]":
    """Return the volumes without a PersistentVolume that are at least an hour old. Raises Failure."""
    handles = _handles(kubeconfig, driver, api_proxy)
    old = datetime.now(UTC) - YOUNG
    return [volume for volume in volumes if volume.id not in handles and volume.created <= old]


def _handles(kubeconfig: str, driver: str, api_proxy: str) -> set[str]:
    """Return the volume handles of the driver's PersistentVolumes."""
    from csi_driver.kube.resources import PVS

    async def read(api: "Api", _installation: object) -> set[str]:
        sources = [(pv.get("spec") or {}).get("csi") or {} for pv in await api.list(PVS)]
        return {csi.get("volumeHandle", "") for csi in sources if csi.get("driver") == driver}

    return call(kubeconfig, DEFAULT_NAMESPACE, DEFAULT_RELEASE, driver, read, api_proxy)

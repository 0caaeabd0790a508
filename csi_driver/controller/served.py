"""Waits for the custom kinds that a component needs: before they are served, their informers would only fail."""

import asyncio
from collections.abc import Sequence

import structlog

from csi_driver.domain.errors import DriverError
from csi_driver.kube.client import Api
from csi_driver.kube.errors import ApiRejected
from csi_driver.kube.resources import Kind

UNSERVED_SECONDS = 30.0
"""Between two checks for kinds that the cluster lacks."""

log = structlog.get_logger()


async def readable(api: Api, kind: Kind) -> bool:
    """Return whether the cluster serves a kind and this account may read it: a feature of the chart may be off."""
    if not await api.served(kind.group, kind.version, kind.plural):
        return False
    try:
        await api.get(kind, "none", "default" if kind.namespaced else "")
    except ApiRejected:
        return False
    return True


async def until_served(api: Api, feature: str, kinds: Sequence[Kind]) -> None:
    """Wait until all kinds can be read, and log which are missing for which feature."""
    while True:
        try:
            missing = [str(kind) for kind in kinds if not await readable(api, kind)]
            if not missing:
                return
            why = f"{', '.join(missing)} cannot be read: the CRDs or the chart's roles are missing"
        except DriverError as error:
            why = str(error)
        log.warning("feature not available, retrying", feature=feature, why=why, again_in=UNSERVED_SECONDS)
        await asyncio.sleep(UNSERVED_SECONDS)

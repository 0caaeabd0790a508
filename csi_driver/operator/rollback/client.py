"""Asking for a rollback as a user does: apply a VolumeRollback, and follow what becomes of it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from csi_driver.domain.errors import AlreadyExists, NotFound, Unavailable
from csi_driver.kube.client import Api, Object
from csi_driver.kube.resources import ROLLBACKS
from csi_driver.operator.rollback.resource import read_progress

LOOK_SECONDS = 1.0
"""Between two looks at the status."""

AWAY_SECONDS = 120.0
"""For which an API server that does not answer is waited for."""


async def apply(api: Api, namespace: str, name: str, spec: Object) -> Object:
    """Make the object, or find the one of that name that asks for the same. `name` empty: the API makes one up.

    Raises AlreadyExists where that name asks for something else, NotFound where the cluster has no VolumeRollbacks.
    """
    meta = {"name": name} if name else {"generateName": f"{spec['claimName'][:200]}-"}
    body = {"kind": "VolumeRollback", "metadata": meta, "spec": spec}
    try:
        return await api.create(ROLLBACKS, body, namespace)
    except NotFound as error:
        raise NotFound(
            f"a VolumeRollback cannot be made in namespace {namespace}: {error}; look whether that namespace exists and "
            "the driver's chart is installed"
        ) from None
    except AlreadyExists:
        there = await api.get(ROLLBACKS, name, namespace)
        other = {key for key, value in spec.items() if there is not None and there["spec"].get(key) != value}
        if there is None or other:
            raise AlreadyExists(
                f"VolumeRollback {namespace}/{name} exists and asks for something else ({', '.join(sorted(other))}): use "
                "another name"
            ) from None
        return there


async def watch_status(api: Api, made: Object) -> AsyncIterator[dict[str, Any]]:
    """The status, each time that phase or message changed, up to the final one. Raises NotFound where it was deleted."""
    namespace, name, uid = (made["metadata"][key] for key in ("namespace", "name", "uid"))
    told: tuple[object, object] | None = None
    away = 0.0
    while True:
        try:
            found = await api.get(ROLLBACKS, name, namespace)
            away = 0.0
        except Unavailable:
            away += LOOK_SECONDS
            if away > AWAY_SECONDS:
                raise
            await asyncio.sleep(LOOK_SECONDS)
            continue
        if found is None or found["metadata"]["uid"] != uid:
            raise NotFound(
                f"VolumeRollback {namespace}/{name} was deleted: the events of the claim say what became of it"
            )
        status: dict[str, Any] = found.get("status") or {}
        if status and told != (status.get("phase"), status.get("message")):
            told = (status.get("phase"), status.get("message"))
            yield status
        phase = read_progress(found).phase
        if phase is not None and phase.final:
            return
        await asyncio.sleep(LOOK_SECONDS)

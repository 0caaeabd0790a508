"""The client of VolumeRollbacks, for the command line: apply one, and watch its status."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from csi_driver.domain.errors import AlreadyExists, NotFound, Unavailable
from csi_driver.kube.client import Api, Object
from csi_driver.kube.resources import ROLLBACKS
from csi_driver.operator.rollback.resource import parse_status

POLL_SECONDS = 1.0
"""Between two reads of the status."""

API_TIMEOUT_SECONDS = 120.0
"""How long to wait for an API server that does not answer."""


async def apply(api: Api, namespace: str, name: str, spec: Object) -> Object:
    """Create the object, or return the one of that name with the same spec. If `name` is empty, the API generates one.

    Raises AlreadyExists if that name has another spec, NotFound if the cluster has no VolumeRollbacks.
    """
    metadata = {"name": name} if name else {"generateName": f"{spec['claimName'][:200]}-"}
    body = {"kind": "VolumeRollback", "metadata": metadata, "spec": spec}
    try:
        return await api.create(ROLLBACKS, body, namespace)
    except NotFound as error:
        raise NotFound(
            f"cannot create a VolumeRollback in namespace {namespace}: {error}; check that the namespace exists and the "
            "driver's chart is installed"
        ) from None
    except AlreadyExists:
        existing = await api.get(ROLLBACKS, name, namespace)
        other = {key for key, value in spec.items() if existing is not None and existing["spec"].get(key) != value}
        if existing is None or other:
            raise AlreadyExists(
                f"VolumeRollback {namespace}/{name} exists with another spec ({', '.join(sorted(other))}); use another name"
            ) from None
        return existing


async def watch_status(api: Api, rollback: Object) -> AsyncIterator[dict[str, Any]]:
    """Yield the status each time that phase or message changed, up to the final one. Raises NotFound if it was deleted."""
    namespace, name, uid = (rollback["metadata"][key] for key in ("namespace", "name", "uid"))
    last: tuple[object, object] | None = None
    unanswered = 0.0
    while True:
        try:
            current = await api.get(ROLLBACKS, name, namespace)
            unanswered = 0.0
        except Unavailable:
            unanswered += POLL_SECONDS
            if unanswered > API_TIMEOUT_SECONDS:
                raise
            await asyncio.sleep(POLL_SECONDS)
            continue
        if current is None or current["metadata"]["uid"] != uid:
            raise NotFound(f"VolumeRollback {namespace}/{name} was deleted; see the events of the PVC for the outcome")
        status: dict[str, Any] = current.get("status") or {}
        if status and last != (status.get("phase"), status.get("message")):
            last = (status.get("phase"), status.get("message"))
            yield status
        phase = parse_status(current).phase
        if phase is not None and phase.final:
            return
        await asyncio.sleep(POLL_SECONDS)

"""Events on objects: what `kubectl describe` shows a user. A repeat is counted in the one that is there."""

import hashlib
from datetime import UTC, datetime
from typing import Literal

import structlog

from csi_driver.domain.errors import AlreadyExists, DriverError, NotFound
from csi_driver.kube.client import Api, Object
from csi_driver.kube.resources import EVENTS

MAX_MESSAGE = 1024
"""Characters of a message that the API takes."""

_REMEMBERED = 4096
"""Counts kept here; what falls out is read from the API again."""

log = structlog.get_logger()


class Events:
    """Tells what `component` does. The same words about the same object are one Event, also after a restart."""

    def __init__(self, api: Api, component: str, instance: str = "") -> None:
        self._api = api
        self._component = component
        self._instance = instance or component
        self._counts: dict[str, int] = {}

    async def emit(self, obj: Object, type: Literal["Normal", "Warning"], reason: str, message: str) -> None:  # noqa: A002
        """Tell it, or log that it could not be told: an event is never worth a failure."""
        try:
            await self._emit(obj, type, reason, message[:MAX_MESSAGE])
        except DriverError as error:
            metadata = obj.get("metadata") or {}
            log.warning("event is not told", object=metadata.get("name"), reason=reason, text=message, why=str(error))
        except Exception:
            log.exception("event is not told", reason=reason, text=message)

    async def _emit(self, obj: Object, kind: str, reason: str, message: str) -> None:
        metadata = obj["metadata"]
        # Events of what has no namespace lie in the default one: kubectl looks there.
        namespace = metadata.get("namespace") or "default"
        about = {
            "apiVersion": obj.get("apiVersion", ""),
            "kind": obj.get("kind", ""),
            "name": metadata["name"],
            "namespace": metadata.get("namespace", ""),
            "uid": metadata.get("uid", ""),
            "resourceVersion": metadata.get("resourceVersion", ""),
        }
        said = "\0".join([self._component, metadata.get("uid", ""), about["kind"], kind, reason, message])
        # A name has at most 253 characters, and the object's may have as many.
        name = f"{metadata['name'][:200].rstrip('.-')}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        if name in self._counts and await self._count(name, namespace, self._counts[name] + 1, now):
            return
        event = {
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {key: value for key, value in about.items() if value},
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": self._component, "host": self._instance},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._api.create(EVENTS, event, namespace)
        except AlreadyExists:
            there = await self._api.get(EVENTS, name, namespace)
            await self._count(name, namespace, int((there or {}).get("count") or 0) + 1, now)
        else:
            self._remember(name, 1)

    async def _count(self, name: str, namespace: str, count: int, now: str) -> bool:
        """False: the API keeps events for an hour, and this one is gone."""
        try:
            await self._api.patch(EVENTS, name, {"count": count, "lastTimestamp": now}, namespace)
        except NotFound:
            self._counts.pop(name, None)
            return False
        self._remember(name, count)
        return True

    def _remember(self, name: str, count: int) -> None:
        self._counts.pop(name, None)
        self._counts[name] = count
        while len(self._counts) > _REMEMBERED:
            del self._counts[next(iter(self._counts))]

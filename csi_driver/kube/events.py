"""Events on objects, as `kubectl describe` shows them. A repeated one is counted in the Event that exists."""

import hashlib
from datetime import UTC, datetime
from typing import Literal, Protocol

import structlog

from csi_driver.domain.errors import AlreadyExists, DriverError, NotFound
from csi_driver.kube.client import Api, Object
from csi_driver.kube.resources import EVENTS

MAX_MESSAGE = 1024
"""Characters of a message that the API accepts."""

_REMEMBERED = 4096
"""Counts that are cached; others are read from the API again."""

log = structlog.get_logger()


class EventRecorder(Protocol):
    """Emits events: `Events`, or what a test puts in its place."""

    async def emit(self, obj: Object, type: Literal["Normal", "Warning"], reason: str, message: str) -> None:  # noqa: A002
        """Emit one event about an object."""
        ...


class Events:
    """Emits events of `component`. The same reason and message on the same object are one Event, also after a restart."""

    def __init__(self, api: Api, component: str, instance: str = "") -> None:
        self._api = api
        self._component = component
        self._instance = instance or component
        self._counts: dict[str, int] = {}

    async def emit(self, obj: Object, type: Literal["Normal", "Warning"], reason: str, message: str) -> None:  # noqa: A002
        """Emit an event, or log that it failed: an event is never worth a failure."""
        try:
            await self._emit(obj, type, reason, message[:MAX_MESSAGE])
        except DriverError as error:
            metadata = obj.get("metadata") or {}
            log.warning("emit event failed", object=metadata.get("name"), reason=reason, text=message, why=str(error))
        except Exception:
            log.exception("emit event failed", reason=reason, text=message)

    async def _emit(self, obj: Object, kind: str, reason: str, message: str) -> None:
        metadata = obj["metadata"]
        # Events of objects without a namespace are in the default one: kubectl reads them there.
        namespace = metadata.get("namespace") or "default"
        involved = {
            "apiVersion": obj.get("apiVersion", ""),
            "kind": obj.get("kind", ""),
            "name": metadata["name"],
            "namespace": metadata.get("namespace", ""),
            "uid": metadata.get("uid", ""),
            "resourceVersion": metadata.get("resourceVersion", ""),
        }
        identity = "\0".join([self._component, metadata.get("uid", ""), involved["kind"], kind, reason, message])
        # A name has at most 253 characters, and the object's may have as many.
        name = f"{metadata['name'][:200].rstrip('.-')}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        if name in self._counts and await self._count(name, namespace, self._counts[name] + 1, now):
            return
        event = {
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {key: value for key, value in involved.items() if value},
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
            existing = await self._api.get(EVENTS, name, namespace)
            await self._count(name, namespace, int((existing or {}).get("count") or 0) + 1, now)
        else:
            self._remember(name, 1)

    async def _count(self, name: str, namespace: str, count: int, now: str) -> bool:
        """Update the count; False if the Event is gone: the API keeps them for an hour."""
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

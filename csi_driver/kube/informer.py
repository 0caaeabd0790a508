"""An informer: a cache of the objects of one kind, kept current by a watch. What is read often is read here, never polled."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import aclosing, suppress

import structlog

from csi_driver.domain.errors import DriverError, Unavailable
from csi_driver.kube.client import QUIET_SECONDS, Api, Object
from csi_driver.kube.errors import ResourceVersionExpired
from csi_driver.kube.resources import Kind

RESYNC_SECONDS = 600.0
"""Between two lists: they find whatever a watch might have lost."""

WATCH_SECONDS = 60.0
"""For one watch; the next continues where it ended. Short, because that end is the sign of life that never fails: bookmarks
are not sent of a kind to which nothing has happened since the API server's start (measured)."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds between tries while the API does not answer; doubled each time."""

Handler = Callable[[Object | None, Object | None], None]
"""Called with each change: old and new; None if the object did not exist before, or no longer exists. Must be quick."""

log = structlog.get_logger()


def unchanged(obj: Object) -> Object:
    """Keep the whole object."""
    return obj


class Informer:
    """Objects of one kind that match the selectors. `transform` makes the cached form: omit what nobody reads.

    The cached form needs `metadata` with name, namespace and resourceVersion. What `get` and `all` return belongs to the
    cache: copy it before you change it.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        transform: Callable[[Object], Object] = unchanged,
        resync: float = RESYNC_SECONDS,
        quiet: float = QUIET_SECONDS,
    ) -> None:
        self.kind = kind
        self._api = api
        self._selection = (namespace, labels, fields)
        self._transform = transform
        self._resync = resync
        self._quiet = quiet
        self._objects: dict[tuple[str, str], Object] = {}
        self._handlers: list[Handler] = []
        self._synced = asyncio.Event()
        self._current_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to list and watch, in the background."""
        self._task = asyncio.create_task(self._run(), name=f"informer {self.kind}")

    async def stop(self) -> None:
        """Stop the watch; the cache stays readable."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @property
    def has_synced(self) -> bool:
        """Whether all objects were read at least once: before that, a missing one means nothing."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Wait for the first complete list."""
        await self._synced.wait()

    @property
    def age(self) -> float:
        """Seconds since the API last proved that the cache is current; at most about a minute while all is well."""
        return time.monotonic() - self._current_at

    def get(self, name: str, namespace: str = "") -> Object | None:
        """Return one object, or None."""
        return self._objects.get((namespace, name))

    def all(self) -> list[Object]:
        """Return all objects, in no order."""
        return list(self._objects.values())

    def subscribe(self, handler: Handler) -> Callable[[], None]:
        """Call the handler for each change from now on, and once for each object that exists already.

        Returns a function that removes the handler: a subscriber that ends before the informer must call it.
        """
        self._handlers.append(handler)
        for obj in self.all():
            self._notify(handler, None, obj)
        return lambda: self._handlers.remove(handler)

    async def _run(self) -> None:
        wait = FIRST_WAIT
        while True:
            try:
                version = await self._list()
                wait = FIRST_WAIT
                await self._watch(version)
            except ResourceVersionExpired:
                wait = FIRST_WAIT  # only the version is too old: list again
            except DriverError as error:
                log.warning("list objects failed", kind=str(self.kind), why=str(error), retry_in=wait)
            except Exception:  # a document of no known shape must not end the informer for good
                log.exception("read objects failed", kind=str(self.kind), retry_in=wait)
            await _pause(wait)
            wait = min(wait * 2, LONGEST_WAIT)

    async def _list(self) -> str:
        keys: set[tuple[str, str]] = set()
        version = ""
        async for items, version in self._api.pages(self.kind, *self._selection):  # noqa: B007  used after the loop
            for item in items:
                keys.add(_key(item))
                self._put(item)
        for key in [key for key in self._objects if key not in keys]:
            self._drop(key)
        self._current_at = time.monotonic()
        self._synced.set()
        return version

    async def _watch(self, version: str) -> None:
        """Apply changes until it is time to list again. Raises ResourceVersionExpired."""
        end = time.monotonic() + self._resync
        wait = FIRST_WAIT / 2
        while (remaining := end - time.monotonic()) > 0:
            began_at = time.monotonic()
            events = self._api.watch(
                self.kind, version, *self._selection, seconds=min(WATCH_SECONDS, remaining), quiet=self._quiet
            )
            try:
                async with aclosing(events):
                    async for event, obj in events:
                        self._current_at = time.monotonic()
                        version = obj["metadata"]["resourceVersion"]
                        self._apply(event, obj)
                self._current_at = time.monotonic()
            except Unavailable as error:
                log.warning("watch failed, resuming", kind=str(self.kind), why=str(error))
            # If connections end at once, each next one waits longer.
            wait = FIRST_WAIT if time.monotonic() - began_at > LONGEST_WAIT else min(wait * 2, LONGEST_WAIT)
            if time.monotonic() - began_at < wait:
                await _pause(wait)

    def _apply(self, event: str, obj: Object) -> None:
        if event == "DELETED":
            self._drop(_key(obj))
        elif event != "BOOKMARK":
            self._put(obj)

    def _put(self, item: Object) -> None:
        item["metadata"].pop("managedFields", None)  # as large as the object itself, and never read
        key, new = _key(item), self._transform(item)
        old = self._objects.get(key)
        if old is not None and old["metadata"]["resourceVersion"] == new["metadata"]["resourceVersion"]:
            return
        self._objects[key] = new
        self._notify_all(old, new)

    def _drop(self, key: tuple[str, str]) -> None:
        old = self._objects.pop(key, None)
        if old is not None:
            self._notify_all(old, None)

    def _notify_all(self, old: Object | None, new: Object | None) -> None:
        for handler in self._handlers:
            self._notify(handler, old, new)

    def _notify(self, handler: Handler, old: Object | None, new: Object | None) -> None:
        try:
            handler(old, new)
        except Exception:
            log.exception("change handler failed", kind=str(self.kind))


async def _pause(seconds: float) -> None:
    await asyncio.sleep(seconds * random.uniform(0.8, 1.2))  # noqa: S311  spreads load, hides nothing


def _key(obj: Object) -> tuple[str, str]:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]

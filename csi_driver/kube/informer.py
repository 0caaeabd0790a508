"""A copy in memory of the objects of one kind, kept true by a watch: what is read often is read here, never polled."""

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing, suppress

import structlog

from csi_driver.domain.errors import DriverError, Unavailable
from csi_driver.kube.client import QUIET_SECONDS, Api, Object
from csi_driver.kube.errors import ResourceVersionExpired
from csi_driver.kube.resources import Kind

RESYNC_SECONDS = 600.0
"""Between two lists: whatever a watch might have lost is found then."""

WATCH_SECONDS = 60.0
"""For one watch; the next goes on where it ended. Short, because that end is the sign of life that never fails: bookmarks
are not sent of a kind to which nothing has happened since the API server's start (measured)."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds between tries while the API does not answer; doubled each time."""

Changed = Callable[[Object | None, Object | None], None]
"""Told of each change: old and new; None where it was not there before, or is not any more. Must be quick."""

log = structlog.get_logger()


class Informer:
    """Objects of one kind that match the selectors. `keep` makes of each what is stored: leave out what nobody reads.

    The kept form needs `metadata` with name, namespace and resourceVersion. What get and all give belongs to the mirror:
    copy before changing.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        keep: Callable[[Object], Object] = lambda obj: obj,
        resync: float = RESYNC_SECONDS,
        quiet: float = QUIET_SECONDS,
    ) -> None:
        self.kind = kind
        self._api = api
        self._where = (namespace, labels, fields)
        self._keep = keep
        self._resync = resync
        self._quiet = quiet
        self._objects: dict[tuple[str, str], Object] = {}
        self._subscribers: list[Changed] = []
        self._synced = asyncio.Event()
        self._alive = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to list and watch, in the background."""
        self._task = asyncio.create_task(self._run(), name=f"mirror {self.kind}")

    async def stop(self) -> None:
        """End; what was read stays readable."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @property
    def synced(self) -> bool:
        """Whether all objects were read at least once: before that, a missing one means nothing."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Wait for the first whole list."""
        await self._synced.wait()

    @property
    def age(self) -> float:
        """Seconds since the API last proved that this copy is up to date; at most about a minute while all is well."""
        return time.monotonic() - self._alive

    def get(self, name: str, namespace: str = "") -> Object | None:
        """One object, or None."""
        return self._objects.get((namespace, name))

    def all(self) -> list[Object]:
        """All objects, in no order."""
        return list(self._objects.values())

    def subscribe(self, callback: Changed) -> Callable[[], None]:
        """Call back for each change from now on, and once for each object that is there already.

        The result ends it: what lives shorter than the mirror must call it.
        """
        self._subscribers.append(callback)
        for obj in self.all():
            self._tell(callback, None, obj)
        return lambda: self._subscribers.remove(callback)

    async def _run(self) -> None:
        wait = FIRST_WAIT
        while True:
            try:
                version = await self._list()
                wait = FIRST_WAIT
                await self._follow(version)
            except ResourceVersionExpired:
                wait = FIRST_WAIT  # all is well but the version: list again
            except DriverError as error:
                log.warning("objects cannot be listed", kind=str(self.kind), why=str(error), again_in=wait)
            except Exception:  # a document of no known shape must not end the copy for good
                log.exception("objects cannot be read", kind=str(self.kind), again_in=wait)
            await _pause(wait)
            wait = min(wait * 2, LONGEST_WAIT)

    async def _list(self) -> str:
        seen: set[tuple[str, str]] = set()
        version = ""
        async for items, version in self._api.pages(self.kind, *self._where):  # noqa: B007  used after the loop
            for item in items:
                seen.add(_key(item))
                self._put(item)
        for key in [key for key in self._objects if key not in seen]:
            self._drop(key)
        self._alive = time.monotonic()
        self._synced.set()
        return version

    async def _follow(self, version: str) -> None:
        """Apply changes until it is time to list again. Raises Gone where the API has forgotten the version."""
        end = time.monotonic() + self._resync
        wait = FIRST_WAIT / 2
        while (left := end - time.monotonic()) > 0:
            began = time.monotonic()
            events = self._api.watch(
                self.kind, version, *self._where, seconds=min(WATCH_SECONDS, left), quiet=self._quiet
            )
            try:
                async with aclosing(events):
                    async for event, obj in events:
                        self._alive = time.monotonic()
                        version = obj["metadata"]["resourceVersion"]
                        self._apply(event, obj)
                self._alive = time.monotonic()
            except Unavailable as error:
                log.warning("watch is taken up again", kind=str(self.kind), why=str(error))
            # Where connections end at once, each next one waits longer.
            wait = FIRST_WAIT if time.monotonic() - began > LONGEST_WAIT else min(wait * 2, LONGEST_WAIT)
            if time.monotonic() - began < wait:
                await _pause(wait)

    def _apply(self, event: str, obj: Object) -> None:
        if event == "DELETED":
            self._drop(_key(obj))
        elif event != "BOOKMARK":
            self._put(obj)

    def _put(self, item: Object) -> None:
        item["metadata"].pop("managedFields", None)  # as large as the object itself, and never read here
        key, new = _key(item), self._keep(item)
        old = self._objects.get(key)
        if old is not None and old["metadata"]["resourceVersion"] == new["metadata"]["resourceVersion"]:
            return
        self._objects[key] = new
        self._tell_all(old, new)

    def _drop(self, key: tuple[str, str]) -> None:
        old = self._objects.pop(key, None)
        if old is not None:
            self._tell_all(old, None)

    def _tell_all(self, old: Object | None, new: Object | None) -> None:
        for callback in self._subscribers:
            self._tell(callback, old, new)

    def _tell(self, callback: Changed, old: Object | None, new: Object | None) -> None:
        try:
            callback(old, new)
        except Exception:
            log.exception("a change could not be told", kind=str(self.kind))


async def start_all(mirrors: Iterable[Informer]) -> None:
    """Start several, and wait until each has read its first list."""
    begun = list(mirrors)
    for mirror in begun:
        mirror.start()
    for mirror in begun:
        await mirror.wait_synced()


async def _pause(seconds: float) -> None:
    await asyncio.sleep(seconds * random.uniform(0.8, 1.2))  # noqa: S311  spreads load, hides nothing


def _key(obj: Object) -> tuple[str, str]:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]

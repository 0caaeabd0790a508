"""Faults on order, for tests of whatever runs on a memory pool: methods of it fail, or stand still until released.

    faults = Faults()
    pool = MemoryBackend("m", "node-1", faults=faults)
    faults.fail("create_group", OSError(errno.EIO, "injected"), point="half")
    pause = faults.pause("create_snapshot")
    ...
    await pause.reached.wait()      # the call now stands still, its locks are held: look around
    pause.release()

A point of a method is `before` (nothing has happened), `half` (the new image is filled, of a group only the first
member's, and nothing can be seen yet), or `after` (everything has happened and the answer is lost). A failure at `before`
or `half` leaves the pool as it was; one at `after` is what a crash leaves: close and open the pool then, as a restart does.
An OSError comes out as the DriverError that a pool on a real disk would make of it (ENOSPC: OutOfSpace, EIO: Unavailable).
"""

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from csi_driver.domain.errors import DriverError, OutOfSpace, Unavailable
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume

Point = Literal["before", "half", "after"]

IMMEDIATE = frozenset({"check", "space", "space_needed", "allocated", "change_token"})
"""Methods that do not wait: they can fail before, and not pause."""

WHOLE = frozenset({"create_snapshot", "create_group"})
"""Names for all of a snapshot's or a group's making, from before `prepare` to after `publish`; of a clone it is create_volume."""

WITH_HALF = WHOLE | {"create_volume", "roll_back"}

METHODS = (
    IMMEDIATE
    | WITH_HALF
    | frozenset(
        "open close guard users refresh content_format save_volume prepare quick publish abandon expand_volume delete_volume delete_snapshot delete_group usage freed_together "
        "use attach detach is_empty erase make_file_system mount grow bind stage_block unmount cleanup_unavailable stats condition".split()
    )
)
"""Everything that may be named: the methods of Backend and of Access."""

_FULL = {errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EMFILE, errno.ENFILE}


def creation(target: Volume | Snapshot | GroupSnapshot) -> str:
    """Return the name under which the making of something is told to fail, whichever of its methods is at work."""
    kinds = {Volume: "create_volume", Snapshot: "create_snapshot", GroupSnapshot: "create_group"}
    return kinds[type(target)]


class Pause:
    """A call that stands still. `reached` is set once it does."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._released = asyncio.Event()

    def release(self) -> None:
        """Let the call go on."""
        self._released.set()

    async def wait(self) -> None:
        """Stand still until released; the pool calls this."""
        self.reached.set()
        await self._released.wait()


class Faults:
    """What is to happen at which point of which method; in the order in which it was asked for."""

    def __init__(self) -> None:
        self._planned: dict[tuple[str, Point], deque[Exception | Pause]] = {}
        self._lasting: dict[tuple[str, Point], Exception] = {}

    def fail(self, method: str, error: DriverError | OSError, point: Point = "before", times: int | None = 1) -> None:
        """Let the next `times` calls of `method` fail with `error` at `point`; None: all of them, until `clear`."""
        _check(method, point)
        if times is None:
            self._lasting[method, point] = error
        else:
            self._planned.setdefault((method, point), deque()).extend([error] * times)

    def pause(self, method: str, point: Point = "before") -> Pause:
        """Let the next call of `method` stand still at `point` until the pause that is returned is released."""
        _check(method, point)
        if method in IMMEDIATE:
            raise ValueError(f"{method} does not wait, so it cannot pause: let it fail")
        pause = Pause()
        self._planned.setdefault((method, point), deque()).append(pause)
        return pause

    def clear(self) -> None:
        """Forget everything that has not happened yet. What stands still goes on standing."""
        self._planned.clear()
        self._lasting.clear()

    async def reach(self, method: str, point: Point) -> None:
        """Do what was planned for this point; the pool calls this."""
        planned = self._next(method, point)
        if isinstance(planned, Pause):
            await planned.wait()
        elif planned is not None:
            raise planned

    def reach_now(self, method: str) -> None:
        """The same, for a method that does not wait."""
        planned = self._next(method, "before")
        if isinstance(planned, Exception):
            raise planned

    def _next(self, method: str, point: Point) -> Exception | Pause | None:
        queue = self._planned.get((method, point))
        return queue.popleft() if queue else self._lasting.get((method, point))


def _check(method: str, point: Point) -> None:
    if method not in METHODS:
        raise ValueError(f"{method!r} is not a method of a pool: {', '.join(sorted(METHODS))}")
    if (point == "half" and method not in WITH_HALF) or (point == "after" and method in IMMEDIATE):
        raise ValueError(f"{method} has no point {point!r}")


class Faulted(Protocol):
    """What has methods that can be told to fail."""

    faults: Faults
    pool: str


_S = TypeVar("_S", bound=Faulted)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def faulty(
    method: Callable[Concatenate[_S, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[_S, _P], Coroutine[Any, Any, _R]]:
    """Give a method its points before and after, and translate what the kernel refuses inside it."""
    name = method.__name__

    @wraps(method)
    async def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with translated(self.pool, name):
            await self.faults.reach(name, "before")
            result = await method(self, *args, **kwargs)
            await self.faults.reach(name, "after")
            return result

    return call


@contextmanager
def translated(pool: str, doing: str) -> Iterator[None]:
    """Say in the driver's words what the kernel refused."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise OutOfSpace(
                f"{doing}: pool {pool} is full ({error.strerror}): delete something or give the pool more memory"
            ) from error
        raise Unavailable(f"{doing}: pool {pool} does not answer as it should ({error}): try again") from error

"""Processes that end in the middle: an API client, or a port, whose process is killed at one of its calls."""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Literal


class Killed(BaseException):
    """The process is gone: nothing of it catches this."""


@dataclass
class KillPoint:
    """Counts the calls of one process. At `kill_at` it ends: before that call is sent, or after it was served."""

    changes: int = 0
    kill_at: tuple[int, Literal["before", "after"]] | None = None


class Dying:
    """Passes calls on, and ends the process at its kill point.

    Of `methods` alone where they are named, and of none whose first argument is in `but`, is a call counted.
    """

    def __init__(
        self, inner: Any, point: KillPoint, methods: Container[str] | None = None, but: Container[Any] = ()
    ) -> None:
        self._inner, self._point, self._methods, self._but = inner, point, methods, but

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if self._methods is not None and name not in self._methods:
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            if args and args[0] in self._but:
                return await method(*args, **kwargs)
            self._point.changes += 1
            number, due = self._point.changes, self._point.kill_at
            if due == (number, "before"):
                raise Killed
            answer = await method(*args, **kwargs)
            if due == (number, "after"):
                raise Killed
            return answer

        return call

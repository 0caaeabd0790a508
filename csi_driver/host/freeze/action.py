"""What is done while file systems are frozen, and the process that does it, since only a process can be killed.

An action has steps; each is prepared before the freeze, so that inside it only the quick part remains. A backend names the action
as JSON, with its `kind` and what that kind needs: {"kind": "clone_files", "files": [{"source", "target"}]}, or
{"kind": "thin_messages", "pool": uuid, "messages": ["create_snap 7 3"]}.
"""

import errno
import fcntl
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from csi_driver.host.dm import ioctl as dm
from csi_driver.host.dm import status as dm_status
from csi_driver.host.freeze.state import FreezeError
from csi_driver.host.fs.files import FICLONE


class Action(Protocol):
    """What is done inside a freeze, step by step. All methods but `__len__` and `describe` run in the process of its own."""

    failure: str
    """The kind of FreezeError that a failed step is."""
    progress: str
    """What has happened once a step is done, of several: "images were cloned"."""

    def __len__(self) -> int:
        """Return the number of steps."""

    def prepare(self, index: int) -> None:
        """Do before the freeze what a step needs. Raises OSError."""

    def perform(self, index: int) -> None:
        """Do a step, inside the freeze. Raises OSError."""

    def describe(self, index: int) -> str:
        """Return what a step does, for a message."""


class CloneFiles:
    """Clone files by FICLONE; the targets exist and are empty, and may hold a part after a failure."""

    failure = "CloneFailed"
    progress = "images were cloned"

    def __init__(self, files: Sequence[Mapping[str, str]]) -> None:
        self._files = files
        self._open: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._files)

    def prepare(self, index: int) -> None:
        """Open both files. Raises OSError."""
        source = os.open(self._files[index]["source"], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        target = os.open(self._files[index]["target"], os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        if os.fstat(target).st_size:
            raise OSError(errno.EEXIST, "the target is not empty")
        self._open.append((source, target))

    def perform(self, index: int) -> None:
        """Clone one file. Raises OSError."""
        source, target = self._open[index]
        fcntl.ioctl(target, FICLONE, source)

    def describe(self, index: int) -> str:
        """Return which file becomes which."""
        return "cloning {source} to {target}".format_map(self._files[index])


class ThinMessages:
    """Send messages to a thin pool, in their order: "delete 7", "create_snap 7 3". After a failure those before it are done."""

    failure = "MessageFailed"
    progress = "messages were sent"

    def __init__(self, pool: str, messages: Sequence[str]) -> None:
        self._pool, self._messages = pool, messages

    def __len__(self) -> int:
        return len(self._messages)

    def prepare(self, index: int) -> None:
        """Look whether the pool is there, and takes messages. Raises OSError."""
        if index:
            return
        try:
            status = dm_status.thin_pool(dm.status(uuid=self._pool))
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from None
        if status.mode not in {"rw", "out_of_data_space"}:
            raise OSError(errno.EROFS, f"the pool is in mode {status.mode}")

    def perform(self, index: int) -> None:
        """Send one message. Raises OSError."""
        dm.message(self._pool, self._messages[index])

    def describe(self, index: int) -> str:
        """Return which message goes to which pool."""
        return f"the message '{self._messages[index]}' to the thin pool {self._pool}"


_KINDS: dict[str, Callable[..., Action]] = {"clone_files": CloneFiles, "thin_messages": ThinMessages}


def action_of(description: Mapping[str, Any]) -> Action:
    """Return the action that a backend has named. Raises FreezeError if its kind is unknown."""
    arguments = {key: value for key, value in description.items() if key != "kind"}
    kind = _KINDS.get(str(description.get("kind")))
    if kind is None:
        raise FreezeError("FreezeFailed", f"no such action inside a freeze: {description.get('kind')!r}", errno.EINVAL)
    return kind(**arguments)


class ActionProcess:
    """The process that performs an action: forked before the freeze and prepared, so that the freeze waits for the steps alone.

    A process, since only a process can be killed: FICLONE looks for fatal signals after each extent, and a FITHAW waits for it.
    It keeps the job's socket: as long as that is open, somebody who could hold a thaw up is alive.
    """

    def __init__(self, action: Action, pause: float) -> None:
        self.total, self.done, self.alive = len(action), 0, True
        self._action = action
        self._lines: list[bytes] = []
        start, self._start = os.pipe()
        self._reports, report = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self._start)
                os.close(self._reports)
                self._perform(action, start, report, pause)
                code = 0
            finally:
                os._exit(code)
        os.close(start)
        os.close(report)
        self._pidfd = os.pidfd_open(self.pid)

    @staticmethod
    def _perform(action: Action, start: int, report: int, pause: float) -> None:
        index = 0
        try:
            for index in range(len(action)):
                action.prepare(index)
            index = 0
            os.write(report, b"ready\n")
            if os.read(start, 1) != b"!":
                return  # the freeze has died or given up
            if pause:
                # A test ends it when it has seen what it wanted to see, and need not guess how long that takes.
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
                signal.signal(
                    signal.SIGUSR1, signal.SIG_IGN
                )  # shows in /proc that it waits; what is blocked comes all the same
                signal.sigtimedwait({signal.SIGUSR1}, pause)
            for index in range(len(action)):
                action.perform(index)
                os.write(report, b"done\n")
        except OSError as error:
            os.write(report, f"failed {index} {error.errno or 0}\n".encode())

    @property
    def progress(self) -> str:
        """How far it came, for a message."""
        return f"{self.done} of {self.total} {self._action.progress} in time"

    def wait_ready(self, until: float) -> None:
        """Wait until all steps are prepared. Raises FreezeError of the action's kind."""
        if self._line(until) != b"ready":
            raise FreezeError(
                self._action.failure, "what is done inside the freeze was not ready in time", errno.ETIMEDOUT
            )

    def run(self, until: float) -> bool:
        """Start the steps; True when all are done, False at the time `until`. Raises FreezeError of the action's kind."""
        with suppress(BrokenPipeError):  # it is dead: its reports end, which says so
            os.write(self._start, b"!")
        while self.done < self.total:
            line = self._line(until)
            if line is None:
                return False
            self.done += 1
        return True

    def _line(self, until: float) -> bytes | None:
        poller = select.poll()
        poller.register(self._reports, select.POLLIN)
        while not self._lines:
            left = until - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000 + 1):
                return None
            data = os.read(self._reports, 65536)
            if not data:
                raise FreezeError(self._action.failure, "the process inside the freeze died", errno.EIO)
            self._lines = data.splitlines()  # whole lines: each is one small write to a pipe
        line = self._lines.pop(0)
        if line.startswith(b"failed"):
            index, code = map(int, line.split()[1:])
            message = f"{self._action.describe(index)}: {os.strerror(code)}"
            raise FreezeError(self._action.failure, message, code, index=index)
        return line

    def kill(self, grace: float) -> bool:
        """Kill it; True once it is dead, False where it is stuck in the kernel beyond `grace` seconds."""
        if self.alive:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            if poller.poll(grace * 1000):
                self.reap()
        return not self.alive

    def reap(self) -> None:
        """Wait for its end, as long as that takes."""
        if self.alive:
            os.waitpid(self.pid, 0)
            self.alive = False

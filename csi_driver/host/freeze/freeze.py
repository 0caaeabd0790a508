"""Freezing file systems for one action, and the certainty that nothing stays frozen afterwards.

The job `cut` runs in a child of the fork server (helper/server.py), never in the agent. What it did to each mount is kept in a
page shared with the fork server (state.py), so that, whoever dies at whatever point, the survivor thaws what we froze, and
only that: a file system that somebody else froze is never thawed by us.
"""

import errno
import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from csi_driver.host import syscalls
from csi_driver.host.freeze.action import ActionProcess, action_of
from csi_driver.host.freeze.state import (
    FIFREEZE,
    FITHAW,
    FREEZING,
    FROZEN,
    MAX_MOUNTS,
    REFUSED,
    THAWED,
    UNTOUCHED,
    FreezeError,
    FreezePage,
    describe_error,
    numbers,
    open_mount,
)

_THAW_GRACE = 1.0
"""Seconds that a freeze waits for a killed action and for its own thaws before it answers without them."""
_READY_TIMEOUT = 10.0

Answer = Callable[[dict[str, object]], None]
"""Sends the one answer of a job: {"ok": ...} or {"error": {...}}. May be called before the job ends."""


class _Freezes:
    """The freezes of one job, each made and undone by a thread that may hang in the kernel without holding up the others."""

    def __init__(self, mounts: Sequence[dict[str, object]], fds: Sequence[int], states: FreezePage) -> None:
        self._mounts, self._fds, self._states = mounts, fds, states
        self._changed = threading.Condition()
        self._abandoned = False
        self._threads: list[threading.Thread] = []
        self.errors: dict[int, OSError] = {}
        self.thaw_errors: dict[int, OSError] = {}

    def point(self, index: int) -> str:
        return str(self._mounts[index]["point"])

    def count(self, state: int) -> int:
        return sum(1 for index in range(len(self._fds)) if self._states[index] == state)

    def points(self, *states: int) -> str:
        return ", ".join(self.point(index) for index in range(len(self._fds)) if self._states[index] in states)

    def start(self) -> None:
        for index in range(len(self._fds)):
            self._spawn(self._freeze, index)

    def _spawn(self, target: Callable[[int], None], index: int) -> None:
        thread = threading.Thread(target=target, args=(index,), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _freeze(self, index: int) -> None:
        with self._changed:
            if self._abandoned:
                return
            self._states[index] = FREEZING
        try:
            fcntl.ioctl(self._fds[index], FIFREEZE, 0)
        except OSError as error:
            with self._changed:
                self._states[index] = REFUSED
                self.errors[index] = error
                self._changed.notify_all()
            return
        with self._changed:
            if not self._abandoned:
                self._states[index] = FROZEN
                self._changed.notify_all()
                return
        self._thaw(index)  # nobody waits for it any more: whoever made it undoes it, at once

    def wait(self, until: float) -> None:
        """Wait until all are frozen. Raises FreezeError FrozenElsewhere, FreezeFailed or Deadline."""
        with self._changed:
            while self.count(FROZEN) < len(self._fds):
                if self.errors:
                    raise self._refusal()
                left = until - time.monotonic()
                if left <= 0:
                    raise FreezeError(
                        "Deadline", f"no answer in time to the freeze of {self.points(UNTOUCHED, FREEZING)}"
                    )
                self._changed.wait(left)

    def _refusal(self) -> FreezeError:
        # EBUSY first: it tells the user what to do.
        index, error = min(self.errors.items(), key=lambda item: item[1].errno != errno.EBUSY)
        code, point = error.errno or 0, self.point(index)
        if code == errno.EBUSY:
            message = f"the file system at {point} is frozen already, by another program: thaw it with that program"
            return FreezeError("FrozenElsewhere", message, code, point=point)
        return FreezeError("FreezeFailed", f"freezing {point}: {os.strerror(code)}", code, point=point)

    def thaw(self, grace: float) -> None:
        """Thaw what is frozen, and let what freezes later be thawed by its own thread. Waits `grace` seconds at most."""
        with self._changed:
            self._abandoned = True
            frozen = [index for index in range(len(self._fds)) if self._states[index] == FROZEN]
        for index in frozen:
            try:
                self._spawn(self._thaw, index)
            except RuntimeError:  # no memory for a thread; a thaw that may hang is better than none
                self._thaw(index)
        until = time.monotonic() + grace
        with self._changed:
            while any(self._states[index] == FROZEN and index not in self.thaw_errors for index in frozen):
                left = until - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)

    def _thaw(self, index: int) -> None:
        failure: OSError | None = None
        try:
            fcntl.ioctl(self._fds[index], FITHAW, 0)
        except OSError as error:
            failure = error
        with self._changed:
            if failure is not None:
                self.thaw_errors[index] = failure
            # EINVAL: no longer frozen, somebody has thawed it; thaw_errors reports that.
            if failure is None or failure.errno == errno.EINVAL:
                self._states[index] = THAWED
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until every thread has come back from the kernel, as long as that takes."""
        for thread in self._threads:
            thread.join()


def cut(
    mounts: Sequence[dict[str, object]],
    action: Mapping[str, Any],
    deadline: float,
    sync_timeout: float = 30.0,
    test_pause: float = 0.0,
    *,
    states: FreezePage,
    answer: Answer,
) -> None:
    """Perform an action while file systems are frozen. Returns only when nothing that it froze is frozen.

    `mounts`: [{"point", "major", "minor"}], the file systems to freeze; `action`: see action.py (the caller removes what it
    leaves half made after any error). `deadline`: seconds from the first FIFREEZE to the kill of the action; `sync_timeout`:
    seconds for the syncfs before it; the caller's own timeout has to be longer than both and 5 s more. `test_pause` is fault
    injection for tests: seconds that the action waits before its first step, unless a SIGUSR1 ends that.

    Answers {"frozen_seconds", "action_seconds", "moment"} (Unix nanoseconds, all being frozen) or one of FreezeError's kinds, after the thaw; only a FIFREEZE or FITHAW
    that does not come back is answered before its end. Raises FreezeError where something had to be left frozen: the
    process must then end with a status other than 0, upon which the watchdog takes over. `states` tells it what to thaw.
    """
    threading.stack_size(256 << 10)
    # Many threads for many mounts: the one that comes back from the kernel must not wait 5 ms for the interpreter.
    sys.setswitchinterval(0.0005)
    fds: list[int] = []
    process: ActionProcess | None = None
    try:
        try:
            process = ActionProcess(action_of(action), test_pause)
            if not 0 < len({numbers(mount) for mount in mounts}) == len(mounts) <= MAX_MOUNTS:
                raise FreezeError("FreezeFailed", "a freeze of no file system, or of one twice", errno.EINVAL)
            for mount in mounts:
                fds.append(open_mount(str(mount["point"]), *numbers(mount)))
            _sync(mounts, fds, sync_timeout)
            process.wait_ready(time.monotonic() + _READY_TIMEOUT)
        except Exception:
            if process is not None:
                process.kill(_THAW_GRACE)
            raise
    except Exception as error:
        answer({"error": describe_error(error)})
        return
    states.frozen_since = time.monotonic()
    _cut(_Freezes(mounts, fds, states), process, deadline, answer)


def _sync(mounts: Sequence[dict[str, object]], fds: Sequence[int], timeout: float) -> None:
    """Write everything back before the freeze, so that the freeze finds little to do. Raises FreezeError SyncTimeout, OSError."""
    errors: list[OSError] = []

    def sync(fd: int, point: object) -> None:
        try:
            syscalls.call(f"syncfs of {point}", "syncfs", fd)
        except OSError as error:
            errors.append(error)

    threads = [
        threading.Thread(target=sync, args=(fd, mount["point"]), daemon=True)
        for fd, mount in zip(fds, mounts, strict=True)
    ]
    until = time.monotonic() + timeout
    for thread in threads:
        thread.start()
    for thread, mount in zip(threads, mounts, strict=True):
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive():
            message = f"writing back {mount['point']} takes longer than {timeout:g} s; nothing was frozen"
            raise FreezeError("SyncTimeout", message, errno.ETIMEDOUT, point=mount["point"])
    if errors:
        raise errors[0]


def _cut(freezes: _Freezes, process: ActionProcess, deadline: float, answer: Answer) -> None:
    problem: FreezeError | None = None
    action_seconds, moment = 0.0, 0
    started = time.monotonic()
    until = started + deadline
    try:
        freezes.start()
        freezes.wait(until)
        begun, moment = time.monotonic(), time.time_ns()
        if not process.run(until):
            raise FreezeError("Deadline", f"{process.done} of {process.total} images were cloned in time")
        action_seconds = time.monotonic() - begun
    except FreezeError as error:
        problem = error
    except Exception as error:  # no thread, no memory, no pipe: whatever it is, the thaw comes first
        problem = FreezeError(type(error).__name__, str(error), getattr(error, "errno", None) or 0)
    frozen = freezes.count(FROZEN)
    # A thaw waits for a clone that runs, so that process is dead first. After a success it has nothing left to do.
    if problem is not None:
        process.kill(_THAW_GRACE)
    freezes.thaw(_THAW_GRACE)
    frozen_seconds = time.monotonic() - started
    if problem is not None and problem.kind == "Deadline":
        problem = FreezeError(
            "Deadline",
            f"the freeze passed its deadline of {deadline:g} s: {problem}",
            errno.ETIMEDOUT,
            frozen=frozen,
            cloned=process.done,
            of=process.total,
        )
    problem = _thaw_problem(freezes, problem)
    if problem is None:
        answer({"ok": {"frozen_seconds": frozen_seconds, "action_seconds": action_seconds, "moment": moment}})
    else:
        problem.details["frozen_seconds"] = frozen_seconds
        answer({"error": describe_error(problem)})
    # From here on nobody waits for us; what hangs is undone when it comes back, and the exit status says that all is thawed.
    freezes.join()
    process.reap()
    if freezes.count(FROZEN) or freezes.count(FREEZING):
        raise FreezeError("ThawFailed", f"still frozen: {freezes.points(FROZEN, FREEZING)}")


def _thaw_problem(freezes: _Freezes, problem: FreezeError | None) -> FreezeError | None:
    """Turn what went wrong in the thaws into the answer; a problem that came before them stays, unless a freeze does."""
    real = {index: error for index, error in freezes.thaw_errors.items() if error.errno != errno.EINVAL}
    if real:
        index, error = next(iter(real.items()))
        code = error.errno or 0
        return FreezeError("ThawFailed", f"thawing {freezes.point(index)}: {os.strerror(code)}", code)
    if freezes.count(FROZEN):
        message = f"thawing does not come back: {freezes.points(FROZEN)}"
        return FreezeError("StillFrozen", f"{message} ({problem})" if problem else message, errno.ETIMEDOUT)
    if freezes.thaw_errors and problem is None:
        index = next(iter(freezes.thaw_errors))
        message = f"another program thawed {freezes.point(index)} inside the freeze: the clones are not of one moment"
        return FreezeError("ThawedElsewhere", message, errno.EINVAL)
    return problem

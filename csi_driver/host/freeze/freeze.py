"""Freezing file systems, and suspending devices, for one action, and the certainty that nothing stays frozen afterwards.

The job `cut` runs in a child of the fork server (helper/server.py), never in the agent. What it did to each target is kept in a
page shared with the fork server (state.py), so that, whoever dies at whatever point, the survivor thaws what we froze, and
only that: what somebody else froze is never thawed by us. Devices are suspended once all file systems are frozen, and resumed
before any is thawed: a thaw may write.
"""

import errno
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from csi_driver.host.freeze.action import ActionProcess, action_of
from csi_driver.host.freeze.freezes import Freezes
from csi_driver.host.freeze.state import (
    FREEZING,
    FROZEN,
    MAX_TARGETS,
    FreezeError,
    FreezePage,
    describe_error,
    numbers,
)
from csi_driver.host.freeze.targets import DeviceTarget, MountTarget, Target

_THAW_GRACE = 1.0
"""Seconds that a freeze waits for a killed action, for its resumes and for its thaws, before it answers without them."""
_READY_TIMEOUT = 10.0

Answer = Callable[[dict[str, object]], None]
"""Sends the one answer of a job: {"ok": ...} or {"error": {...}}. May be called before the job ends."""


def cut(
    mounts: Sequence[dict[str, object]],
    action: Mapping[str, Any],
    deadline: float,
    sync_timeout: float = 30.0,
    test_pause: float = 0.0,
    devices: Sequence[dict[str, object]] = (),
    *,
    states: FreezePage,
    answer: Answer,
) -> None:
    """Perform an action while file systems are frozen and devices suspended. Returns only when nothing that it froze is frozen.

    `mounts`: [{"point", "major", "minor"}], the file systems to freeze; `devices`: [{"uuid", "major", "minor"}], the devices of
    the device mapper to suspend, of these file systems or of others; `action`: see action.py (the caller removes what it
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
    process: ActionProcess | None = None
    try:
        try:
            process = ActionProcess(action_of(action), test_pause)
            _refuse_twice(mounts, "file system")
            _refuse_twice(devices, "device")
            if not 0 < len(mounts) + len(devices) <= MAX_TARGETS:
                raise FreezeError("FreezeFailed", f"a freeze of nothing, or of more than {MAX_TARGETS}", errno.EINVAL)
            mounted = {numbers(mount) for mount in mounts}
            device_targets = [DeviceTarget(device, mounted) for device in devices]
            mount_targets = [MountTarget(mount) for mount in mounts]
            _sync([*mount_targets, *device_targets], sync_timeout)
            process.wait_ready(time.monotonic() + _READY_TIMEOUT)
        except Exception:
            if process is not None:
                process.kill(_THAW_GRACE)
            raise
    except Exception as error:
        answer({"error": describe_error(error)})
        return
    states.frozen_since = time.monotonic()
    freezes = [Freezes(mount_targets, states), Freezes(device_targets, states, len(mount_targets))]
    _cut(freezes, process, deadline, answer)


def _refuse_twice(targets: Sequence[dict[str, object]], what: str) -> None:
    if len({numbers(target) for target in targets}) != len(targets):
        raise FreezeError("FreezeFailed", f"a freeze of one {what} twice", errno.EINVAL)


def _sync(targets: Sequence[Target], timeout: float) -> None:
    """Write everything back before the freeze, so that the freeze finds little to do. Raises FreezeError SyncTimeout, OSError."""
    errors: list[OSError] = []

    def sync(target: Target) -> None:
        try:
            target.sync()
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=sync, args=(target,), daemon=True) for target in targets]
    until = time.monotonic() + timeout
    for thread in threads:
        thread.start()
    for thread, target in zip(threads, targets, strict=True):
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive():
            message = f"writing back {target.name} takes longer than {timeout:g} s; nothing was frozen"
            raise FreezeError("SyncTimeout", message, errno.ETIMEDOUT, point=target.name)
    if errors:
        raise errors[0]


def _cut(freezes: Sequence[Freezes], process: ActionProcess, deadline: float, answer: Answer) -> None:
    problem: FreezeError | None = None
    action_seconds, moment = 0.0, 0
    started = time.monotonic()
    until = started + deadline
    try:
        for each in freezes:
            each.freeze(until)
        begun, moment = time.monotonic(), time.time_ns()
        if not process.run(until):
            raise FreezeError("Deadline", process.progress)
        action_seconds = time.monotonic() - begun
    except FreezeError as error:
        problem = error
    except Exception as error:  # no thread, no memory, no pipe: whatever it is, the thaw comes first
        problem = FreezeError(type(error).__name__, str(error), getattr(error, "errno", None) or 0)
    frozen = sum(each.count(FROZEN) for each in freezes)
    # A thaw waits for a clone that runs, so that process is dead first. After a success it has nothing left to do.
    if problem is not None:
        process.kill(_THAW_GRACE)
    for each in reversed(freezes):
        each.thaw(_THAW_GRACE)
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
    for each in freezes:
        problem = each.problem(problem)
    if problem is None:
        answer({"ok": {"frozen_seconds": frozen_seconds, "action_seconds": action_seconds, "moment": moment}})
    else:
        problem.details["frozen_seconds"] = frozen_seconds
        answer({"error": describe_error(problem)})
    # From here on nobody waits for us; what hangs is undone when it comes back, and the exit status says that all is thawed.
    for each in freezes:
        each.join()
    process.reap()
    if left := ", ".join(each.names(FROZEN, FREEZING) for each in freezes if each.count(FROZEN, FREEZING)):
        raise FreezeError("ThawFailed", f"still frozen: {left}")

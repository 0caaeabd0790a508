"""A job in the fork server: what the server knows of it, and what a child does for it."""

import _socket as socket  # the C half alone: `socket` brings selectors and enumerations, 0.5 MiB
import ctypes
import mmap
import os
import select
from contextlib import suppress
from typing import Any

from csi_driver.host import commands
from csi_driver.host.freeze import state as freeze_state
from csi_driver.host.freeze import thaw
from csi_driver.host.freeze.state import FREEZING, FROZEN, FreezePage
from csi_driver.host.helper import job_table
from csi_driver.host.helper.messages import RunJob, encode_answer

LATE_SECONDS = 3.0
"""Seconds after a snapshot job's deadline at which the watchdog no longer expects its child to thaw (it needs 2 at worst)."""


class RunningJob:
    """A job whose child exists and, for a snapshot, what has to be undone after it."""

    def __init__(self, request: RunJob) -> None:
        self.number, self.name, self.args = request.number, request.name, request.args
        self.mounts, self.devices = (self._list(key) for key in ("mounts", "devices"))
        self.pid = 0
        self.status: int | None = None
        self.killed = self.late = False
        self.thaws_running = 0
        self.thaw_attempts = 0
        self.next_thaw_at = 0.0  # 0: no thaw is due
        self.thawed = False
        self.page: FreezePage | None = None
        if self.name == "cut":
            self.page = FreezePage.from_buffer(mmap.mmap(-1, ctypes.sizeof(FreezePage)))  # shared with the child

    def _list(self, key: str) -> list[dict[str, object]]:
        value = self.args.get(key)
        return value if isinstance(value, list) else []

    @property
    def is_thaw(self) -> bool:
        """Whether it is a thaw that the agent asked for."""
        return self.name.startswith("thaw")

    @property
    def points(self) -> str:
        """Its mount points and devices, for messages."""
        return ", ".join(
            [*(str(mount.get("point")) for mount in self.mounts), *(str(device.get("uuid")) for device in self.devices)]
        )

    def may_be_frozen(self, *states: int) -> bool:
        """Whether one of its mounts or devices is in one of these states, by default FREEZING or FROZEN."""
        count = len(self.mounts) + len(self.devices)
        return self.page is not None and self.page.any(count, states or (FREEZING, FROZEN))

    def is_late(self, now: float) -> bool:
        """Whether its child has held a file system frozen for too long."""
        if self.page is None or self.late or self.status is not None or not self.may_be_frozen(FROZEN):
            return False
        return now > self.page.frozen_since + float(self.args.get("deadline", 0.0)) + LATE_SECONDS


def run_job(job: RunningJob, channel: socket.socket) -> bool:
    """Do the job and answer on its channel. False: it failed, and the watchdog must look after it."""

    def answer(message: dict[str, object]) -> None:
        """Send an answer. The agent takes the first."""
        data = encode_answer(message)
        with suppress(OSError):  # the agent is gone, or no longer waits
            channel.sendall(data)

    commands.hold_open(channel)
    function = job_table.TABLE.get(job.name)
    try:
        if function is None:
            raise freeze_state.FreezeError("UnknownJob", f"no job is called {job.name!r}")
        if job.page is not None:
            function(**job.args, states=job.page, answer=answer)
        else:
            result: Any = function(**job.args)
            answer({"ok": result})
    except BaseException as error:
        answer({"error": freeze_state.describe_error(error)})
        return False
    return True


def run_thaw(job: RunningJob) -> bool:
    """Thaw what a snapshot job left frozen. False: a file system may still be frozen."""
    try:
        thaw.thaw(job.mounts, job.devices, states=job.page)
    except BaseException as error:
        log_to_stderr(str(error))
        return False
    return True


def log_to_stderr(text: str) -> None:
    """Write a line to standard error if that cannot block: a full pipe must not keep a file system frozen."""
    poller = select.poll()
    poller.register(2, select.POLLOUT)
    with suppress(OSError):
        if dict(poller.poll(0)).get(2) == select.POLLOUT:
            os.write(2, f"tidemark fork server: {text}\n".encode()[:4000])

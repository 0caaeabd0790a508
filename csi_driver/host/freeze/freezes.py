"""Freezes of one job, made and undone by threads, each of which may hang in the kernel without holding up the others."""

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence

from csi_driver.host.freeze.state import FREEZING, FROZEN, REFUSED, THAWED, UNTOUCHED, FreezeError, FreezePage
from csi_driver.host.freeze.targets import Target


class Freezes:
    """The freezes of some targets; their states are those of the page from the index `first` on."""

    def __init__(self, targets: Sequence[Target], states: FreezePage, first: int = 0) -> None:
        self._targets, self._states, self._first = targets, states, first
        self._changed = threading.Condition()
        self._abandoned = False
        self._threads: list[threading.Thread] = []
        self._errors: dict[int, OSError] = {}
        self._thaw_errors: dict[int, OSError] = {}

    def state(self, index: int) -> int:
        """Return the state of a target."""
        return self._states[self._first + index]

    def _set(self, index: int, state: int) -> None:
        self._states[self._first + index] = state

    def count(self, *states: int) -> int:
        """Return how many targets are in one of these states."""
        return sum(1 for index in range(len(self._targets)) if self.state(index) in states)

    def names(self, *states: int) -> str:
        """Return the targets in one of these states, for a message."""
        return ", ".join(target.name for index, target in enumerate(self._targets) if self.state(index) in states)

    def freeze(self, until: float) -> None:
        """Freeze all. Raises FreezeError: a target's refusal, or Deadline at the time `until`. What is frozen then stays so."""
        for index in range(len(self._targets)):
            self._spawn(self._freeze, index)
        with self._changed:
            while self.count(FROZEN) < len(self._targets):
                if self._errors:
                    # EBUSY first: it tells the user what to do.
                    index, error = min(self._errors.items(), key=lambda item: item[1].errno != errno.EBUSY)
                    raise self._targets[index].refusal(error)
                left = until - time.monotonic()
                if left <= 0:
                    names = self.names(UNTOUCHED, FREEZING)
                    raise FreezeError("Deadline", f"no answer in time to the freeze of {names}")
                self._changed.wait(left)

    def _spawn(self, target: Callable[[int], None], index: int) -> None:
        thread = threading.Thread(target=target, args=(index,), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _freeze(self, index: int) -> None:
        with self._changed:
            if self._abandoned:
                return
            self._set(index, FREEZING)
        try:
            self._targets[index].freeze()
        except OSError as error:
            with self._changed:
                self._set(index, REFUSED)
                self._errors[index] = error
                self._changed.notify_all()
            return
        with self._changed:
            if not self._abandoned:
                self._set(index, FROZEN)
                self._changed.notify_all()
                return
        self._thaw(index)  # nobody waits for it any more: whoever made it undoes it, at once

    def thaw(self, grace: float) -> None:
        """Thaw what is frozen, and let what freezes later be thawed by its own thread. Waits `grace` seconds at most."""
        with self._changed:
            self._abandoned = True
            frozen = [index for index in range(len(self._targets)) if self.state(index) == FROZEN]
        for index in frozen:
            try:
                self._spawn(self._thaw, index)
            except RuntimeError:  # no memory for a thread; a thaw that may hang is better than none
                self._thaw(index)
        until = time.monotonic() + grace
        with self._changed:
            while any(self.state(index) == FROZEN and index not in self._thaw_errors for index in frozen):
                left = until - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)

    def _thaw(self, index: int) -> None:
        failure: OSError | None = None
        try:
            self._targets[index].thaw()
        except OSError as error:
            failure = error
        with self._changed:
            if failure is not None:
                self._thaw_errors[index] = failure
            # EINVAL: no longer frozen, somebody has thawed it; thaw_errors reports that.
            if failure is None or failure.errno == errno.EINVAL:
                self._set(index, THAWED)
            self._changed.notify_all()

    def problem(self, before: FreezeError | None) -> FreezeError | None:
        """Return what went wrong in the thaws; a problem that came before them stays, unless a freeze does."""
        real = {index: error for index, error in self._thaw_errors.items() if error.errno != errno.EINVAL}
        if real:
            index, error = next(iter(real.items()))
            code = error.errno or 0
            return FreezeError("ThawFailed", f"thawing {self._targets[index].name}: {os.strerror(code)}", code)
        if self.count(FROZEN):
            message = f"thawing does not come back: {self.names(FROZEN)}"
            return FreezeError("StillFrozen", f"{message} ({before})" if before else message, errno.ETIMEDOUT)
        if self._thaw_errors and before is None:
            name = self._targets[next(iter(self._thaw_errors))].name
            message = f"another program thawed {name} inside the freeze: the clones are not of one moment"
            return FreezeError("ThawedElsewhere", message, errno.EINVAL)
        return before

    def join(self) -> None:
        """Wait until every thread has come back from the kernel, as long as that takes."""
        for thread in self._threads:
            thread.join()

"""Whether the machine's clock is kept right by something, as the kernel says it."""

import ctypes
import struct
from dataclasses import dataclass

from csi_driver.host import syscalls

_SIZE = 208
_UNSYNCHRONISED = 0x0040
_ERROR = 5


@dataclass(frozen=True, slots=True)
class ClockState:
    """`synchronised`: a program disciplines the clock; `max_error`: by how much it may be wrong, in seconds."""

    synchronised: bool
    max_error: float


def state() -> ClockState:
    """Read the state of the clock, which any user may. Raises OSError."""
    timex = ctypes.create_string_buffer(_SIZE)  # modes 0: nothing is changed
    result = syscalls.call("state of the clock", "adjtimex", ctypes.addressof(timex))
    max_error, _, status = struct.unpack_from("=qqi", timex, 24)
    return ClockState(result != _ERROR and not status & _UNSYNCHRONISED, max_error / 1e6)

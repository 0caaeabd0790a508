"""System calls that Python 3.11 does not offer, by ctypes.

A ctypes call releases the interpreter's lock for its whole length. `fcntl.ioctl` does not if its mutable buffer is
larger than 1,024 bytes (measured: the lock held for 0.66 s during a FIEMAP), so no ioctl with a large buffer may use
it.
"""

import ctypes
import errno
import os
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100

_SIGNATURES: dict[str, list[Any]] = {
    "ioctl": [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p],
    "fallocate": [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64],
    "renameat2": [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint],
    "statfs": [ctypes.c_char_p, ctypes.c_void_p],
    "syncfs": [ctypes.c_int],
    "mount": [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p],
    "umount2": [ctypes.c_char_p, ctypes.c_int],
    "adjtimex": [ctypes.c_void_p],
}
for _name, _arguments in _SIGNATURES.items():
    getattr(_LIBC, _name).argtypes = _arguments
    getattr(_LIBC, _name).restype = ctypes.c_int
_LIBC.syscall.restype = ctypes.c_long


def call(what: str, function: str, *arguments: object) -> int:
    """Call libc's `function`, again after EINTR, which is safe for every function listed above.

    Raises OSError with the errno and `what`, which tells a user what was tried.
    """
    while True:
        result = int(getattr(_LIBC, function)(*arguments))
        if result >= 0:
            return result
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, f"{what}: {os.strerror(code)}")


def syscall(what: str, number: int, *arguments: int | bytes) -> int:
    """Make a system call that libc may have no wrapper for. Integers are passed as 64 bits wide. Raises OSError."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    result = int(_LIBC.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def ioctl(
    what: str, fd: int, request: int, argument: "int | ctypes.Structure | ctypes.Array[ctypes.c_char]" = 0
) -> int:
    """Make an ioctl without holding the interpreter's lock. Raises OSError with the errno.

    `argument`: a number, or a buffer that the kernel reads and fills.
    """
    return call(what, "ioctl", fd, request, argument if isinstance(argument, int) else ctypes.addressof(argument))

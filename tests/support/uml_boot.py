"""Starts user-mode Linux so that it also runs on processors with more registers than its kernel knows.

    python uml_boot.py linux.uml ARGUMENT...

User-mode Linux (Debian's is 6.1) keeps the vector registers of its processes in 2,696 bytes, and puts them back by
ptrace(PTRACE_SETREGSET, NT_X86_XSTATE). The host takes that only in the full size of its processor's: 10,752 bytes and more where
there are AMX tiles, so that process 1 dies of EFAULT ("ptrace set fp regs failed, errno = 14"). Where reading the registers in
this way fails, it falls back to PTRACE_SETFPREGS: x87 and SSE. So a filter of system calls has the reading fail.

The price: AVX registers are lost at every page fault. BASELINE tells glibc, OpenSSL and Go to leave AVX alone; give it to whatever
runs inside.
"""

import ctypes
import os
import platform
import shutil
import struct
import sys
from pathlib import Path

BOOT = Path(__file__)
"""This program."""

BASELINE = {
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX_Fast_Unaligned_Load,-XSAVE,-XSAVEC",
    "OPENSSL_ia32cap": "~0x1000000000000000:~0x20",
    "GODEBUG": "cpu.all=off",
}
"""The environment in which nothing uses AVX."""

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_SECCOMP_MODE_FILTER = 2
_X86_64, _PTRACE, _GETREGSET, _XSTATE, _EINVAL = 0xC000003E, 101, 0x4204, 0x202, 22
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
# Offsets in struct seccomp_data; of the arguments the lower halves.
_NUMBER, _ARCHITECTURE, _FIRST, _THIRD = 0, 4, 16, 32


def why_not() -> str:
    """Why no such machine can be had here; empty where it can."""
    if platform.machine() != "x86_64":
        return "user-mode Linux runs on x86-64 alone"
    if shutil.which("linux.uml") is None:
        return "needs user-mode Linux: install Debian's package user-mode-linux"
    return ""


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse_xstate() -> None:
    """Have PTRACE_GETREGSET of NT_X86_XSTATE fail with EINVAL, in this process and all that it starts. Raises OSError."""
    wanted = ((_ARCHITECTURE, _X86_64), (_NUMBER, _PTRACE), (_FIRST, _GETREGSET), (_THIRD, _XSTATE))
    program = []
    for index, (offset, value) in enumerate(wanted):
        to_the_end = 2 * (len(wanted) - index) - 1  # past the instructions that are left, and the refusal
        program += [(_LOAD, 0, 0, offset), (_JUMP_EQUAL, 0, to_the_end, value)]
    program += [(_RETURN, 0, 0, _ERRNO | _EINVAL), (_RETURN, 0, 0, _ALLOW)]
    filter_ = _Program(len(program), b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0), (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filter_))):
        if libc.prctl(*arguments, 0, 0):
            raise OSError(ctypes.get_errno(), "a filter of system calls was refused")


if __name__ == "__main__":
    refuse_xstate()
    os.execvp(sys.argv[1], sys.argv[1:])

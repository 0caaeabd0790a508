"""Commands: argument lists, no shell, a deadline, one typed error. No event loop is needed."""

import _socket as socket  # the C half alone, as in the fork server
import os
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache

from csi_driver.host.errors import NOT_STARTED, CommandError

DIRECTORIES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
FILE_SYSTEM_TOOLS = ("mkfs.ext4", "mkfs.xfs", "resize2fs", "xfs_growfs", "e2fsck")
# Nothing of the caller's environment reaches a tool: MKE2FS_CONFIG, for one, would undo the pinned profiles. What the C library
# is told of the processor is as true of a tool: without it lvm wrote broken metadata where the kernel loses AVX registers.
ENVIRONMENT = {"LC_ALL": "C", "PATH": ":".join(DIRECTORIES)} | {
    name: value for name, value in os.environ.items() if name == "GLIBC_TUNABLES"
}
_REAP_SECONDS = 2.0

_lifeline: socket.socket | None = None


def hold_open(channel: socket.socket) -> None:
    """Have every tool of this process keep `channel` open while it lives, as its standard input, which reads as empty.

    A tool that the kernel does not let die outlives the helper that started it. Whoever has the other end of the channel
    sees by it when the last of them is gone, also if another process has to reap it.
    """
    global _lifeline
    _lifeline = channel


@cache
def resolve(tool: str) -> str | None:
    """Find the absolute path of `tool` in the fixed directories, once in the life of a process; None: not there."""
    candidates = (os.path.join(directory, tool) for directory in DIRECTORIES)
    return next((path for path in candidates if os.access(path, os.X_OK) and not os.path.isdir(path)), None)


def missing_tools(tools: Iterable[str] = FILE_SYSTEM_TOOLS) -> list[str]:
    """Name the tools that are not installed: checked at start, so that no request is the first to find out."""
    return [tool for tool in tools if resolve(tool) is None]


def run(argv: Sequence[str], timeout: float) -> str:
    """Run a command, its first word a tool's name or absolute path, and return its standard output.

    `timeout` in seconds: then it is killed and reaped. It stays in the caller's process group, so whoever kills that group
    kills it too, with all that it started; the fork server does so when a helper fails. A tool that the kernel does not let
    die (stuck in a file system) is left behind after two seconds: what it held it still holds. Raises CommandError.
    """
    return run_both(argv, timeout)[0]


def run_both(argv: Sequence[str], timeout: float) -> tuple[str, str]:
    """Run a command as `run` does, and return its standard output and its standard error."""
    command = tuple(argv)
    path = command[0] if command[0].startswith("/") else resolve(command[0])
    if path is None:
        raise CommandError(command, NOT_STARTED, "", f"not installed in {', '.join(DIRECTORIES)}")
    if _lifeline is not None:
        _lifeline.shutdown(socket.SHUT_RD)
    try:
        process = subprocess.Popen(
            (path, *command[1:]),
            stdin=subprocess.DEVNULL if _lifeline is None else _lifeline.fileno(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise CommandError(command, NOT_STARTED, "", str(error)) from error
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        out, err = _kill(process)
        raise CommandError(command, None, out, err) from None
    except BaseException:
        _kill(process)
        raise
    if process.returncode:
        raise CommandError(command, process.returncode, out, err)
    return out, err


def _kill(process: "subprocess.Popen[str]") -> tuple[str, str]:
    process.kill()
    try:
        return process.communicate(timeout=_REAP_SECONDS)
    except subprocess.TimeoutExpired as error:
        if process.poll() is None:
            return "", "(it cannot be killed and was left behind)"
        # Killed, but something that it started still has its output open; the fork server kills that with the helper.
        return _text(error.stdout), _text(error.stderr)


def _text(output: bytes | None) -> str:
    return (output or b"").decode(errors="replace")

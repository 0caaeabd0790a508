"""Commands: argument lists, no shell, a deadline, one typed error. No event loop is needed."""

import os
import signal
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache

from csi_driver.host.errors import NOT_STARTED, CommandError

DIRECTORIES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
FILE_SYSTEM_TOOLS = ("mkfs.ext4", "mkfs.xfs", "resize2fs", "xfs_growfs", "e2fsck")
# Nothing of the caller's environment reaches a tool: MKE2FS_CONFIG, for one, would undo the pinned profiles.
ENVIRONMENT = {"LC_ALL": "C", "PATH": ":".join(DIRECTORIES)}
_REAP_SECONDS = 2.0


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

    `timeout` in seconds: then its whole process group is killed and reaped. One that the kernel does not let die (stuck
    in a file system) is left behind after two seconds more: what it held it still holds. Raises CommandError.
    """
    return run_both(argv, timeout)[0]


def run_both(argv: Sequence[str], timeout: float) -> tuple[str, str]:
    """Run a command as `run` does, and return its standard output and its standard error."""
    given = tuple(argv)
    path = given[0] if given[0].startswith("/") else resolve(given[0])
    if path is None:
        raise CommandError(given, NOT_STARTED, "", f"not installed in {', '.join(DIRECTORIES)}")
    try:
        process = subprocess.Popen(
            (path, *given[1:]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise CommandError(given, NOT_STARTED, "", str(error)) from error
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        out, err = _kill(process)
        raise CommandError(given, None, out, err) from None
    except BaseException:
        _kill(process)
        raise
    if process.returncode:
        raise CommandError(given, process.returncode, out, err)
    return out, err


def _kill(process: "subprocess.Popen[str]") -> tuple[str, str]:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.communicate(timeout=_REAP_SECONDS)
    except (subprocess.TimeoutExpired, ValueError):
        process.poll()
        return "", "(it cannot be killed and was left behind)"

"""For all tests: interrupts reach the tested processes, and tests that run side by side see no mount of each other."""

import ctypes
import gc
import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy makes examples slowly, and no test may fail for that.
settings.register_profile("tidemark", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tidemark")

CLONE_NEWNS = 0x00020000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
MNT_DETACH = 2

_MOUNTS = pytest.StashKey[set[str]]()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job inherits that, and would pass it on; what is caught here is the default again after an exec.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Give each process of `pytest -n` mounts of its own.

    A mount namespace that one test makes would else keep copies of what another test has mounted, and so its device in use.
    The scenarios of the cluster stay where they are: nodes that they switch on outlive the process, and share nothing anyway.
    """
    if hasattr(config, "workerinput") and os.geteuid() == 0 and not _is_cluster(config):
        _have_own_mounts()
        config.stash[_MOUNTS] = _mounts()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (before := session.config.stash.get(_MOUNTS, None)) is not None and (left := _mounts() - before):
        # They go with this process, so nobody else would see that they were left.
        raise pytest.UsageError(f"the tests left mounts behind: {', '.join(sorted(left))}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side the longest begin first, so that at the end none runs alone for minutes; all others keep their order."""
    if hasattr(config, "workerinput"):
        items.sort(key=_seconds, reverse=True)


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over what stays to the end: 4 % of the processors went into looking at it again."""
    gc.collect()
    gc.freeze()


def _seconds(item: pytest.Item) -> int:
    marker = item.get_closest_marker("slow")
    return int(marker.kwargs.get("seconds", 10)) if marker else 0


def _is_cluster(config: pytest.Config) -> bool:
    return any("cluster" in Path(each).parts for each in config.args)


def _have_own_mounts() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "no mount namespace of its own")
    # A copy of a mount holds its device: what another run of the tests has mounted could not be detached there.
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        point, source = line.split()[4], line.split(" - ")[1].split()[1]
        if source.startswith("/dev/loop"):
            libc.umount2(point.encode().decode("unicode_escape").encode(), MNT_DETACH)


def _mounts() -> set[str]:
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}

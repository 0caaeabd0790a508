"""What every benchmark needs: an agent on a pool image of its own, quick clients, and honest statistics."""

import contextlib
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from support.agent_process import AgentRig


@contextlib.contextmanager
def agent(size: str = "24Gi", *options: str, tree: Path | None = None) -> Iterator[AgentRig]:
    """A running agent, of another checkout if `tree` names one, on a sparse pool image; everything is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="tidemark-bench-") as root:
        rig = AgentRig(Path(root), size, *options, tree=tree)
        try:
            rig.start().close()
            yield rig
        finally:
            rig.clean()


def timed(repeat: int, work: Callable[[int], object]) -> list[float]:
    """Seconds that each of `repeat` calls took."""
    times = []
    for index in range(repeat):
        started = time.perf_counter()
        work(index)
        times.append(time.perf_counter() - started)
    return times


def quantiles(times: list[float]) -> dict[str, float]:
    """Median, 95th percentile and worst, in milliseconds."""
    ordered = sorted(times)
    return {
        "p50_ms": round(statistics.median(ordered) * 1e3, 3),
        "p95_ms": round(ordered[int(len(ordered) * 0.95)] * 1e3, 3),
        "max_ms": round(ordered[-1] * 1e3, 3),
    }


def machine() -> dict[str, object]:
    """The machine that the figures belong to."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def fragment(path: str, extents: int, block: int = 4096) -> None:
    """Give a file (at least `2 x extents x block` bytes) that many extents: every second block written, by itself."""
    fd = os.open(path, os.O_RDWR)
    try:
        data = os.urandom(block)
        for index in range(extents):
            os.pwrite(fd, data, index * 2 * block)
            if index % 4096 == 4095:
                os.fdatasync(fd)
        os.fsync(fd)
    finally:
        os.close(fd)

"""What a snapshot does to a writer, and what it does to the agent's own event loop, by the number of extents."""

import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

from bench.rig import agent, fragment
from csi_driver.domain.model import AccessMode, Capability, SizeRange
from csi_driver.rpc.clients.cli_client import Client

MOUNT = Capability("mount", AccessMode.MULTI_WRITER, "xfs")


def _fragmented(client: Client, extents: int, root: Path):
    """A mounted volume whose image has about that many extents, by a file with every second block written."""
    volume = client.create_volume(f"v{extents}", SizeRange(max(1 << 30, extents * 8192 * 2)), [MOUNT])
    staging = root / f"stage-{extents}"
    staging.mkdir()
    client.stage(volume.id, str(staging), MOUNT)
    with (staging / "holes").open("wb") as file:
        file.truncate(extents * 8192)
    fragment(str(staging / "holes"), extents)
    return volume, staging


def stalls() -> list[dict[str, object]]:
    """The longest 4k O_DSYNC write while a snapshot is taken, and the longest wait for a Probe."""
    rows: list[dict[str, object]] = []
    with (
        tempfile.TemporaryDirectory() as place,
        agent("64Gi", "--freeze-deadline", "120") as rig,
        Client(rig.endpoint) as client,
    ):
        for extents in (1, 10_000, 200_000):
            volume, staging = _fragmented(client, extents, Path(place))
            longest: list[float] = []
            waits: list[float] = []
            for index in range(5 if extents < 200_000 else 2):
                stop = threading.Event()
                write: list[float] = [0.0]
                wait: list[float] = [0.0]
                threads = [
                    threading.Thread(target=_write, args=(staging / "writer", stop, write)),
                    threading.Thread(target=_probe, args=(rig.endpoint, stop, wait)),
                ]
                for thread in threads:
                    thread.start()
                time.sleep(0.3)
                client.create_snapshot(volume.id, f"s{extents}-{index}")
                client.tree(volume_id=volume.id, with_usage=True)
                time.sleep(0.1)
                stop.set()
                for thread in threads:
                    thread.join()
                longest.append(write[0])
                waits.append(wait[0])
            rows.append(
                {
                    "what": "longest write stall of a snapshot",
                    "extents": extents,
                    "ms": round(statistics.median(longest) * 1e3, 1),
                    "worst_ms": round(max(longest) * 1e3, 1),
                    "longest_probe_ms": round(max(waits) * 1e3, 1),
                }
            )
            client.unstage(volume.id, str(staging))
    return rows


def _write(path: Path, stop: threading.Event, longest: list[float]) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_DSYNC, 0o600)
    data = bytes(4096)
    try:
        while not stop.is_set():
            started = time.perf_counter()
            os.pwrite(fd, data, 0)
            longest[0] = max(longest[0], time.perf_counter() - started)
    finally:
        os.close(fd)


def _probe(endpoint: str, stop: threading.Event, longest: list[float]) -> None:
    with Client(endpoint) as client:
        client.probe()
        while not stop.is_set():
            started = time.perf_counter()
            client.probe()
            longest[0] = max(longest[0], time.perf_counter() - started)
            time.sleep(0.002)

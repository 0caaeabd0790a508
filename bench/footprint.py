"""Start and memory of an agent with a thousand volumes and a thousand snapshots."""

import re
import statistics
import time
from pathlib import Path

from bench.rig import agent
from csi_driver.domain.model import AccessMode, Capability, SizeRange
from csi_driver.rpc.clients.cli_client import Client

BLOCK = Capability("block", AccessMode.MULTI_WRITER)


def _rss(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def _children(pid: int) -> list[int]:
    own = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return own + [deep for child in own for deep in _children(child)]


def resident_mib(pid: int, children: bool) -> float:
    """Resident memory of a process in MiB, with all processes below it if `children`."""
    pids = [pid, *_children(pid)] if children else [pid]
    return round(sum(_rss(each) for each in pids), 1)


def footprint() -> list[dict[str, object]]:
    """Seconds from exec to ready, and resident MiB, empty and with 1,000 + 1,000 objects."""
    rows: list[dict[str, object]] = []
    with agent("64Gi", "--max-snapshots", "2000", "--overcommit", "1000") as rig:
        rows.append(_weigh(rig.process.pid, "empty"))
        with Client(rig.endpoint) as client:
            for index in range(1000):
                volume = client.create_volume(f"v{index}", SizeRange(1 << 30), [BLOCK])
                client.create_snapshot(volume.id, f"s{index}")
        rows.append(_weigh(rig.process.pid, "1,000 volumes and 1,000 snapshots, just made"))
        starts = []
        for _ in range(5):
            rig.stop()
            started = time.perf_counter()
            client = rig.start()
            starts.append(time.perf_counter() - started)
            client.close()
        rows.append({"what": "start until ready with 1,000 + 1,000", "seconds": round(statistics.median(starts), 2)})
        with Client(rig.endpoint) as client:
            client.tree()
        time.sleep(2)
        rows.append(_weigh(rig.process.pid, "1,000 volumes and 1,000 snapshots, after a restart"))
    return rows


def _weigh(pid: int, state: str) -> dict[str, object]:
    return {
        "what": "resident memory",
        "state": state,
        "agent_mib": resident_mib(pid, children=False),
        "with_children_mib": resident_mib(pid, children=True),
    }

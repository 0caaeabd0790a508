"""`make soak`: random examples of the model test, power cuts, thousands of cycles, and whether anything grows.

Minutes as the argument (20). On top of them ten snapshots are taken of a busy database, and schedules
live through ten minutes without the Kubernetes API.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.footprint import _rss
from bench.rig import AgentRig, agent, machine
from csi_driver.domain.model import AccessMode, Capability, SizeRange, Source
from csi_driver.rpc.clients.cli_client import Client

BLOCK = Capability("block", AccessMode.MULTI_WRITER)


API_AWAY_SECONDS = 600

MODEL_EXAMPLES = 12
"""Of each machine in one run of the model test: enough that all its steps are done."""


def main() -> int:
    """Run, about a third of the time for each of those that have no end of their own; the exit status is that of the tests, or 1 where something grew."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    third = minutes * 20
    tests = {
        "model": again_and_again("tests/agent/test_model.py", third, TIDEMARK_MODEL_EXAMPLES=str(MODEL_EXAMPLES)),
        "power": again_and_again("tests/power", third, TIDEMARK_POWER_CUTS="5"),
    }
    clock = "tests/cluster/test_schedule_clock.py::test_the_api_is_away"
    database = "tests/agent/test_postgresql.py"
    tests["database"] = again_and_again(database, 0, TIDEMARK_DATABASE_CUTS="10")
    tests["api away"] = again_and_again(clock, 0, TIDEMARK_API_AWAY_SECONDS=str(API_AWAY_SECONDS))
    row = cycles(time.monotonic() + third)
    print(json.dumps({"machine": machine(), "minutes": minutes, **tests, **row}, indent=2))
    grew = (
        row["fds"][1] > row["fds"][0] + 4
        or row["loops"][1] > row["loops"][0]
        or row["rss_mib"][1] > row["rss_mib"][0] + 8
    )
    return int(grew or any(row["status"] for row in tests.values()))


def again_and_again(test: str, seconds: float, **environment: str) -> dict[str, int]:
    """Run a test that is another one each time, until the time is over or it fails."""
    until = time.monotonic() + seconds
    runs = status = 0
    while status == 0 and (runs == 0 or time.monotonic() < until):
        argv = [sys.executable, "-m", "pytest", "-q", "--timeout=0", "-p", "no:cacheprovider", "-s", test]
        status = subprocess.run(argv, env={**os.environ, **environment}, check=False).returncode
        runs += 1
    return {"runs": runs, "status": status}


def cycles(until: float) -> dict[str, object]:
    """Create, stage, publish, write, cut, restore, roll back, delete, again and again; what the agent holds before and after."""
    count = 0
    with agent("16Gi") as rig, Client(rig.endpoint) as client:
        staging, target = rig.root / "staging", rig.root / "target"
        staging.mkdir()
        _cycle(client, str(staging), str(target), 0)
        before = _held(rig)
        while time.monotonic() < until:
            count += 1
            _cycle(client, str(staging), str(target), count)
        after = _held(rig)
        left = len(client.tree())
    assert left == 0
    return {"cycles": count} | {key: (before[key], after[key]) for key in before}


def _cycle(client: Client, staging: str, target: str, number: int) -> None:
    volume = client.create_volume(f"v{number}", SizeRange(16 << 20), [BLOCK])
    client.stage(volume.id, staging, BLOCK)
    client.publish(volume.id, staging, target, BLOCK)
    with open(target, "r+b", buffering=0) as device:
        device.write(number.to_bytes(8, "big") * 512)
        os.fsync(device.fileno())
    snapshot = client.create_snapshot(volume.id, f"s{number}")
    client.unpublish(volume.id, target)
    client.unstage(volume.id, staging)
    copy = client.create_volume(f"c{number}", SizeRange(), [BLOCK], source=Source("snapshot", snapshot.id))
    rolled = client.roll_back(volume.id, snapshot.id, f"r{number}")
    for made in (volume.id, copy.id):
        client.delete_volume(made)
    for cut in (snapshot.id, rolled.safety_id):
        client.delete_snapshot(cut)


def _held(rig: AgentRig) -> dict[str, float]:
    assert rig.process is not None
    pid = rig.process.pid
    backing = Path("/sys/block").glob("loop*/loop/backing_file")
    return {
        "rss_mib": round(_rss(pid), 1),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        "loops": sum(1 for file in backing if file.read_text().startswith(f"{rig.root}/")),
    }


if __name__ == "__main__":
    sys.exit(main())

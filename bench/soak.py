"""`make soak`: the model test for long, then thousands of cycles, and whether anything grows. Minutes as the argument (20)."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.footprint import _rss
from bench.rig import agent, machine
from csi_driver.domain.model import Capability, Mode, SizeRange, Source
from csi_driver.rpc.client import Client

BLOCK = Capability("block", Mode.MULTI_WRITER)


def main() -> int:
    """Run; the exit status is that of the model test, or 1 where something grew."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    examples = str(max(50, int(minutes * 15)))
    model = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--timeout=0", "tests/agent/test_model.py"],
        env={**os.environ, "TIDEMARK_MODEL_EXAMPLES": examples},
        check=False,
    )
    row = cycles(time.monotonic() + minutes * 30)
    print(
        json.dumps(
            {"machine": machine(), "model_examples": int(examples), "model_status": model.returncode, **row}, indent=2
        )
    )
    grew = (
        row["fds"][1] > row["fds"][0] + 4
        or row["loops"][1] > row["loops"][0]
        or row["rss_mib"][1] > row["rss_mib"][0] + 8
    )
    return model.returncode or int(grew)


def cycles(until: float) -> dict[str, object]:
    """Create, stage, publish, write, cut, restore, roll back, delete, again and again; what the agent holds before and after."""
    count = 0
    with agent("16Gi") as rig, Client(rig.endpoint) as client:
        staging, target = rig.root / "staging", rig.root / "target"
        staging.mkdir()
        _cycle(client, str(staging), str(target), 0)
        before = _held(rig.process.pid)
        while time.monotonic() < until:
            count += 1
            _cycle(client, str(staging), str(target), count)
        after = _held(rig.process.pid)
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


def _held(pid: int) -> dict[str, float]:
    return {
        "rss_mib": round(_rss(pid), 1),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        "loops": sum(1 for device in Path("/sys/block").glob("loop*/loop/backing_file") if device.exists()),
    }


if __name__ == "__main__":
    sys.exit(main())

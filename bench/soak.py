"""`make soak`: random examples of the model test, power cuts, kills, fuzzed calls, and whether anything grows.

    python -m bench.soak                    # all parts but those on LVM: 20 minutes, and what single runs take beyond that
    python -m bench.soak 60                 # for 60 minutes
    python -m bench.soak 1 model fuzz       # these parts; what is recorded of the others stays
    python -m bench.soak 1 lvm-kills        # lvm-... are on LVM, in a machine of their own (tests/lvm); `lvm`: all of these, in hours

A third of the minutes is for each of the parts that have no end of their own: model, power, cycles. The others run once.
The result is bench/soak.json, and docs/proof.md is made from it. Nothing else that attaches loop devices or copies the
mounts of this machine may run beside it: the tests would find its traces, and fail.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import yaml

from bench import soak_record
from bench.footprint import _rss
from bench.rig import AgentRig, agent, machine
from csi_driver.domain.model import AccessMode, Capability, SizeRange, Source
from csi_driver.rpc.clients.cli_client import Client

BLOCK = Capability("block", AccessMode.MULTI_WRITER)


API_AWAY_SECONDS = 600

MODEL_EXAMPLES = 12
"""Of each machine in one run of the model test: enough that all its steps are done."""

FUZZ_SEEDS = 10
"""Random ones; each is 15 requests for every call of the protocol."""

REPORTS = soak_record.TREE / "tests" / "reports.yaml"

LVM_SUITES = ("inside", "contract", "sanity", "model", "crash", "kills", "deaths", "database")

Part = dict[str, object]


def main(arguments: Sequence[str]) -> int:
    """Run, and write the record. The exit status is 1 if a test failed or something grew."""
    minutes = float(arguments[0]) if arguments else 20.0
    third = minutes * 20
    parts: dict[str, Callable[[], Part]] = {
        "model": lambda: again_and_again(
            ["tests/agent/test_model.py"], third, TIDEMARK_MODEL_EXAMPLES=str(MODEL_EXAMPLES)
        ),
        "power": lambda: again_and_again(["tests/power"], third, TIDEMARK_POWER_CUTS="5"),
        "crash": lambda: again_and_again(["tests/crash"]),
        "fuzz": lambda: again_and_again(["tests/agent/test_bad_input.py"], TIDEMARK_FUZZ_SEEDS=str(FUZZ_SEEDS)),
        "reports": reports,
        "database": lambda: again_and_again(["tests/agent/test_postgresql.py"], TIDEMARK_DATABASE_CUTS="10"),
        "api away": lambda: again_and_again(
            ["tests/cluster/test_schedule_clock.py::test_the_api_is_away"],
            TIDEMARK_API_AWAY_SECONDS=str(API_AWAY_SECONDS),
        ),
        "cycles": lambda: cycles(time.monotonic() + third),
        **{f"lvm-{suite}": partial(inside, suite) for suite in LVM_SUITES},
        "lvm-power": lambda: again_and_again(["tests/power"], TIDEMARK_POWER_CUTS="10", TIDEMARK_TEST_BACKEND="lvm"),
    }
    asked = arguments[1:] or [name for name in parts if not name.startswith("lvm-")]
    chosen = [
        name
        for word in asked
        for name in (parts if word == "lvm" else [word])
        if word != "lvm" or name.startswith("lvm-")
    ]
    if unknown := set(chosen) - parts.keys():
        sys.exit(f"soak: no part {', '.join(sorted(unknown))}: choose from {', '.join(parts)}")
    about = soak_record.provenance() | {"machine": machine(), "minutes": minutes}
    results = {name: about | run() for name, run in parts.items() if name in chosen}
    print(json.dumps(results, indent=2))
    soak_record.write(results, replace=set(chosen) == parts.keys())
    subprocess.run([sys.executable, "tests/tools/proof_page.py"], cwd=soak_record.TREE, check=True)
    return int(any(part["status"] for part in results.values()))


def again_and_again(tests: Sequence[str], seconds: float = 0, **environment: str) -> Part:
    """Run tests that differ each time, until the time is over or one fails; once if they have no time."""
    until = time.monotonic() + seconds
    runs = status = 0
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        while status == 0 and (runs == 0 or time.monotonic() < until):
            status = pytest(tests, report, **environment)
            found += soak_record.counts(report) if report.exists() else Counter()
            runs += 1
    return {"runs": runs, "status": status, "counts": dict(sorted(found.items()))}


def inside(suite: str) -> Part:
    """Run one of the suites of tests/lvm/suites.py in a machine of its own."""
    return again_and_again(["tests/lvm/test_inside.py"], TIDEMARK_LVM_SUITE=suite)


def reports() -> Part:
    """Run the tests that public bug reports led to."""
    entries = yaml.safe_load(REPORTS.read_text())
    tests = list(dict.fromkeys(test for entry in entries for test in entry["tests"]))
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        status = pytest(tests, report)
        passed = soak_record.passed(report) if report.exists() else {}
    held = [entry["report"] for entry in entries if all(passed.get(test) for test in entry["tests"])]
    return {"status": status, "reports": held}


def pytest(tests: Sequence[str], report: Path, **environment: str) -> int:
    """Run tests, and write their JUnit report. Returns pytest's exit status."""
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--timeout=0",
        "-p",
        "no:cacheprovider",
        "-s",
        "-o",
        "junit_family=xunit1",
        f"--junitxml={report}",
    ]
    return subprocess.run(
        [*argv, *tests], cwd=soak_record.TREE, env={**os.environ, **environment}, check=False
    ).returncode


def cycles(until: float) -> Part:
    """Create, stage, publish, write, take a snapshot, restore, roll back, delete, again and again; what the agent holds then."""
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
    grew = (
        after["fds"] > before["fds"] + 4 or after["loops"] > before["loops"] or after["rss_mib"] > before["rss_mib"] + 8
    )
    held = {key: (before[key], after[key]) for key in before}
    return {"status": int(grew), "counts": {"cycles": count}, "held": held}


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
    sys.exit(main(sys.argv[1:]))

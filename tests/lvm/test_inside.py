"""What needs LVM and the device mapper, in a machine of its own: each suite is one boot, and its results come out here.

TIDEMARK_LVM_SUITE names another than the short one; what the suites take from the environment may be set outside, too.

By hand, with arguments of pytest:   python tests/lvm/machine.py .venv/bin/python -m pytest tests/lvm/inside -k freeze -x
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import machine
import pytest
from suites import SUITES, Suite, chosen

ROOT = Path(__file__).parents[2]
DISKS = ("20G", "20G", "2G")
"""The first for the contract suite, which keeps it; the second for agents; the third is one that pools grow by."""
HANDED_IN = (
    "CI",
    "TIDEMARK_CRASH_POINTS",
    "TIDEMARK_DATABASE_CUTS",
    "TIDEMARK_LVM_DEATHS",
    "TIDEMARK_LVM_KILLS",
    "TIDEMARK_LVM_SEED",
)
HANDED_IN += ("TIDEMARK_MODEL_EXAMPLES", "TIDEMARK_MODEL_SEED")


@pytest.mark.slow(seconds=290)
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", chosen())
def test_inside_user_mode_linux(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    if reason := machine.why_not():
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    monkeypatch.chdir(ROOT)
    suite = SUITES[name]
    shared = tmp_path / "shared"
    shared.mkdir()
    with (tmp_path / "console").open("wb") as console:
        status = machine.run(
            command_of(suite), shared, suite.limit, memory="3G", disks=DISKS, stdout=console, stderr=console
        )
    said = (tmp_path / "console").read_text(errors="replace")
    print(said[-200_000:])
    assert status != machine.TIMED_OUT, f"the suite inside took longer than {suite.limit:g} s"
    assert (shared / "report.xml").exists(), f"the machine ended without a report, status {status}"
    failed = []
    cases = list(ET.parse(shared / "report.xml").iter("testcase"))
    for case in cases:
        outcome, message = outcome_of(case)
        title = f"{case.get('classname')}::{case.get('name')}"
        print(f"{outcome:8} {float(case.get('time', 0)):7.1f} s  {title}")
        # A test that is skipped in there would be skipped everywhere.
        if outcome != "passed":
            failed.append(f"{title}: {outcome}: {message}")
        for entry in case.iter("property"):
            record_property(entry.get("name", ""), entry.get("value", ""))
    record_property("tests inside", len(cases))
    assert not failed, "\n".join(failed)
    assert cases
    assert status == 0


def command_of(suite: Suite) -> list[str]:
    """What the machine is to run."""
    environment = dict(suite.environment) | {key: os.environ[key] for key in HANDED_IN if key in os.environ}
    environment |= {"TIDEMARK_TEST_BACKEND": "lvm", "CSI_SANITY": csi_sanity()}
    pytest_ = [sys.executable, "-m", "pytest", *suite.arguments, "-p", "no:cacheprovider", "-p", "no:xdist"]
    options = ["--basetemp=/run/pytest", "--junitxml=/run/host/report.xml", "-o", "junit_family=xunit1", "-v", "-s"]
    words = [f"{key}={value}" for key, value in environment.items()]
    return ["env", *words, *pytest_, *options, "--timeout=0", "--color=no", "--durations=15"]


def csi_sanity() -> str:
    """The conformance suite's program, built here where it is not there yet: the machine cannot."""
    if given := os.environ.get("CSI_SANITY"):
        return given
    builder = ROOT / "tests" / "tools" / "csi-sanity.sh"
    built = subprocess.run(
        ["sh", builder],
        env={**os.environ, "PYTHON": sys.executable},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        reason = f"csi-sanity could not be built, which is to run inside: {built.stderr.strip()[-500:]}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return built.stdout.strip()


def outcome_of(case: ET.Element) -> tuple[str, str]:
    """What became of a test inside, and why."""
    results: Iterator[ET.Element] = (result for result in case if result.tag in {"failure", "error", "skipped"})
    worst = next(results, None)
    return ("passed", "") if worst is None else (worst.tag, worst.get("message", ""))

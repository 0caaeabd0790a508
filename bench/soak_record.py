"""What a soak leaves behind: counts that the tests report, and which tree they are of. docs/proof.md is made from it."""

import datetime
import json
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
RECORD = TREE / "bench" / "soak.json"
"""The last soak; kept in the tree with the page that is made from it."""


def counts(report: Path) -> Counter[str]:
    """Sum the numbers that tests gave to `record_property`, and count the tests by outcome, in a JUnit report."""
    found: Counter[str] = Counter()
    for case in ET.parse(report).iter("testcase"):
        failed = any(case.find(kind) is not None for kind in ("failure", "error"))
        found["failed" if failed else "skipped" if case.find("skipped") is not None else "passed"] += 1
        for entry in case.iter("property"):
            value = entry.get("value", "")
            if value.isdecimal():
                found[entry.get("name", "")] += int(value)
    return found


def passed(report: Path) -> dict[str, bool]:
    """Return for each test function in a JUnit report, as FILE::NAME, whether all its cases ran and passed."""
    found: dict[str, bool] = {}
    for case in ET.parse(report).iter("testcase"):
        name = case.get("classname", "").replace(".", "/") + ".py::" + case.get("name", "").partition("[")[0]
        found[name] = found.get(name, True) and not any(
            case.find(kind) is not None for kind in ("failure", "error", "skipped")
        )
    return found


def provenance() -> dict[str, object]:
    """Return the date, the commit, and whether the tree differs from that commit."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=TREE, capture_output=True, text=True, check=False)
        return run.stdout.strip() if run.returncode == 0 else ""

    # What a soak itself writes does not count.
    changed = git("status", "--porcelain", "--", ".", ":!bench/soak.json", ":!docs/proof.md")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": git("rev-parse", "--short=7", "HEAD"),
        "changed": bool(changed),
    }


def write(parts: dict[str, dict[str, object]], replace: bool) -> None:
    """Record these parts of a soak. Those of earlier soaks stay, unless `replace`."""
    known = {} if replace or not RECORD.exists() else json.loads(RECORD.read_text())
    RECORD.write_text(json.dumps(known | parts, indent=2, sort_keys=True) + "\n")

"""The longest tests of a run, as a table for docs/testing.md.

    TIDEMARK_REPORTS=/tmp/reports make test        # or bash .ci/run
    python3 tests/tools/durations.py /tmp/reports [COUNT]

Seconds of a test are those of its fixtures and its call together, as JUnit's reports have them.
"""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def main() -> None:
    reports, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 50
    rows = []
    for report in sorted(reports.glob("*.xml")):
        for case in ElementTree.parse(report).iter("testcase"):
            module = case.get("classname", "").replace(".", "/").removeprefix("tests/")
            name = case.get("name", "").partition("@")[0]
            rows.append((float(case.get("time", 0)), f"{module}.py::{name}", report.stem))
    rows.sort(reverse=True)
    print("| seconds | test | stage |\n|---:|---|---|")
    for seconds, name, stage in rows[:count]:
        print(f"| {seconds:.1f} | `{name}` | {stage} |")
    print(f"\n{len(rows)} tests, {sum(row[0] for row in rows) / 60:.1f} minutes of tests in all.")


if __name__ == "__main__":
    main()

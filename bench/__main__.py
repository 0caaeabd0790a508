"""`make bench`: run the benchmarks named on the command line (all by default); figures as JSON and as a table."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.calls import many, rates, snapshots
from bench.clients import clients, quiet
from bench.footprint import footprint
from bench.io_ import io
from bench.retention import retention
from bench.rig import machine
from bench.route import route
from bench.schedules import schedules
from bench.stalls import stalls

BENCHMARKS: dict[str, Callable[[], list[dict[str, object]]]] = {
    "clients": clients,
    "quiet": quiet,
    "route": route,
    "snapshots": snapshots,
    "rates": rates,
    "many": many,
    "footprint": footprint,
    "stalls": stalls,
    "io": io,
    "retention": retention,
    "schedules": schedules,
}


def main() -> None:
    """Run, print, and write bench/last.json."""
    wanted = sys.argv[1:] or list(BENCHMARKS)
    result: dict[str, object] = {"machine": machine(), "at": time.strftime("%Y-%m-%d")}
    print(json.dumps(result))
    for name in wanted:
        rows = BENCHMARKS[name]()
        result[name] = rows
        for row in rows:
            print(name, json.dumps(row), flush=True)
    Path(__file__).with_name("last.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

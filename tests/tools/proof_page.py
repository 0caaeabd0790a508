"""Write docs/proof.md from the record of the last soak and the list of bug reports.

    python tests/tools/proof_page.py

Every number comes from bench/soak.json, which `make soak` writes, or from tests/reports.yaml. tests/unit checks that the page
is what this would write.
"""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml

TREE = Path(__file__).resolve().parent.parent.parent
RECORD = TREE / "bench" / "soak.json"
REPORTS = TREE / "tests" / "reports.yaml"
PAGE = TREE / "docs" / "proof.md"
NOT_RUN = "not run"

HEAD = """# Proof

A driver that keeps your data must be killed before you trust it. `make soak` does that for as long as you like, on your
machine too: with SIGKILL in the middle of calls, with the power cut off, with calls that no client should send. After
each of these, every byte that was acknowledged is compared with a model, and what was not acknowledged must be there
whole or not at all. This page is made by the last soak, and no number in it is typed.
"""

ROWS = (
    ("the agent killed by SIGKILL, in the middle of calls and between them", "model", "kills"),
    ("contents of volumes and snapshots compared with the model, byte by byte", "model", "contents compared"),
    ("killed at every single step of every change of a pool, and on the node", "crash", "points"),
    ("the pool's file system shut down without its log, at every step of a change", "crash", "power points"),
    ("power cuts of a whole machine, at work and while it recovers", "power", "power cuts"),
    ("calls that were answered before a power cut, and had to be there after it", "power", "calls answered"),
    ("fuzzed calls: random fields, broken bytes; the pool must stay as it was", "fuzz", "calls"),
    ("runs with a PostgreSQL under load: each snapshot is started, recovered and counted", "database", "passed"),
    ("schedules that went on after ten minutes without the Kubernetes API", "api away", "passed"),
    ("whole lives of a volume, with nothing growing in the agent", "cycles", "cycles"),
    ("on LVM: tests of the contract that every technology keeps", "lvm-contract", "tests inside"),
    ("on LVM: runs of csi-sanity, mounted and as block devices", "lvm-sanity", "tests inside"),
    ("on LVM: the agent killed in the model test", "lvm-model", "kills"),
    ("on LVM: contents compared with the model", "lvm-model", "contents compared"),
    ("on LVM: killed at every single step of every change", "lvm-crash", "points"),
    (
        "on LVM: the disk as it was at every step, without what the kernel still had to write",
        "lvm-crash",
        "power points",
    ),
    ("on LVM: lvm itself killed; no orphan, no pool that takes no changes", "lvm-kills", "lvm kills"),
    ("on LVM: power cuts, at work and while it recovers", "lvm-power", "power cuts"),
    ("on LVM: calls that were answered before a power cut", "lvm-power", "calls answered"),
    ("on LVM: tests with a PostgreSQL under load", "lvm-database", "tests inside"),
)
"""What, the part of the soak, and the count in it."""


def page(parts: dict[str, Any], reports: list[dict[str, Any]]) -> str:
    """Return the page. A part that no soak ran is said to be so, and one that failed."""
    table = "".join(f"| {what} | {number(parts, part, count)} | {when(parts, part)} |\n" for what, part, count in ROWS)
    held = set(parts.get("reports", {}).get("reports", []))
    ran = "reports" in parts
    total = f"{sum(entry['report'] in held for entry in reports)} of {len(reports)}" if ran else NOT_RUN
    return (
        f"{HEAD}\n{machines(parts)}| what | how many | when, at which commit |\n|---|---:|---|\n{table}"
        f"| public bug reports that became tests, and whose tests passed | {total} | {when(parts, 'reports')} |\n"
        "\n## Bug reports that became tests\n\n"
        + fill(
            "Other people's users have lost data, and wrote down how. Each of these reports is about another driver or "
            "file system, and has tests here that would fail if it happened to Tidemark."
        )
        + "\n\n| report | what happened there | last soak |\n|---|---|---|\n"
        + "".join(row(entry, outcome(entry, held, ran)) for entry in reports)
        + "\n## Run it yourself\n\n"
        "    make soak                        # about an hour, as root, alone on the machine\n"
        '    make soak ARGS="1 model fuzz"    # two of its parts, one minute for each third of it\n'
        '    make soak ARGS="1 lvm"           # the parts on LVM, in a machine of their own; hours\n\n'
        + fill(
            "The shorter forms of these tests run with every change ([testing](testing.md)). What a snapshot promises to "
            "a database is [explained here](explanation/consistency.md); how fast all of it is, in "
            "[benchmarks](benchmarks.md)."
        )
        + "\n"
    )


def recorded() -> dict[str, Any]:
    """Return the parts of the last soaks; none if there was no soak yet."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def machines(parts: dict[str, Any]) -> str:
    """Return the paragraph that says where the parts ran."""
    found = dict.fromkeys(
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']:g} GiB, Linux {machine['kernel']}"
        for machine in (part["machine"] for part in parts.values())
    )
    return fill("Measured on " + "; and on ".join(found) + ".") + "\n\n" if found else ""


def when(parts: dict[str, Any], part: str) -> str:
    """Return the date of a part's last run, and the commit."""
    found = parts.get(part)
    if found is None:
        return ""
    return f"{found['date']}, `{found['commit']}`" + (" with uncommitted changes" if found["changed"] else "")


def number(parts: dict[str, Any], part: str, count: str) -> str:
    """Return one count of the soak; whether its part failed, or was not run."""
    found = parts.get(part)
    if found is None or count not in found["counts"]:
        return NOT_RUN
    return f"{found['counts'][count]:,}" + (" (**failed**)" if found["status"] else "")


def outcome(entry: dict[str, Any], held: set[str], ran: bool) -> str:
    """Return what the soak found of one report."""
    if not ran:
        return NOT_RUN
    return "passed" if entry["report"] in held else "**failed, or could not run**"


def row(entry: dict[str, Any], found: str) -> str:
    """Return a report's row, with a link to it."""
    repository, _, issue = entry["report"].partition("#")
    return f"| [{entry['report']}](https://github.com/{repository}/issues/{issue}) | {entry['what']} | {found} |\n"


def fill(text: str) -> str:
    """Break a paragraph into lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Write the page of this tree."""
    PAGE.write_text(page(recorded(), yaml.safe_load(REPORTS.read_text())))
    sys.stdout.write(f"{PAGE.relative_to(TREE)}\n")


if __name__ == "__main__":
    main()

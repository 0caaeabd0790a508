"""The page of proof is made from the last soak, and says of what did not run that it did not."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools import proof_page

from bench import soak_record

TREE = Path(__file__).resolve().parent.parent.parent
REPORTS = yaml.safe_load(proof_page.REPORTS.read_text())
ABOUT = {
    "date": "2026-11-30",
    "commit": "abc1234",
    "changed": False,
    "machine": {"cpu": "A CPU", "cores": 2, "memory_gib": 23.5, "kernel": "6.18"},
    "minutes": 20.0,
}
PARTS: dict[str, Any] = {
    "model": ABOUT | {"status": 0, "counts": {"kills": 1234, "contents compared": 9, "passed": 2}},
    "power": ABOUT | {"status": 1, "counts": {"power cuts": 12}, "commit": "def5678", "changed": True},
    "reports": ABOUT | {"status": 1, "reports": ["a/b#1"]},
}
TWO = [{"report": "a/b#1", "what": "one", "tests": []}, {"report": "c/d#2", "what": "two", "tests": []}]


def row(page: str, words: str) -> str:
    (found,) = [line for line in page.splitlines() if words in line]
    return found


def test_the_page_is_that_of_the_last_soak() -> None:
    assert proof_page.PAGE.read_text() == proof_page.page(proof_page.recorded(), REPORTS), (
        "docs/proof.md is not what the last soak found: run python tests/tools/proof_page.py"
    )


def test_numbers_failures_and_what_was_not_run() -> None:
    page = proof_page.page(PARTS, TWO)
    assert row(page, "killed by SIGKILL").endswith("| 1,234 | 2026-11-30, `abc1234` |")
    assert row(page, "power cuts of a whole machine").endswith(
        "| 12 (**failed**) | 2026-11-30, `def5678` with uncommitted changes |"
    )
    assert row(page, "fuzzed calls").endswith("| not run |  |")
    assert row(page, "reports that became tests, and").endswith("| 1 of 2 | 2026-11-30, `abc1234` |")
    assert row(page, "a/b#1").endswith("| one | passed |")
    assert row(page, "c/d#2").endswith("| two | **failed, or could not run** |")
    assert page.count("Measured on 2 cores (A CPU), 23.5 GiB, Linux 6.18.") == 1


def test_without_the_reports_part_nothing_is_claimed_of_them() -> None:
    page = proof_page.page({name: part for name, part in PARTS.items() if name != "reports"}, TWO)
    assert row(page, "reports that became tests, and").endswith("| not run |  |")
    assert row(page, "a/b#1").endswith("| one | not run |")


def test_some_parts_of_a_soak_leave_the_others_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_record, "RECORD", tmp_path / "soak.json")
    soak_record.write({"model": {"status": 0}, "fuzz": {"status": 1}}, replace=True)
    soak_record.write({"fuzz": {"status": 0}}, replace=False)
    assert json.loads(soak_record.RECORD.read_text()) == {"model": {"status": 0}, "fuzz": {"status": 0}}
    soak_record.write({"fuzz": {"status": 0}}, replace=True)
    assert json.loads(soak_record.RECORD.read_text()) == {"fuzz": {"status": 0}}


def test_every_report_names_tests_that_exist() -> None:
    assert len({entry["report"] for entry in REPORTS}) == len(REPORTS)
    for entry in REPORTS:
        assert set(entry) == {"report", "what", "tests"}
        assert entry["tests"], entry
        for test in entry["tests"]:
            path, _, name = test.partition("::")
            functions = [
                node.name
                for node in ast.walk(ast.parse((TREE / path).read_text()))
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            ]
            assert name in functions, test


def test_counts_come_from_the_tests(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.a.test_b" name="test_c[1]"><properties>'
        '<property name="kills" value="3"/><property name="seed" value="x"/></properties></testcase>'
        '<testcase classname="tests.a.test_b" name="test_c[2]"><properties><property name="kills" value="4"/></properties>'
        '<failure message="m"/></testcase><testcase classname="tests.a.test_b" name="test_d"><skipped/></testcase>'
        '<testcase classname="tests.a.test_b" name="test_e"/></testsuite></testsuites>'
    )
    assert soak_record.counts(report) == {"kills": 7, "passed": 2, "failed": 1, "skipped": 1}
    assert soak_record.passed(report) == {
        "tests/a/test_b.py::test_c": False,
        "tests/a/test_b.py::test_d": False,
        "tests/a/test_b.py::test_e": True,
    }

"""`tidemark schedule` and `tidemark rollback list`, with a Kubernetes API."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from support.cli_schema import validate
from support.fake_api import FakeApi

from csi_driver.kube.resources import ROLLBACKS, SCHEDULES


async def tidemark(fake: FakeApi, directory: Path, *words: str) -> tuple[int, str, str]:
    config = fake.kubeconfig(directory / "kubeconfig")
    command = [sys.executable, "-m", "csi_driver.cli.main", *words, "--kubeconfig", config]
    pipe = asyncio.subprocess.PIPE
    running = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    out, err = await running.communicate()
    return running.returncode or 0, out.decode(), err.decode()


def _fill(fake: FakeApi) -> None:
    schedule = {
        "metadata": {"name": "nightly"},
        "spec": {"cron": "0 3 * * *", "selector": {}, "retention": {"keepLast": 3}},
        "status": {
            "times": "0 3 * * * (UTC)",
            "snapshots": 7,
            "nextScheduleTime": "2026-01-02T03:00:00Z",
            "claims": [{"name": "db"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "Scheduled", "message": "ok\x1b[31m"}],
        },
    }
    fake.put(SCHEDULES, schedule, "shop")
    fake.put(SCHEDULES, {"metadata": {"name": "new"}, "spec": {"every": "1h", "claimName": "db"}}, "other")
    rollback = {
        "metadata": {"name": "back"},
        "spec": {"claimName": "db", "snapshotName": "s1"},
        "status": {"phase": "Failed", "reason": "TimedOut", "message": "The volume was not changed"},
    }
    fake.put(ROLLBACKS, rollback, "shop")


async def test_schedules_are_listed_and_shown(fake: FakeApi, tmp_path: Path) -> None:
    _fill(fake)
    code, out, err = await tidemark(fake, tmp_path, "schedule", "list")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "other/new", "shop/nightly"]
    assert "Scheduled" in out
    _, out, _ = await tidemark(fake, tmp_path, "schedule", "list", "-n", "shop", "-o", "name")
    assert out == "shop/nightly\n"
    _, out, _ = await tidemark(fake, tmp_path, "schedule", "show", "shop/nightly")
    assert "keepLast 3" in out
    assert r"Scheduled: ok\x1b[31m" in out
    _, out, _ = await tidemark(fake, tmp_path, "schedule", "list", "-o", "json")
    validate(json.loads(out), "custom_resource", many=True)


async def test_rollbacks_are_listed_and_shown(fake: FakeApi, tmp_path: Path) -> None:
    _fill(fake)
    _, out, _ = await tidemark(fake, tmp_path, "rollback", "list")
    assert out.splitlines()[1].split()[:4] == ["shop/back", "db", "s1", "Failed"]
    _, out, _ = await tidemark(fake, tmp_path, "rollback", "show", "shop/back", "-o", "json")
    validate(json.loads(out), "custom_resource")
    code, _, err = await tidemark(fake, tmp_path, "rollback", "show", "shop/bak")
    assert code == 1
    assert (
        err
        == "tidemark: no rollback is called 'shop/bak' (did you mean shop/back?): `tidemark rollback list` lists them\n"
    )
    assert (await tidemark(fake, tmp_path, "rollback", "show", "back"))[0] == 2


async def test_without_the_chart_one_line_says_so(fake: FakeApi, tmp_path: Path) -> None:
    fake.unserved.add(SCHEDULES)
    code, _, err = await tidemark(fake, tmp_path, "schedule", "list")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "the driver's chart" in err

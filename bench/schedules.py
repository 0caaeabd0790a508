"""A controller with 1,000 claims, 5,000 snapshots and 200 schedules: what it weighs, and what a full resync costs it."""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from support.fake_api import FakeApi
from support.started import start_all

from csi_driver.domain.timestamps import format_timestamp
from csi_driver.kube.client import Api
from csi_driver.kube.events import Events
from csi_driver.kube.informer import Informer
from csi_driver.kube.resources import PVCS, PVS, SCHEDULES, SNAPSHOT_CONTENTS, SNAPSHOTS
from csi_driver.operator.schedule.cache import TRIMMERS
from csi_driver.operator.schedule.dependencies import ScheduleDependencies
from csi_driver.operator.schedule.naming import (
    CLAIM,
    SCHEDULE,
    SCHEDULED_FOR,
    VOLUME,
    digest,
    schedule_label,
    snapshot_name,
)
from csi_driver.operator.schedule.reconciler import ScheduleReconciler

DRIVER = "csi.tidemark.dev"
SCHEDULES_, CLAIMS_EACH, SNAPSHOTS_EACH = 200, 5, 5
MIB_LIMIT, SECONDS_LIMIT = 150, 5
MANAGED = {f"f:field-{n}": {} for n in range(30)}
"""Stands for the managed fields that a real API server sends along, and that nobody reads."""


def schedules() -> list[dict[str, object]]:
    """Resident MiB of `tidemark controller`, and CPU seconds of a full resync."""
    return asyncio.run(_schedules())


async def _schedules() -> list[dict[str, object]]:
    async with FakeApi() as fake:
        await asyncio.to_thread(_fill, fake)
        with tempfile.TemporaryDirectory() as where:
            config = fake.kubeconfig(Path(where) / "kubeconfig")
            reconciliations = await _child(sys.executable, "-m", "bench.schedules", config)
            rss = await _controller(fake, config, Path(where))
    rows: list[dict[str, object]] = [
        {"what": "resident memory of tidemark controller", "mib": round(rss, 1), "at_most": MIB_LIMIT},
        *json.loads(reconciliations),
    ]
    resync = sum(row["cpu_seconds"] for row in rows[1:] if row["what"] != "the first reconciliation of each schedule")  # type: ignore[misc]
    rows.append({"what": "a full resync", "cpu_seconds": round(resync, 2), "at_most": SECONDS_LIMIT})
    if rss > MIB_LIMIT or resync > SECONDS_LIMIT:
        raise SystemExit(f"too much: {rows}")
    return rows


def _fill(fake: FakeApi) -> None:
    now = int(time.time()) // 86400 * 86400
    for number in range(SCHEDULES_):
        namespace, name = f"team-{number % 20}", f"schedule-{number}"
        meta: dict[str, Any] = {
            "name": name,
            "namespace": namespace,
            "creationTimestamp": format_timestamp(now - 86400),
        }
        spec = {
            "cron": f"{number % 60} 3 * * *",
            "timeZone": "Europe/Berlin",
            "retention": {"keepLast": 5, "daily": 30},
        }
        fake.put(SCHEDULES, {"metadata": meta, "spec": spec | {"selector": {"matchLabels": {"app": name}}}})
        for index in range(CLAIMS_EACH):
            _fill_claim(fake, namespace, name, f"data-{name}-{index}", now)


def _fill_claim(fake: FakeApi, namespace: str, schedule: str, claim: str, now: int) -> None:
    disk, fields = f"pvc-{digest(namespace, claim)}", [{"manager": "m", "fieldsV1": MANAGED}]
    handle = f"node-{hash(claim) % 50}:default:{digest(disk)}"
    created = format_timestamp(now - 90000)
    meta = {"name": claim, "namespace": namespace, "uid": f"uid-{disk}", "creationTimestamp": created}
    body: dict[str, Any] = {"metadata": meta | {"labels": {"app": schedule}, "managedFields": fields}}
    fake.put(PVCS, body | {"spec": {"volumeName": disk}, "status": {"phase": "Bound"}})
    owner = {"namespace": namespace, "name": claim, "uid": f"uid-{disk}"}
    spec = {"csi": {"driver": DRIVER, "volumeHandle": handle}, "claimRef": owner}
    fake.put(PVS, {"metadata": {"name": disk, "managedFields": fields}, "spec": spec})
    for back in range(SNAPSHOTS_EACH):
        instant = now - back * 86400
        name, content = snapshot_name(schedule, claim, instant), f"snapcontent-{digest(claim, str(instant))}"
        labels = {SCHEDULE: schedule_label(namespace, schedule), VOLUME: digest(handle)}
        said = {SCHEDULE: schedule, SCHEDULED_FOR: format_timestamp(instant), CLAIM: claim, VOLUME: handle}
        meta = {"name": name, "namespace": namespace, "labels": labels, "annotations": said, "managedFields": fields}
        status = {"readyToUse": True, "boundVolumeSnapshotContentName": content, "restoreSize": "1Gi"}
        source = {"source": {"persistentVolumeClaimName": claim}, "volumeSnapshotClassName": "tidemark"}
        fake.put(SNAPSHOTS, {"metadata": meta, "spec": source, "status": status})
        spec = {"driver": DRIVER, "source": {"volumeHandle": handle}, "deletionPolicy": "Delete"}
        spec["volumeSnapshotRef"] = {"namespace": namespace, "name": name}
        status = {"snapshotHandle": f"{handle}-{back}", "readyToUse": True}
        fake.put(
            SNAPSHOT_CONTENTS, {"metadata": {"name": content, "managedFields": fields}, "spec": spec, "status": status}
        )


async def _child(*argv: str) -> str:
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(argv)} failed")
    return out.decode()


async def _controller(fake: FakeApi, config: str, where: Path) -> float:
    """Resident MiB of the whole program, once it has looked at every schedule."""
    argv = [
        sys.executable,
        "-c",
        "from csi_driver.cli.main import main; main()",
        "controller",
        f"--kubeconfig={config}",
        f"--endpoint=unix://{where}/csi.sock",
    ]
    for schedule in fake.all(SCHEDULES):
        fake.put(SCHEDULES, {**schedule, "status": {}})
    with (where / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *argv, f"--certificates={where}/tls", "--pod-name=bench", stdout=log, stderr=log, env=os.environ
        )
        try:
            async with asyncio.timeout(300):
                while not all((schedule.get("status") or {}).get("conditions") for schedule in fake.all(SCHEDULES)):
                    if process.returncode is not None:
                        raise SystemExit((where / "log").read_text()[-2000:])
                    await asyncio.sleep(0.5)
            await asyncio.sleep(3)
            status = Path(f"/proc/{process.pid}/status").read_text()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _key(schedule: dict[str, Any]) -> tuple[str, str]:
    return schedule["metadata"]["namespace"], schedule["metadata"]["name"]


class _Nobody:
    def snapshot_created(self, namespace: str, name: str) -> None: ...

    def snapshot_failed(self, namespace: str, name: str) -> None: ...

    def snapshot_deleted(self, namespace: str, name: str) -> None: ...

    def set_overdue(self, namespace: str, name: str, since: int | None) -> None: ...

    def remove(self, namespace: str, name: str) -> None: ...


async def _reconcile(config: str) -> list[dict[str, object]]:
    """CPU seconds of this process: to list everything, to reconcile each schedule first, and again."""
    api = await Api.connect(config)
    informers = {kind: Informer(api, kind, transform=keep) for kind, keep in TRIMMERS.items()}
    began = time.process_time()
    await start_all(informers.values())
    reconciler = ScheduleReconciler(ScheduleDependencies(api, informers, Events(api, "bench"), DRIVER, _Nobody()))
    rows: list[dict[str, object]] = [{"what": "all lists", "cpu_seconds": time.process_time() - began}]
    for what in ("the first reconciliation of each schedule", "another of each"):
        began = time.process_time()
        for key in [*map(_key, informers[SCHEDULES].all())]:
            await reconciler.plan_and_execute(key)
        rows.append({"what": what, "cpu_seconds": time.process_time() - began})
    for informer in informers.values():
        await informer.stop()
    await api.close()
    return [{**row, "cpu_seconds": round(row["cpu_seconds"], 2)} for row in rows]  # type: ignore[call-overload]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_reconcile(sys.argv[1]))))

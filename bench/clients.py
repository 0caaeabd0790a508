"""What the ways to talk to the Kubernetes API cost in memory, and whether each notices a watch that dies quietly."""

import asyncio
import json
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from support.fake_api import FakeApi

from csi_driver.kube.resources import PVCS, SNAPSHOTS

CLAIM_COUNT, SNAPSHOT_COUNT = 1_000, 5_000
LONGEST = 330.0
"""Seconds to wait for a client that notices nothing: above the asyncio client's own limit of five minutes."""


def clients() -> list[dict[str, object]]:
    """Resident MiB after import, with 1,000 claims and 5,000 snapshots listed, and with ten watches open."""
    return asyncio.run(_clients())


def quiet() -> list[dict[str, object]]:
    """Seconds until a watch is given up whose peer is silent and acknowledges what it is sent. Takes six minutes."""
    return asyncio.run(_quiet())


async def _clients() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    async with FakeApi() as fake:
        _fill(fake)
        for variant in ("sync", "aio", "json"):
            figures = await _child(variant, f"http://127.0.0.1:{fake.port}")
            rows.append({"client": variant, **(figures or {})})
    return rows


async def _quiet() -> list[dict[str, object]]:
    async with FakeApi() as fake, asyncio.TaskGroup() as group:
        fake.silent = True
        url = f"http://127.0.0.1:{fake.port}"
        runs = {v: group.create_task(_child(v, url, "quiet")) for v in ("sync", "aio", "json")}
        await asyncio.wait(runs.values())
        return [{"client": v, **(run.result() or {"ended_after_seconds": None})} for v, run in runs.items()]


async def _child(*arguments: str) -> dict[str, object] | None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.client_child", *arguments, stdout=asyncio.subprocess.PIPE
    )
    waiting: Coroutine[Any, Any, tuple[bytes, bytes]] = process.communicate()
    with suppress(TimeoutError):
        out, _ = await asyncio.wait_for(waiting, LONGEST)
        found: dict[str, object] = json.loads(out)
        return found
    process.kill()
    await process.wait()
    return None


def _fill(fake: FakeApi) -> None:
    """Objects as large as those of a cluster: two managers' fields, the annotations of a sidecar, conditions."""
    fields = {f"f:field-{number}": {".": {}, f"k:{{{number}}}": {}} for number in range(20)}
    managed = [{"manager": name, "operation": "Update", "fieldsV1": fields} for name in ("kubectl", "csi-provisioner")]
    for number in range(CLAIM_COUNT):
        notes = {f"volume.kubernetes.io/note-{key}": f"node-{number}" for key in range(6)}
        body = {
            "metadata": {"name": f"claim-{number}", "annotations": notes, "managedFields": managed},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}},
            "status": {"phase": "Bound", "capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteOnce"]},
        }
        fake.put(PVCS, body, f"ns-{number % 50}")
    for number in range(SNAPSHOT_COUNT):
        labels = {f"tidemark.dev/label-{key}": f"value-{number}" for key in range(4)}
        body = {
            "metadata": {"name": f"snapshot-{number}", "labels": labels, "managedFields": managed},
            "spec": {"source": {"persistentVolumeClaimName": f"claim-{number % CLAIM_COUNT}"}},
            "status": {"readyToUse": True, "creationTime": "2026-11-26T07:00:00Z", "restoreSize": "10Gi"},
        }
        fake.put(SNAPSHOTS, body, f"ns-{number % 50}")

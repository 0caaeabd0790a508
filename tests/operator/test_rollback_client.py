"""`tidemark rollback --claim`, as a person types it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest
from support.cli_schema import validate
from support.fake_api import Call, Fault
from support.rollback_rig import World, reconciling
from support.waiting import until

from csi_driver.kube.resources import ROLLBACKS


async def start(world: World, *argv: str) -> asyncio.subprocess.Process:
    kubeconfig = world.fake.kubeconfig(Path(world.directory) / "kubeconfig")
    command = [sys.executable, "-m", "csi_driver.cli.main", "rollback", *argv, "--kubeconfig", kubeconfig]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)


async def tidemark(world: World, *argv: str, code: int = 0) -> tuple[str, str]:
    process = await start(world, *argv)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == code, err.decode()
    return out.decode(), err.decode()


CLAIM = ("--claim", "shop/v1", "--snapshot", "s1")


async def test_it_applies_the_resource_and_shows_how_it_goes(world: World) -> None:
    await world.written_since_s1()
    world.run_pod()
    async with reconciling(world):
        process = await start(world, *CLAIM, "--timeout", "5m")
        assert process.stdout is not None
        await until(lambda: world.fake.all(ROLLBACKS))
        await until(lambda: (world.fake.all(ROLLBACKS)[0].get("status") or {}).get("reason") == "VolumeInUse")
        output = b""
        while b"WaitingForRelease" not in output:
            output += await process.stdout.readline()
        world.end_pod()
        out, err = await process.communicate()
    assert process.returncode == 0, err
    made = world.fake.all(ROLLBACKS)[0]
    assert made["metadata"]["name"].startswith("v1-")
    assert made["spec"] == {"claimName": "v1", "snapshotName": "s1", "timeout": "5m"}
    lines = (output + out).decode().splitlines()
    assert lines[0] == f"VolumeRollback shop/{made['metadata']['name']} is applied"
    assert "pod web-1" in lines[1]
    safety = made["status"]["safetySnapshotName"]
    assert lines[-2].startswith("Completed: the volume has the content of VolumeSnapshot s1")
    assert lines[-1] == f"`tidemark rollback --claim shop/v1 --snapshot {safety}` undoes the rollback"
    assert world.bytes_of(world.disk_now) == b"1"


async def test_with_a_name_it_may_be_repeated(world: World) -> None:
    await world.disk()
    await world.cut("s1")
    async with reconciling(world):
        for _ in range(2):
            out, err = await tidemark(world, *CLAIM, "--name", "back", "--no-safety-snapshot", "--json")
            shown = json.loads(out)
            validate(shown, "volume_rollback")
            assert (shown["name"], shown["phase"]) == ("back", "Completed")
            assert "Completed" in err
        _, err = await tidemark(world, *CLAIM, "--name", "back", "--class", "gold", code=1)
    assert "tidemark: VolumeRollback shop/back exists with another spec (volumeSnapshotClassName)" in err
    assert len(world.disk_now.rollbacks) == 1


async def test_a_failure_is_the_commands_failure(world: World) -> None:
    await world.disk()
    async with reconciling(world):
        _, err = await tidemark(world, "--claim", "shop/v1", "--snapshot", "no", "--timeout", "1s", code=1)
    assert "waiting for VolumeSnapshot shop/no" in err
    assert "The volume was not changed" in err


async def test_interrupted_it_says_that_the_rollback_goes_on(world: World) -> None:
    await world.disk()
    await world.cut("s1")
    process = await start(world, *CLAIM, "--name", "back")
    assert process.stdout is not None
    assert b"is applied" in await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 1
    assert b"the rollback continues: `kubectl -n shop get volumerollback back` shows it" in err


async def test_what_the_api_refuses_is_told_in_its_words(world: World) -> None:
    def forbid(call: Call) -> None:
        raise Fault(403, "Forbidden", "volumerollbacks.tidemark.dev is forbidden: User jo cannot create it")

    world.fake.hooks.append(forbid)
    _, err = await tidemark(world, *CLAIM, code=1)
    assert err.startswith("tidemark: volumerollbacks.tidemark.dev is forbidden: User jo cannot create it")
    world.fake.hooks.clear()
    world.fake.unserved.add(ROLLBACKS)
    _, err = await tidemark(world, *CLAIM, code=1)
    assert "the driver's chart is installed" in err


@pytest.mark.parametrize(
    "argv",
    [["--claim", "v1", "--snapshot", "s1"], ["--claim", "shop/v1"], ["--snapshot", "s1"], ["db", *CLAIM], ["db"]],
)
async def test_wrong_usage(world: World, argv: list[str]) -> None:
    await tidemark(world, *argv, code=2)
    assert world.fake.calls == []


async def test_applied_only(world: World) -> None:
    out, _ = await tidemark(world, *CLAIM, "--name", "back", "--no-wait")
    assert out == "VolumeRollback shop/back is applied\n"

"""`tidemark node`, as typed."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from controller_rig import NAMESPACE, agent_pod, node, volume
from support.cli_schema import validate
from support.fake_api import FakeApi
from typer.testing import CliRunner

from csi_driver.cli.main import app
from csi_driver.kube.resources import NODES, PODS, PVS


async def tidemark(fake: FakeApi, directory: Path, *words: str) -> tuple[int, str, str]:
    config = fake.kubeconfig(directory / "kubeconfig")
    command = [sys.executable, "-m", "csi_driver.cli.main", "node", *words, "--kubeconfig", config]
    running = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await running.communicate()
    return running.returncode or 0, out.decode(), err.decode()


async def test_a_dead_node_from_the_list_to_its_return(fake: FakeApi, tmp_path: Path) -> None:
    fake.put(NODES, node("worker-1"))
    fake.put(PODS, agent_pod("a", "worker-1", 9807), NAMESPACE)
    for number in range(3):
        fake.put(PVS, volume(f"p{number}", f"worker-7:default:{number:032}"))
    code, out, _ = await tidemark(fake, tmp_path, "list")
    assert (code, [line.split() for line in out.splitlines()]) == (
        0,
        [
            ["NODE", "STATE", "AGENT", "VOLUMES", "DECOMMISSIONED"],
            ["worker-1", "ready", "ready", "0"],
            ["worker-7", "gone", "none", "3"],
        ],
    )
    assert (await tidemark(fake, tmp_path, "decommission", "worker-7"))[0] == 0
    code, out, _ = await tidemark(fake, tmp_path, "list", "--json")
    validate(json.loads(out), "node", many=True)
    row = json.loads(out)[1]
    assert (row["node"], row["volumes"], bool(row["decommissioned"])) == ("worker-7", 3, True)
    assert row["forgotten"] == row["decommissioned"], "programs may read the old key"
    assert (await tidemark(fake, tmp_path, "recommission", "worker-7"))[0] == 0
    code, _, err = await tidemark(fake, tmp_path, "recommission", "worker-7")
    assert (code, "not decommissioned" in err) == (1, True)


async def test_the_names_before_are_hidden_aliases(fake: FakeApi, tmp_path: Path) -> None:
    fake.put(PVS, volume("p", f"worker-7:default:{0:032}"))
    code, out, _ = await tidemark(fake, tmp_path, "forget", "worker-7")
    assert (code, "worker-7 is decommissioned" in out) == (0, True)
    assert (await tidemark(fake, tmp_path, "unforget", "worker-7"))[0] == 0
    done = CliRunner().invoke(app, ["node", "--help"])
    assert "decommission" in done.output
    assert "forget" not in done.output


async def test_refusals_are_one_sentence(fake: FakeApi, tmp_path: Path) -> None:
    fake.put(NODES, node("worker-1"))
    code, out, err = await tidemark(fake, tmp_path, "decommission", "worker-1")
    assert (code, out) == (1, "")
    assert "worker-1 is Ready" in err
    await fake.deaf()
    code, _, err = await tidemark(fake, tmp_path, "list")
    assert code == 1
    assert "cannot reach" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [["decommission"], ["decommission", "n", "--frce"]])
async def test_wrong_usage(fake: FakeApi, tmp_path: Path, words: list[str]) -> None:
    assert (await tidemark(fake, tmp_path, *words))[0] == 2

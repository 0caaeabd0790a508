"""The command line on a real pool, as typed: a snapshot that is mounted, what a crash leaves, names, a terminal."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.agent_process import AgentRig

from csi_driver.cli.snapshot_mounts import PREFIX
from csi_driver.domain.model import AccessMode, Capability, SizeRange, Source
from csi_driver.rpc.clients.cli_client import Client

Run = Callable[..., str]
TIDEMARK = [sys.executable, "-m", "csi_driver.cli.main"]


@pytest.fixture
def environment(rig: AgentRig) -> dict[str, str]:
    return {**os.environ, "CSI_ENDPOINT": rig.endpoint, "TIDEMARK_STAGING": f"{rig.root}/staging", "TZ": "UTC"}


@pytest.fixture
def tidemark(client: Client, environment: dict[str, str]) -> Run:
    def run(*words: str, code: int = 0, **variables: str) -> str:
        done = subprocess.run(
            [*TIDEMARK, *words], capture_output=True, text=True, timeout=60, env=environment | variables, check=False
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout if code == 0 else " ".join(done.stderr.replace("│", " ").split())

    return run


def _with_a_snapshot(tidemark: Run, mount_point: Path, fs_type: str = "ext4") -> None:
    tidemark("volume", "create", "db", "400Mi", "--fs", fs_type)
    tidemark("mount", "db", str(mount_point))
    (mount_point / "file").write_text("old")
    tidemark("snapshot", "create", "db", "s1")
    (mount_point / "file").write_text("new")


@pytest.mark.root
@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_a_snapshot_is_mounted_read_only_beside_its_volume(tidemark: Run, tmp_path: Path, fs_type: str) -> None:
    mount_point, old = tmp_path / "db", tmp_path / "old"
    _with_a_snapshot(tidemark, mount_point, fs_type)
    tidemark("mount", "s1", str(old))
    assert (old / "file").read_text() == "old"
    assert (mount_point / "file").read_text() == "new"
    with pytest.raises(OSError, match="Read-only"):
        (old / "file").write_text("changed")
    assert json.loads(tidemark("volume", "list", "-o", "json"))[0]["name"] == "db"
    assert len(json.loads(tidemark("volume", "list", "-o", "json"))) == 1
    assert "mount of s1" in tidemark("volume", "list", "-o", "wide")
    tidemark("umount", "s1")
    assert not old.exists()
    assert "mount of" not in tidemark("volume", "list", "-o", "wide")
    # The snapshot is what it was, for a rollback.
    assert "db is mounted at" in tidemark("rollback", "db", "s1", code=1)
    tidemark("umount", "db")
    tidemark("rollback", "db", "s1")
    tidemark("mount", "db", str(mount_point))
    assert (mount_point / "file").read_text() == "old"
    tidemark("umount", "db")


@pytest.mark.root
def test_what_a_killed_mount_leaves_is_found_and_deleted(
    tidemark: Run, rig: AgentRig, client: Client, tmp_path: Path
) -> None:
    mount_point, old = tmp_path / "db", tmp_path / "old"
    _with_a_snapshot(tidemark, mount_point)
    # The command ended after its clone: a clone, and nothing that uses it.
    s1 = next(node for node in client.tree() if node.name == "s1")
    client.create_volume(
        f"{PREFIX}{s1.uid}", SizeRange(), [Capability("mount", AccessMode.WRITER)], None, Source("snapshot", s1.id)
    )
    assert "mount of s1" in tidemark("volume", "list", "-o", "wide")
    tidemark("umount", "db")
    assert [node.name for node in client.tree() if node.kind == "volume"] == ["db"]
    # The agent is killed under a mounted snapshot: the mount goes on, and umount still ends it.
    tidemark("mount", "s1", str(old))
    rig.kill()
    with rig.start() as again:
        assert (old / "file").read_text() == "old"
        tidemark("umount", str(old))
        assert [node.name for node in again.tree() if node.kind == "volume"] == ["db"]
        # Unmounted by hand, it is staged still; its name ends that.
        tidemark("mount", "s1", str(old))
        subprocess.run(["umount", str(old)], check=True)
        tidemark("umount", "s1")
        assert [node.name for node in again.tree() if node.kind == "volume"] == ["db"]


@pytest.mark.root
def test_odd_names_are_escaped_and_reached(tidemark: Run, client: Client) -> None:
    odd = "-x\x1b[31m\n\u202e"
    client.create_volume(odd, SizeRange(64 << 20), [Capability("mount", AccessMode.WRITER)])
    out = tidemark("volume", "list")
    assert len(out.splitlines()) == 2
    assert r"-x\x1b[31m\n\u202e" in out
    assert "use lower-case letters" in tidemark("volume", "create", "../x", "64Mi", code=2)
    assert r"-x\x1b[31m" in tidemark("volume", "show", "--", odd)
    tidemark("volume", "delete", "--", odd)
    assert client.tree() == []


@pytest.mark.root
def test_sizes_and_space_are_said_as_they_are(tidemark: Run) -> None:
    assert "953.7 MiB (1000M rounded up to a multiple of 4 KiB)" in tidemark("volume", "create", "a", "1000M")
    assert "16 MiB (1Mi raised to the minimum for this volume)" in tidemark("volume", "create", "b", "--size", "1Mi")
    assert "unchanged" in tidemark("volume", "create", "a", "1000M")
    assert "`tidemark volume expand a 2Gi`" in tidemark("volume", "create", "a", "2Gi", code=1)
    assert "a has 2 GiB, before 953.7 MiB" in tidemark("volume", "expand", "a", "2Gi")
    message = tidemark("volume", "create", "c", "100Ti", code=1)
    assert "are reserved for 2 volumes" in message
    assert "--overcommit" in message
    assert not re.search(r"\d{7}", message)


@pytest.mark.root
def test_a_terminal_of_80_columns(tidemark: Run, environment: dict[str, str]) -> None:
    long = "pvc-8e5e6b6a-4a35-4d0c-9d6a-1f0d6f1c2b3a.of-a-team-with-a-very-long-name"
    for name in ("a", "b"):
        tidemark("volume", "create", f"{name}.{long}", "64Mi")
        tidemark("snapshot", "create", f"{name}.{long}", f"s{name}.{long}")
    for words in (["volume", "list"], ["snapshot", "list"], ["pool", "list"], ["tree"]):
        parent, child = pty.openpty()
        done = subprocess.run([*TIDEMARK, *words], stdout=child, env=environment | {"COLUMNS": "80"}, check=True)
        os.close(child)
        assert done.returncode == 0
        text = ""
        while True:
            try:
                part = os.read(parent, 65536).decode()
            except OSError:
                break
            text += part
        os.close(parent)
        lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
        assert 2 <= len(lines) <= 12
        assert max(map(len, lines)) <= 80, words


@pytest.mark.root
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_asks_the_agent_for_names(tidemark: Run, environment: dict[str, str], shell: str) -> None:
    tidemark("volume", "create", "orders", "64Mi")
    tidemark("snapshot", "create", "orders", "before-upgrade")

    def complete(line: str) -> list[str]:
        words = line.split(" ")
        variables = {
            "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
            "zsh": {"_TYPER_COMPLETE_ARGS": line},
            "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
        }[shell]
        out = tidemark(_TIDEMARK_COMPLETE=f"complete_{shell}", **variables)
        if shell == "zsh":
            return re.findall(r'^(?:_arguments .*\(\()?"([^"]*)"', out, re.MULTILINE)
        return [each.split("\t")[0] for each in out.splitlines() if each]

    assert complete("tidemark volume show or") == ["orders"]
    assert complete("tidemark mount b") == ["before-upgrade"]
    assert "snapshot" in complete("tidemark sna")
    assert "pools" not in complete("tidemark poo"), "the old name is hidden"
    # Without an agent there are no names, and no wait.
    environment["CSI_ENDPOINT"] = "unix:///nowhere/csi.sock"
    assert complete("tidemark volume show or") == []

"""`mount` and `umount` with an agent that is not there: which calls are made, and what is left after an error."""

import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_agent import CommandLine, FakeAgent, node, snapshot

from csi_driver.cli import snapshot_mounts
from csi_driver.cli.snapshot_mounts import mount_name
from csi_driver.rpc.clients.cli_channel import CallRefused


@pytest.fixture
def s1(agent: FakeAgent) -> str:
    """A volume `db` with the snapshot `s1`; returns the name of the clone that shows it."""
    db = node("db")
    agent.nodes = [db, snapshot("s1", db)]
    return mount_name(agent.nodes[1])


def names(agent: FakeAgent) -> list[str]:
    return [item.name for item in agent.nodes]


@pytest.mark.parametrize("by", ["name", "directory"])
def test_a_snapshot_is_mounted_read_only_and_leaves_nothing(
    tidemark: CommandLine, agent: FakeAgent, s1: str, tmp_path: Path, by: str
) -> None:
    target = str(tmp_path / "old")
    assert f"s1 is mounted at {target}, read-only:" in tidemark("mount", "s1", target)
    assert s1 in names(agent)
    assert [call[1:] for call in agent.called("publish")] == [(target, True)]
    assert "unchanged" in tidemark("mount", "s1", target)
    out = tidemark("umount", "s1" if by == "name" else target)
    assert out == f"s1 is unmounted from {target}, and no longer in use\n"
    assert names(agent) == ["db", "s1"]


def test_the_clone_is_not_shown_as_a_volume_but_in_wide(
    tidemark: CommandLine, agent: FakeAgent, s1: str, tmp_path: Path
) -> None:
    tidemark("mount", "s1", str(tmp_path / "old"))
    for words in (["volume", "list"], ["volume", "list", "-o", "json"], ["tree"], ["volume", "list", "-o", "name"]):
        out = tidemark(*words)
        assert "mount of" not in out
        assert s1 not in out
    assert "mount of s1" in tidemark("volume", "list", "-o", "wide")
    assert "mount of s1" in tidemark("tree", "-o", "wide")
    assert str(tmp_path / "old") in tidemark("snapshot", "show", "s1")
    assert "no volume is called" in tidemark("volume", "delete", s1, code=1)


def test_a_file_is_no_mount_point_and_is_not_to_be_removed(
    tidemark: CommandLine, agent: FakeAgent, tmp_path: Path
) -> None:
    agent.nodes = [node("db")]
    (tmp_path / "notes").write_text("precious")
    message = tidemark("mount", "db", str(tmp_path / "notes"), code=1)
    assert message == (
        f"tidemark: {tmp_path / 'notes'} is not a directory: mount db at a directory that is empty or new"
    )
    assert not agent.called("stage")


def test_a_clone_that_a_crash_left_is_deleted_by_the_next_command(
    tidemark: CommandLine, agent: FakeAgent, s1: str, tmp_path: Path
) -> None:
    agent.nodes.append(node(s1))
    tidemark("mount", "db", str(tmp_path / "db"))
    assert s1 not in names(agent)
    agent.nodes.append(node(s1))
    tidemark("umount", "db")
    assert s1 not in names(agent)


def test_a_clone_that_is_in_use_or_just_being_mounted_stays(
    tidemark: CommandLine, agent: FakeAgent, s1: str, tmp_path: Path
) -> None:
    used = replace(node(f"{snapshot_mounts.PREFIX}other"), used_by=("/mnt/other",))
    agent.nodes += [used, node(s1)]
    lock = os.open(snapshot_mounts.STAGING / "snapshot-mounts.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_SH)
    tidemark("mount", "db", str(tmp_path / "db"))
    assert {s1, used.name} <= set(names(agent)), "another command has cloned, and stages now"
    os.close(lock)
    tidemark("umount", "db")
    assert s1 not in names(agent)
    assert used.name in names(agent)


def test_an_error_leaves_no_clone(tidemark: CommandLine, agent: FakeAgent, s1: str, tmp_path: Path) -> None:
    agent.refusals["publish"] = CallRefused("FAILED_PRECONDITION", "it cannot be mounted: retry")
    assert "it cannot be mounted" in tidemark("mount", "s1", str(tmp_path / "old"), code=1)
    assert names(agent) == ["db", "s1"]


def test_a_deleted_snapshot_that_is_still_mounted_can_be_unmounted(
    tidemark: CommandLine, agent: FakeAgent, s1: str, tmp_path: Path
) -> None:
    target = str(tmp_path / "old")
    tidemark("mount", "s1", target)
    agent.nodes = [item for item in agent.nodes if item.name != "s1"]
    assert "mount of a deleted snapshot" in tidemark("volume", "list", "-o", "wide")
    assert "mount of a deleted snapshot is unmounted" in tidemark("umount", target)
    assert names(agent) == ["db"]


def test_a_volume_comes_before_a_snapshot_of_its_name(tidemark: CommandLine, agent: FakeAgent, tmp_path: Path) -> None:
    db = node("db")
    agent.nodes = [db, snapshot("db", db)]
    assert "read-only" not in tidemark("mount", "db", str(tmp_path / "x"))
    assert agent.called("publish")[0][0] == db.id


def test_a_name_that_is_mounted_twice_needs_a_directory(
    tidemark: CommandLine, agent: FakeAgent, tmp_path: Path
) -> None:
    agent.nodes = [node("db")]
    tidemark("mount", "db", str(tmp_path / "a"))
    staging, target = agent.nodes[0].used_by
    agent.nodes = [replace(agent.nodes[0], used_by=(staging, target, f"{tmp_path}/b"))]
    assert f"`tidemark umount {tmp_path}/b` first" in tidemark("umount", "db", code=1)
    assert f"it is still mounted at {tmp_path}/b" in tidemark("umount", target)


def test_a_pods_mount_is_left_alone(tidemark: CommandLine, agent: FakeAgent) -> None:
    pod = "/var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/pv/mount"
    agent.nodes = [node("db", used_by=("/var/lib/kubelet/plugins/x/globalmount", pod))]
    assert "by a pod" in tidemark("umount", "db", code=1)
    assert not agent.called("unpublish")


def test_a_directory_with_content_is_not_hidden(tidemark: CommandLine, agent: FakeAgent, tmp_path: Path) -> None:
    agent.nodes = [node("db")]
    (tmp_path / "file").touch()
    assert "is not empty" in tidemark("mount", "db", str(tmp_path), code=1)
    assert not agent.called("stage")

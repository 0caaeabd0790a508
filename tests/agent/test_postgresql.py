"""A real database under load is snapshotted, restored, rolled back: it starts, is whole, and has all that it ever promised.

What a snapshot must hold is told by two times around the call: each transaction acknowledged before it, none begun after.

TIDEMARK_DATABASE_CUTS=N takes N snapshots of each database, 3 at least.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from postgres_rig import Acks, Checkpoints, Postgres, assert_sums_agree, kept, open_directory, quit_group
from postgres_rig import why_not as why_no_database
from support.agent_process import AgentRig
from support.agent_rigs import agent_rig
from support.machine import KIND, why_no_pool

from csi_driver.domain.model import AccessMode, Capability, SizeRange, Source
from csi_driver.rpc.clients.cli_client import Client

pytestmark = [pytest.mark.root, pytest.mark.slow(seconds=25), pytest.mark.timeout(400 if KIND == "reflink" else 0)]

CUTS = int(os.environ.get("TIDEMARK_DATABASE_CUTS", "4"))
SCALE = 3
DISK = SizeRange(1 << 30)


@dataclass(frozen=True)
class Taken:
    """A snapshot under load: the ids of what it made, and the last acknowledgement that it must and that it may hold."""

    ids: tuple[str, ...]
    must: int
    may: int


class Node:
    """What a kubelet would do for a pod, for one agent."""

    def __init__(self, rig: AgentRig, client: Client) -> None:
        self.rig, self.client = rig, client
        self._servers: list[Postgres] = []

    def use(self, volume: str, name: str, fs_type: str) -> Path:
        """Stage and publish, read-write; returns where."""
        how = Capability("mount", AccessMode.WRITER, fs_type)
        staging, target = self.rig.root / f"{name}.staging", self.rig.root / name
        staging.mkdir()
        self.client.stage(volume, str(staging), how)
        self.client.publish(volume, str(staging), str(target), how)
        return target

    def free(self, volume: str, name: str) -> None:
        self.client.unpublish(volume, str(self.rig.root / name))
        self.client.unstage(volume, str(self.rig.root / f"{name}.staging"))
        (self.rig.root / f"{name}.staging").rmdir()

    def server(self, place: Path, name: str) -> Postgres:
        made = Postgres(place / "data", self.rig.root / f"{name}.run")
        self._servers.append(made)
        return made

    def end(self) -> None:
        for server in self._servers:
            server.end()


@pytest.fixture
def node() -> Iterator[Node]:
    """An agent in a directory that PostgreSQL's user may enter."""
    if reason := why_no_pool() or why_no_database():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    root = open_directory(tempfile.gettempdir())
    rig = agent_rig(root)
    try:
        with rig.start() as client:
            made = Node(rig, client)
            try:
                yield made
            finally:
                made.end()
    finally:
        rig.clean()
    shutil.rmtree(root)


@contextmanager
def load(server: Postgres, checkpoints: bool = False) -> Iterator[Acks]:
    """pgbench and the one who counts, until the block ends; both must live until then.

    `checkpoints`: one after another, so that data which is older or newer than its log cannot go unnoticed.
    """
    bench = server.load()
    acks = Acks(server)
    with ExitStack() as others:
        others.callback(quit_group, bench)
        if checkpoints:
            others.callback(Checkpoints(server).end)
        acks.wait_for(50)
        yield acks
        assert bench.poll() is None, (server.scratch / "pgbench.log").read_text()[-2000:]
        acks.end()


def looked_through(server: Postgres, taken: Taken) -> int:
    """Start from a snapshot, and check whether it is whole and has what it must; returns the last acknowledgement in it."""
    server.start()
    assert server.recovered()
    connection = server.connect()
    try:
        assert assert_sums_agree(connection) > 0
        last = kept(connection)
    finally:
        connection.close()
    assert taken.must <= last <= taken.may
    server.check()
    server.stop()
    server.check_pages()
    return last


def restored(node: Node, snapshot: str, name: str, fs_type: str) -> tuple[str, Path]:
    """A new disk from a snapshot, in use."""
    how = Capability("mount", AccessMode.WRITER, fs_type)
    volume = node.client.create_volume(name, SizeRange(), [how], source=Source("snapshot", snapshot)).id
    return volume, node.use(volume, name, fs_type)


def verified(node: Node, taken: Taken, name: str, fs_type: str) -> int:
    """A new disk from a snapshot, the database on it looked through, and the disk away again."""
    volume, place = restored(node, taken.ids[0], name, fs_type)
    last = looked_through(node.server(place, name), taken)
    node.free(volume, name)
    node.client.delete_volume(volume)
    return last


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_snapshots_of_a_busy_database_and_the_rollback(
    node: Node, fs_type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = node.client
    began = time.monotonic()
    disk = client.create_volume("db", DISK, [Capability("mount", AccessMode.WRITER, fs_type)]).id
    server = node.server(node.use(disk, "db", fs_type), "db")
    server.create()
    server.start()
    server.fill(SCALE)
    asked = server.connect()
    assert [asked.query(f"SHOW {name}")[0][0] for name in ("fsync", "synchronous_commit", "data_checksums")] == [
        "on"
    ] * 3
    asked.close()

    cuts: list[tuple[str, float, float]] = []
    with load(server) as acks:
        for number in range(CUTS):
            called = time.monotonic()
            snapshot = client.create_snapshot(disk, f"cut-{number}")
            cuts.append((snapshot.id, called, time.monotonic()))
            assert snapshot.ready
            acks.wait_for(25)
            time.sleep(0.3)
    taken = [Taken((snapshot,), *acks.bounds(called, returned)) for snapshot, called, returned in cuts]
    musts = [one.must for one in taken]
    assert musts == sorted(set(musts)), "each snapshot must have something new to hold"
    total = acks.answered[-1].number
    assert taken[-1].may < total, "something must have been acknowledged after the last cut"
    under_load = time.monotonic() - began

    server.stop()
    last = [verified(node, one, f"copy-{number}", fs_type) for number, one in enumerate(taken[:-1])]
    assert last == sorted(set(last))

    # Back to the second, in place.
    node.free(disk, "db")
    back = client.roll_back(disk, taken[1].ids[0], "back to the second")
    server = node.server(node.use(disk, "db", fs_type), "db")
    server.log.unlink()
    server.start()
    assert server.recovered()
    connection = server.connect()
    assert_sums_agree(connection)
    assert kept(connection) == last[1], "the disk rolled back and the disk restored hold the same"
    connection.close()
    server.check()
    server.pgbench("-n", "-c", "2", "-t", "50")
    server.stop()
    server.check_pages()

    # What was there before the rollback was shut down in order, and is all in the safety snapshot.
    volume, place = restored(node, back.safety_id, "safety", fs_type)
    safety = node.server(place, "safety")
    safety.start()
    assert not safety.recovered()
    connection = safety.connect()
    assert kept(connection) == total
    assert_sums_agree(connection)
    connection.close()
    safety.check()
    safety.stop()
    node.free(volume, "safety")

    # And the one after it is as it was.
    verified(node, taken[-1], "copy-last", fs_type)
    with capsys.disabled():
        took = ", ".join(f"{(returned - called) * 1000:.0f}" for _, called, returned in cuts)
        print(
            f"\n{fs_type}: CreateSnapshot under pgbench took {took} ms; {total} acknowledged; slowest commit "
            f"{max(ack.acknowledged - ack.sent for ack in acks.answered) * 1000:.0f} ms; {under_load:.0f} s until the last "
            f"cut, {time.monotonic() - began:.0f} s in all"
        )


def test_data_and_log_on_two_volumes_are_cut_as_one(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    client = node.client
    kinds = {"data": "ext4", "wal": "xfs"}
    disks = {
        name: client.create_volume(name, DISK, [Capability("mount", AccessMode.WRITER, fs_type)]).id
        for name, fs_type in kinds.items()
    }
    places = {name: node.use(disks[name], name, fs_type) for name, fs_type in kinds.items()}
    server = node.server(places["data"], "pair")
    server.create(wal=places["wal"] / "pg_wal")
    assert os.readlink(server.data / "pg_wal") == str(places["wal"] / "pg_wal")
    server.start()
    server.fill(SCALE)

    cuts: list[tuple[tuple[str, ...], float, float]] = []
    with load(server, checkpoints=True) as acks:
        for number in range(4):
            called = time.monotonic()
            # In either order: a log that is older than its data is what no recovery can mend.
            order = list(disks.values())[:: -1 if number % 2 else 1]
            group = client.create_group(f"pair-{number}", order)
            returned = time.monotonic()
            members = {member.source_id: member.id for member in group.members}
            cuts.append((tuple(members[disks[name]] for name in kinds), called, returned))
            acks.wait_for(25)
            time.sleep(0.5)
    taken = [Taken(ids, *acks.bounds(called, returned)) for ids, called, returned in cuts]
    server.stop()

    for number, one in enumerate(taken):
        with ExitStack() as away:
            found: dict[str, Path] = {}
            for (name, fs_type), snapshot in zip(kinds.items(), one.ids, strict=True):
                label = f"{name}-{number}"
                volume, found[name] = restored(node, snapshot, label, fs_type)
                away.callback(client.delete_volume, volume)
                away.callback(node.free, volume, label)
            link = found["data"] / "data" / "pg_wal"
            link.unlink()
            link.symlink_to(found["wal"] / "pg_wal")  # the log of the same moment, where its disk is shown now
            looked_through(node.server(found["data"], f"pair-{number}"), one)
    with capsys.disabled():
        took = ", ".join(f"{(returned - called) * 1000:.0f}" for _, called, returned in cuts)
        print(
            f"\ngroup of two: CreateVolumeGroupSnapshot under pgbench took {took} ms; {acks.answered[-1].number} acknowledged"
        )

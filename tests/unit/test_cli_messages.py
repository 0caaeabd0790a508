"""What the command line says: names, human sizes, and the command to type next."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from support.fake_agent import GIB, POOL, TAKEN, CommandLine, FakeAgent, node, object_id, snapshot

from csi_driver.cli.mount_paths import staging_of
from csi_driver.rpc.clients.cli_channel import CallRefused
from csi_driver.rpc.clients.cli_messages import Node, RollbackResult


def mounted(name: str, *paths: str) -> Node:
    volume = node(name)
    return replace(volume, used_by=(str(staging_of(volume.id)), *paths))


# Creation and sizes


def test_a_new_volume_is_told_with_its_name_its_size_and_the_next_command(tidemark: CommandLine) -> None:
    assert tidemark("volume", "create", "db", "10Gi") == "volume db has 10 GiB: `tidemark mount db DIR` mounts it\n"


@pytest.mark.parametrize("words", [["10Gi"], ["--size", "10Gi"], ["10Gi", "--size", "10240Mi"]])
def test_a_size_is_an_argument_or_an_option(tidemark: CommandLine, agent: FakeAgent, words: list[str]) -> None:
    tidemark("volume", "create", "db", *words)
    assert agent.called("create_volume")[0][1] == 10 * GIB


def test_two_sizes_that_differ_are_refused(tidemark: CommandLine, agent: FakeAgent) -> None:
    assert "10Gi and 5Gi: give it once" in tidemark("volume", "create", "db", "10Gi", "--size", "5Gi", code=2)
    assert agent.calls == []


@pytest.mark.parametrize("words", [["create", "db", "0"], ["create", "db", "--size", "0"], ["expand", "db", "0Gi"]])
def test_a_size_of_zero_is_refused(tidemark: CommandLine, agent: FakeAgent, words: list[str]) -> None:
    assert "a volume has a size: use e.g. 10Gi" in tidemark("volume", *words, code=2)
    assert agent.calls == []


def test_rounding_up_is_said_and_nothing_else_is(tidemark: CommandLine, agent: FakeAgent) -> None:
    assert "has 953.7 MiB (1000MB rounded up to a multiple of 4 KiB):" in tidemark("volume", "create", "a", "1000MB")
    assert "has 1 GiB:" in tidemark("volume", "create", "b", "1Gi")
    agent.size_step = 16 << 20
    assert "has 16 MiB (1Mi raised to the minimum for this volume):" in tidemark("volume", "create", "c", "1Mi")


def test_what_exists_is_unchanged(tidemark: CommandLine, agent: FakeAgent) -> None:
    db = node("db")
    agent.nodes = [db, snapshot("s1", db), node("g1", "group")]
    assert tidemark("volume", "create", "db", "10Gi") == "volume db exists with 10 GiB: unchanged\n"
    assert tidemark("snapshot", "create", "db", "s1").endswith(
        "s1 of db exists, taken at 2026-01-02 03:04:05: unchanged\n"
    )
    assert tidemark("group", "create", "g1", "db").endswith("exists, taken at 2026-01-02 03:04:05: unchanged\n")
    assert tidemark("volume", "expand", "db", "10Gi") == "db has 10 GiB already: unchanged\n"
    assert "more than 1Gi: unchanged, volumes never shrink" in tidemark("volume", "expand", "db", "1Gi")


def test_an_existing_volume_of_another_size_is_to_be_expanded(tidemark: CommandLine, agent: FakeAgent) -> None:
    agent.nodes = [node("db")]
    agent.refusals["create_volume"] = CallRefused("ALREADY_EXISTS", "volume 'db' differs in its size (...)")
    assert (
        tidemark("volume", "create", "db", "20Gi", code=1)
        == "tidemark: volume db exists with 10 GiB: `tidemark volume expand db 20Gi` expands it; for another volume, use "
        "another name"
    )


def test_an_existing_volume_that_differs_is_named_once(tidemark: CommandLine, agent: FakeAgent) -> None:
    db = node("db")
    agent.nodes = [db]
    agent.refusals["create_volume"] = CallRefused(
        "ALREADY_EXISTS", f"volume 'db' exists as {db.id} and differs in its capabilities: use another name"
    )
    message = tidemark("volume", "create", "db", "10Gi", "--fs", "xfs", code=1)
    assert message == "tidemark: volume db exists and differs in its file system (--fs, --block): use another name"


@pytest.mark.parametrize(
    "words",
    [
        "volume create new 16Mi --block",
        "volume create new --from s1",
        "volume create new --from db --block",
        "volume clone raw new",
        "volume clone db new --block",
    ],
)
def test_a_raw_block_device_is_mounted_with_block(tidemark: CommandLine, agent: FakeAgent, words: str) -> None:
    raw = node("raw", format="raw")
    agent.nodes = [raw, snapshot("s1", raw, format="raw"), node("db")]
    assert "`tidemark mount new DIR --block` mounts it" in tidemark(*words.split())
    assert "`tidemark mount ext4 DIR` mounts it" in tidemark("volume", "clone", "db", "ext4")


def test_expansion_tells_both_sizes(tidemark: CommandLine, agent: FakeAgent) -> None:
    agent.nodes = [node("db")]
    assert tidemark("volume", "expand", "db", "--size", "20Gi") == "db has 20 GiB, before 10 GiB\n"


# Room in the pool


def test_no_space_tells_what_is_reserved_for_how_many_and_which_option_changes_it(
    tidemark: CommandLine, agent: FakeAgent
) -> None:
    agent.refusals["create_volume"] = CallRefused("RESOURCE_EXHAUSTED", "pool default can reserve 32212254720 bytes")
    message = tidemark("volume", "create", "db", "40Gi", code=1)
    assert (
        "40 GiB are needed, and pool default can reserve 30 GiB more: 10 GiB of 40 GiB are reserved for 3 volumes"
        in message
    )
    assert "overcommit ratio of 2" in message
    assert "--overcommit" in message
    agent.pool = replace(POOL, free=GIB // 2, available=0)
    message = tidemark("volume", "create", "db", "1Gi", code=1)
    assert "has 512 MiB free, less than its reserve of 1 GiB" in message
    assert "--reserve" in message


def test_an_expansion_without_space_says_the_same(tidemark: CommandLine, agent: FakeAgent) -> None:
    agent.nodes = [node("db")]
    agent.refusals["expand_volume"] = CallRefused("OUT_OF_RANGE", "pool default can reserve 1 more bytes")
    assert "90 GiB are needed" in tidemark("volume", "expand", "db", "100Gi", code=1)


def test_a_clone_without_space_says_the_same(tidemark: CommandLine, agent: FakeAgent) -> None:
    agent.nodes = [node("db")]
    agent.refusals["create_volume"] = CallRefused("RESOURCE_EXHAUSTED", "pool default can reserve 32212254720 bytes")
    message = tidemark("volume", "clone", "db", "db2", "--size", "40Gi", code=1)
    assert "40 GiB are needed, and pool default can reserve 30 GiB more" in message
    assert "--overcommit" in message


def test_a_file_system_that_cannot_grow_is_named_without_its_inner_directory(
    tidemark: CommandLine, agent: FakeAgent
) -> None:
    agent.nodes = [mounted("db", "/mnt/db")]
    agent.refusals["grow"] = CallRefused(
        "INTERNAL",
        f"grow failed: ext4 at /run/tidemark/mounting/{'a' * 32} cannot grow while it is mounted: this agent lacks "
        "CAP_SYS_RESOURCE; give it that capability, or unstage and stage the volume, which grows it",
    )
    message = tidemark("volume", "expand", "db", "20Gi", code=1)
    assert "ext4 cannot grow while it is mounted: this agent lacks CAP_SYS_RESOURCE" in message
    assert "a" * 32 not in message


def test_another_reason_keeps_its_own_words(tidemark: CommandLine, agent: FakeAgent) -> None:
    agent.refusals["create_volume"] = CallRefused("RESOURCE_EXHAUSTED", "node n1 is not in the requested topology")
    assert "requested topology" in tidemark("volume", "create", "db", "1Gi", code=1)


# In use


@pytest.mark.parametrize(
    "words", [["volume", "delete", "db"], ["rollback", "db", "s1"], ["rollback", "create", "db", "s1"]]
)
def test_a_volume_in_use_is_told_with_its_directory_and_the_command(
    tidemark: CommandLine, agent: FakeAgent, words: list[str]
) -> None:
    db = mounted("db", "/mnt/db")
    agent.nodes = [db, snapshot("s1", db)]
    assert tidemark(*words, code=1) == "tidemark: db is mounted at /mnt/db: `tidemark umount db` first"
    assert not agent.called("delete_volume")
    assert not agent.called("roll_back")


def test_other_uses_have_other_remedies(tidemark: CommandLine, agent: FakeAgent) -> None:
    pod = "/var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/pv/mount"
    for used_by, holder, words in (
        ((str(staging_of(node("db").id)), "/a", "/b"), "", "`tidemark umount /a` and `tidemark umount /b` first"),
        (
            (str(staging_of(node("db").id)),),
            "",
            "staged, but mounted at no directory: `tidemark umount db` unstages it",
        ),
        ((pod,), "", f"db is mounted at {pod} by a pod"),
        ((), "rollback-7", "db is held by 'rollback-7' for a rollback: wait for its release"),
    ):
        agent.nodes = [node("db", used_by=used_by, holder=holder)]
        assert words in tidemark("volume", "delete", "db", code=1)


def test_a_race_with_the_agent_is_told_in_the_same_words(tidemark: CommandLine, agent: FakeAgent) -> None:
    db = node("db")
    agent.nodes = [db]
    calls = 0
    read = agent.tree

    def tree(**options: bool) -> object:
        nonlocal calls
        calls += 1
        return read() if calls == 1 else [mounted("db", "/mnt/db")]

    agent.tree = tree  # type: ignore[assignment, method-assign]
    agent.refusals["delete_volume"] = CallRefused(
        "FAILED_PRECONDITION", f"volume {db.id} is in use at /mnt/db: unpublish and unstage it first"
    )
    assert (
        tidemark("volume", "delete", "db", code=1) == "tidemark: db is mounted at /mnt/db: `tidemark umount db` first"
    )


# Deletion, groups, rollback


def test_deletion_names_what_is_gone_and_what_stays(tidemark: CommandLine, agent: FakeAgent) -> None:
    db = node("db")
    agent.nodes = [db, snapshot("s1", db), node("g1", "group")]
    assert tidemark("snapshot", "rm", "s1") == "snapshot s1 is deleted\n"
    assert tidemark("group", "rm", "g1") == "group snapshot g1 is deleted with its members\n"
    agent.nodes.append(snapshot("s2", db))
    assert tidemark("volume", "rm", "db") == "volume db is deleted; its 1 snapshot stays\n"


def test_a_name_with_spaces_is_quoted_in_a_sentence(tidemark: CommandLine, agent: FakeAgent) -> None:
    db = node("db")
    agent.nodes = [db, snapshot("safety-" + "a" * 32, db), node("my volume")]
    shown = "before rollback of 2026-01-02 03:04"
    assert f"(did you mean '{shown}'?)" in tidemark("snapshot", "show", shown[:-1], code=1)
    assert f"db has the content of '{shown}" in tidemark("rollback", "db", shown)
    agent.nodes = [db, snapshot("safety-" + "a" * 32, db), node("my volume")]
    assert tidemark("snapshot", "delete", shown) == f"snapshot '{shown}' is deleted\n"
    assert tidemark("volume", "delete", "my volume") == "volume 'my volume' is deleted\n"


def test_a_member_of_a_group_is_deleted_with_its_group(tidemark: CommandLine, agent: FakeAgent) -> None:
    db, group = node("db"), node("nightly", "group")
    agent.nodes = [db, group, snapshot(f"nightly\0{db.id}", db, group_id=group.id)]
    assert "delete the group, `tidemark group delete nightly`" in tidemark("snapshot", "delete", "nightly/db", code=1)
    assert not agent.called("delete_volume")


def test_a_rollback_names_its_safety_snapshot_and_the_command_to_undo_it(
    tidemark: CommandLine, agent: FakeAgent
) -> None:
    db = node("db")
    agent.nodes = [db, snapshot("s1", db)]
    out = tidemark("rollback", "db", "s1", "--name", "r1").splitlines()
    assert out[0] == "db has the content of s1 again, since 2026-01-02 03:04:05"
    assert "`tidemark rollback db 'before rollback of 2026-01-02 03:04'` undoes the rollback" in out[1]
    assert "by this name: unchanged" in tidemark("rollback", "db", "s1", "--name", "r1")
    agent.calls.clear()
    tidemark("rollback", "db", "before rollback of 2026-01-02 03:04")
    assert agent.called("roll_back")[0][1] == object_id("safety-" + "0" * 32)


def test_another_volumes_snapshot_is_not_offered(tidemark: CommandLine, agent: FakeAgent) -> None:
    db, other = node("db"), node("other")
    agent.nodes = [db, other, snapshot("s1", other)]
    assert "no snapshot of db is called 's1': `tidemark snapshot list --of db` lists them" in tidemark(
        "rollback", "db", "s1", code=1
    )


def test_a_snapshot_of_another_volume_has_the_name(tidemark: CommandLine, agent: FakeAgent) -> None:
    db, other = node("db"), node("other")
    agent.nodes = [db, other, snapshot("s1", other)]
    assert "snapshot s1 exists, of other: use another name" in tidemark("snapshot", "create", "db", "s1", code=1)


def test_names_are_suggested(tidemark: CommandLine, agent: FakeAgent) -> None:
    agent.nodes = [node("orders")]
    assert "no volume is called 'ordrs' (did you mean orders?)" in tidemark("volume", "show", "ordrs", code=1)
    assert "no command is called 'volme' (did you mean volume?)" in tidemark("volme", "list", code=2)
    assert "no command is called 'lst' (did you mean list?)" in tidemark("volume", "lst", code=2)
    assert "(did you mean size?)" in tidemark("volume", "list", "--sort", "sze", code=2)
    assert "no pool is called 'defalt' (did you mean default?)" in tidemark("pool", "show", "defalt", code=1)


# What was made from what


def test_the_children_of_an_earlier_volume_say_so(tidemark: CommandLine, agent: FakeAgent) -> None:
    from datetime import UTC, datetime

    second_db = node("db", uid="another", created=datetime.now(UTC) - timedelta(days=3, minutes=1))
    old = node("db")
    agent.nodes = [second_db, snapshot("s1", old), node("copy", parent_id=old.id, parent_uid=old.uid)]
    message = "an earlier db, deleted at least 3 days ago"
    assert message in tidemark("snapshot", "list")
    assert message in tidemark("volume", "show", "copy")
    assert message in tidemark("tree")
    assert "snapshots: none" in " ".join(tidemark("volume", "show", "db").split()), "they are of another volume"
    agent.nodes = agent.nodes[1:]
    assert "a deleted volume" in tidemark("snapshot", "list")


def test_safety_snapshots_are_named_by_their_rollback(tidemark: CommandLine, agent: FakeAgent) -> None:
    db = node("db")
    recorded, forgotten = (
        snapshot("snapshot-0b1c", db),
        snapshot("safety-" + "a" * 32, db, created=TAKEN - timedelta(days=1)),
    )
    done = RollbackResult("r1", "gone", TAKEN + timedelta(minutes=1), recorded.id, True)
    agent.nodes = [replace(db, rollbacks=(done,)), recorded, forgotten, snapshot("safety-first", db)]
    names = tidemark("snapshot", "list", "--no-headers", "--sort", "name").splitlines()
    assert [name.split("  ")[0] for name in names] == [
        "before rollback of 2026-01-01 03:04",
        "before rollback of 2026-01-02 03:05",
        "safety-first",
    ]
    assert "snapshot-0b1c" in tidemark("snapshot", "list", "-o", "wide"), "the stored name"
    # Two of one minute differ by their seconds.
    agent.nodes.append(snapshot("safety-" + "b" * 32, db, created=TAKEN - timedelta(days=1, seconds=2)))
    assert "before rollback of 2026-01-01 03:04:03" in tidemark("snapshot", "list")


# Without a cluster, without an agent


def test_one_silent_node_stops_only_what_needs_it(tidemark: CommandLine, agent: FakeAgent) -> None:
    """A controller has no tree while a node is silent; volumes are created, and deleted by their ids, as before."""
    agent.nodes = [node("db")]
    agent.refusals["whole_tree"] = CallRefused("UNAVAILABLE", "agent of node n2: no connection within 2 s")
    assert "volume new has 1 GiB" in tidemark("volume", "create", "new", "1Gi")
    assert tidemark("volume", "delete", object_id("new")) == f"volume {object_id('new')} is deleted\n"
    assert "name:" in tidemark("volume", "show", object_id("db"))
    assert "node n2" in tidemark("volume", "delete", "db", code=1)
    assert [call[0] for call in agent.called("delete_volume")] == [object_id("new")]


def test_a_completed_rollback_is_reported_even_if_the_tree_cannot_be_read_after_it(
    tidemark: CommandLine, agent: FakeAgent
) -> None:
    db = node("db")
    agent.nodes = [db, snapshot("s1", db)]
    read, reads = agent.tree, 0

    def tree(**part: str) -> object:
        nonlocal reads
        reads += 1
        if reads > 1 and "volume_id" not in part:
            raise CallRefused("UNAVAILABLE", "agent of node n2: no connection within 2 s")
        return read(**part)

    agent.tree = tree  # type: ignore[assignment, method-assign]
    assert "db has the content of s1 again" in tidemark("rollback", "db", "s1")


@pytest.mark.parametrize(
    "words", [["schedule", "list"], ["rollback", "ls"], ["rollback", "show", "shop/x"], ["node", "list"]]
)
def test_without_a_cluster_one_line_says_what_is_missing(
    tidemark: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tidemark(*words, code=1) == (
        "tidemark: this command needs a Kubernetes cluster, and none is configured: use --kubeconfig FILE, or set KUBECONFIG"
    )


def test_the_version(tidemark: CommandLine) -> None:
    from csi_driver import __version__

    assert tidemark("--version") == f"tidemark {__version__}\n"


def test_no_traceback_reaches_a_person(
    tidemark: CommandLine, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> None:
        def tree(**_: object) -> object:
            raise error

        agent.tree = tree  # type: ignore[assignment, method-assign]

    fail(PermissionError(13, "Permission denied", "/mnt/x"))
    assert tidemark("volume", "list", code=1).startswith("tidemark: /mnt/x: Permission denied: TIDEMARK_TRACEBACK=1")
    fail(KeyError("a\x1b[31m\nb"))
    assert "this is a fault of tidemark: KeyError: " in tidemark("volume", "list", code=1)
    monkeypatch.setenv("TIDEMARK_TRACEBACK", "1")
    assert "Traceback (most recent call last): " in tidemark("volume", "list", code=1)

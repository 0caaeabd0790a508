"""Names on the command line, and the agent's refusals in the words of its user."""

import inspect
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from support.fake_agent import CommandLine, FakeAgent, node, snapshot

from csi_driver.cli.names import check_new_name
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.refusals import in_our_words
from csi_driver.rpc.clients.cli_channel import CallRefused

ID = "n1:default:" + "a" * 32


@pytest.mark.parametrize("name", ["db", "db-1", "a", "1", "db.prod", "a" * 128, "pvc-0b1c2d3e"])
def test_names_that_kubernetes_takes_are_taken(name: str) -> None:
    check_new_name(name, "volume")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("DB_1", "db-1"),
        ("../x", "x"),
        ("a/b", "a-b"),
        ("-rf", "rf"),
        ("db-", "db"),
        ("a..b", "a.b"),
        (".tidemark-snapshot-mount.1", "tidemark-snapshot-mount.1"),
        ("a b", "a-b"),
        ("\x1b[31m", "31m"),
        ("größe", "gr-e"),
        ("", "db-1"),
        (ID, "n1-default-" + "a" * 32),
    ],
)
def test_other_names_are_refused_with_one_like_them(name: str, near: str) -> None:
    with pytest.raises(typer.BadParameter, match=f"e.g. {re.escape(near)}$"):
        check_new_name(name, "volume")
    check_new_name(near, "volume")


@given(st.text(max_size=150))
def test_an_accepted_name_is_safe_in_a_path_a_shell_and_a_label(name: str) -> None:
    try:
        check_new_name(name, "volume")
    except typer.BadParameter:
        return
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,127}", name)
    assert ".." not in name


@pytest.mark.parametrize("words", [["volume", "create"], ["snapshot", "create", "db"], ["group", "create"]])
def test_new_names_are_checked_and_existing_ones_are_not(
    tidemark: CommandLine, agent: FakeAgent, words: list[str]
) -> None:
    db = node("db")
    agent.nodes = [db, node("Old_1"), snapshot("Old_1", db), node("Old_1", "group")]
    rest = ["db"] if words[0] == "group" else []
    for name in ("New_1", "../x", db.id):
        assert "use lower-case letters" in tidemark(*words, name, *rest, code=2)
    assert not {call[0] for call in agent.calls} & {"create_volume", "create_snapshot", "create_group"}
    assert "unchanged" in tidemark(*words, "Old_1", *rest)


def test_the_name_of_a_rollback_is_a_name(tidemark: CommandLine, agent: FakeAgent) -> None:
    db = node("db")
    agent.nodes = [db, snapshot("s1", db)]
    assert "name of a rollback" in tidemark("rollback", "db", "s1", "--name", "../1", code=2)
    assert not agent.called("roll_back")


# The agent's words

CSI_WORDS = re.compile(
    r"\b(?:un)?(?:publish|stage)(?:ed|ing|d)?\b|StorageClass|[A-Z][a-z]+Volume\b|n1:default:|\d{6,} bytes"
)

AGENT_MESSAGES = [
    ("{id} is published at /mnt/a, and access mode X allows one path only: unpublish it there first", "`tidemark umount db` first"),
    ("{id} is staged at /s as ext4, not xfs: unstage it first", "`tidemark umount db` first"),
    ("/mnt/a is taken by a mount of tmpfs: unpublish or unmount it first", "unmount it first"),
    ("{id} is not shown at /s: stage it there first", "mount it first"),
    ("NodeStageVolume of {id} is under way: try again", "mounting db is under way"),
    ("ControllerExpandVolume of {id} is under way: try again", "expanding db is under way"),
    ("CreateVolumeGroupSnapshot 'g' is under way: try again", "taking group snapshot 'g' is under way"),
    ("DeleteVolume of {id} is under way: try again", "deleting db is under way"),
    ("the source is in pool a, the StorageClass names pool b: a clone is created in the pool of its source; use a StorageClass of that pool, or one that names none", "--pool names b"),
    ("pool p is in memory and serves raw block volumes only: ask for block access, or use a pool on a disk", "use --block"),
    ("1073741824 bytes are less than the source's 10737418240: a copy cannot be smaller than its source; ask for 10737418240 or more", "1 GiB are less than the source's 10 GiB"),
    ("limit 1073741824 is below required 10737418240: raise the limit", "limit 1 GiB is below required 10 GiB"),
    ("a thick volume must set aside 10737418240 bytes (10 GiB; S), and pool p can reserve 1073741824 bytes", "set aside 10 GiB"),
    ("{id} is mounted read-only; the next stage mends it", "the next mount mends it"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "words"), AGENT_MESSAGES)
def test_what_the_agent_says_is_said_in_the_words_of_its_user(message: str, words: str) -> None:
    db = node("db")
    words_of_user = in_our_words(CallRefused("FAILED_PRECONDITION", message.format(id=db.id)), AgentObjects([db]))
    assert words in words_of_user
    assert not CSI_WORDS.search(words_of_user), words_of_user


def test_a_process_id_stays_a_number_and_an_unknown_id_an_id() -> None:
    words_of_user = in_our_words(
        CallRefused("ABORTED", f"process 123456 uses {ID}: end it"), AgentObjects([node("db")])
    )
    assert words_of_user == f"process 123456 uses {ID}: end it"


def test_every_instruction_to_unstage_in_the_agent_is_one_that_is_translated() -> None:
    """The messages of the services and backends, found in their source: a new one must be covered as well."""
    import csi_driver

    root = Path(inspect.getfile(csi_driver)).parent
    left = []
    for path in [*root.glob("service/*.py"), *root.glob("backends/**/*.py")]:
        for text in re.findall(r'"([^"\n]*: [^"\n]*(?:unpublish|unstage)[^"\n]*)"', path.read_text()):
            words_of_user = in_our_words(CallRefused("ABORTED", text), AgentObjects([]))
            if re.search(r"\b(?:unpublish|unstage)\b", words_of_user):
                left.append(text)
    assert left == []


# Completion


def test_completion_has_names_and_leaves_out_what_a_shell_would_take_apart(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from csi_driver.cli import completion

    db = node("db")
    agent.nodes = [db, node("data"), node("$(reboot)"), snapshot("s1", db), snapshot("safety-" + "a" * 32, db)]
    monkeypatch.setattr("csi_driver.rpc.clients.cli_client.Client", agent)
    context: Any = type("Context", (), {"params": {"endpoint": f"unix://{tmp_path}/csi.sock"}})()
    assert completion.complete_volume(context, "d") == [], "no agent"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{tmp_path}/csi.sock")
        listening.listen()
        assert completion.complete_volume(context, "d") == ["data", "db"]
        assert completion.complete_volume(context, "") == ["data", "db"]
        assert completion.complete_snapshot(context, "s") == ["s1", "safety-" + "a" * 32]
        assert completion.complete_source(context, "") == ["data", "db", "s1", "safety-" + "a" * 32]
        assert completion.complete_pool(context, "de") == ["default"]
        agent.refusals["whole_tree"] = CallRefused("DEADLINE_EXCEEDED", "silent")
        assert completion.complete_volume(context, "d") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(tidemark: CommandLine, shell: str) -> None:
    script = tidemark("completion", shell)
    assert f"_TIDEMARK_COMPLETE=complete_{shell}" in script
    assert "# " in script.splitlines()[-1], "how to use it"
    assert script.startswith("#compdef tidemark\n") == (shell == "zsh"), "zsh reads this in the first line only"


def test_a_silent_agent_is_given_a_second_to_complete_a_name(tmp_path: Path) -> None:
    from csi_driver.cli.completion import SECONDS
    from csi_driver.rpc.clients.cli_client import Client

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{tmp_path}/csi.sock")
        listening.listen()
        with Client(f"unix://{tmp_path}/csi.sock", SECONDS) as client, pytest.raises(CallRefused, match="within 1 s"):
            client.tree()

"""Tables, trees and documents: nothing that a terminal obeys, readable at 80 columns, the same for programs."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from support.fake_agent import GIB, TAKEN, CommandLine, FakeAgent, node, snapshot

from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.output.escape import as_argument, escape
from csi_driver.cli.output.table import Cells, draw, shorten
from csi_driver.cli.tree import draw as draw_tree
from csi_driver.rpc.clients.cli_messages import RollbackResult

EVIL = "\x1b[31mred\x1b]0;title\x07\n\r\u202eevil\u2066\u200b\x9b2J\udc80"
"""ESC and CSI sequences, a title, a new line, direction and invisible characters, a byte that is no text."""


def harmless(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


@given(st.text())
def test_escaped_text_is_one_line_that_no_terminal_obeys(text: str) -> None:
    shown = escape(text)
    assert shown.isprintable()
    assert text.isprintable() == (shown == text)


def test_what_is_escaped_can_be_read() -> None:
    assert escape("a\x1b[2Jb\n\u202e") == r"a\x1b[2Jb\n\u202e"
    assert escape("größe ✓ 日本") == "größe ✓ 日本"


def test_what_is_typed_is_quoted_or_not_offered() -> None:
    assert as_argument("db") == "db"
    assert as_argument("before rollback") == "'before rollback'"
    assert as_argument("$(reboot)") == "'$(reboot)'"
    for text in ("", "-rf", "a\nb", "\x1b", "\u202edb"):
        assert as_argument(text) is None


def _evil_agent(agent: FakeAgent) -> None:
    db = node(EVIL, condition=EVIL, format=EVIL, holder=EVIL)
    agent.nodes = [
        db,
        snapshot(f"{EVIL}s", db, condition=EVIL),
        node(f"{EVIL}g", "group"),
        replace(node("used"), used_by=(f"/mnt/{EVIL}",)),
    ]
    agent.pool = replace(agent.pool, name=EVIL, path=EVIL)


@pytest.mark.parametrize(
    "words",
    [
        *(f"volume list -o {form}" for form in ("table", "wide", "name", "json", "yaml")),
        *("snapshot list", "snapshot list -o wide", "group list", "pool list", "pool show", "tree", "tree -o yaml"),
    ],
)
def test_names_from_elsewhere_never_reach_the_terminal_raw(tidemark: CommandLine, agent: FakeAgent, words: str) -> None:
    _evil_agent(agent)
    out = tidemark(*words.split())
    assert harmless(out)
    if words.endswith(("table", "list")):
        # No name breaks a line: titles and one line for each row.
        assert len(out.splitlines()) == {"volume": 3, "snapshot": 2, "group": 2, "pool": 2}[words.split(maxsplit=1)[0]]


def test_refusals_are_escaped_too(tidemark: CommandLine, agent: FakeAgent) -> None:
    _evil_agent(agent)
    message = tidemark("volume", "show", agent.nodes[0].id)
    assert harmless(message)
    message = tidemark("volume", "delete", agent.nodes[0].id, code=1)
    assert harmless(message)
    assert r"\x1b[31mred" in message
    for words in (["volume", "show", "no\x1b[31m"], ["volume", "delete", "no\u202e"]):
        assert harmless(tidemark(*words, code=1))
    for words in (["volume", "create", "no\x1b[31m", "1Gi"], ["\x1b[31m"], ["volume", "show", "a", "b\x1b[31m\u202e"]):
        assert harmless(tidemark(*words, code=2))


def test_odd_names_are_reached_by_themselves_and_by_their_ids(tidemark: CommandLine, agent: FakeAgent) -> None:
    odd = node("-rf My Volume")
    agent.nodes = [odd]
    assert odd.name in tidemark("volume", "show", "--", odd.name)
    assert tidemark("volume", "list", "-o", "name") == f"{odd.id}\n", "what can be typed without care"
    tidemark("volume", "delete", "--", odd.name)
    assert agent.called("delete_volume") == [(odd.id,)]


def test_names_for_a_script_are_one_word_each(tidemark: CommandLine, agent: FakeAgent) -> None:
    """A quote would become a part of a word in `tidemark snapshot delete $(tidemark snapshot list -o name)`."""
    db = node("db")
    safety = snapshot("safety-" + "a" * 32, db)
    agent.nodes = [db, node("my volume"), snapshot("s1", db), safety]
    assert tidemark("snapshot", "list", "-o", "name").split() == ["s1", safety.id]
    assert tidemark("volume", "list", "-o", "name").split() == ["db", node("my volume").id]
    assert tidemark("tree", "-o", "name").split() == ["db", node("my volume").id, "s1", safety.id]
    assert tidemark("top", "--once", "-o", "name").split() == ["db", node("my volume").id]
    assert tidemark("snapshot", "show", safety.id, "-o", "name").split() == [safety.id]
    tidemark("snapshot", "delete", *tidemark("snapshot", "list", "-o", "name").split())
    assert len(agent.nodes) == 2


# Formats


def test_every_format_has_the_same_objects(tidemark: CommandLine, agent: FakeAgent) -> None:
    db = node("db")
    agent.nodes = [db, node("wal", size=GIB), snapshot("s1", db)]
    documents = json.loads(tidemark("volume", "ls", "-o", "json"))
    assert (
        documents
        == json.loads(tidemark("volume", "list", "--json"))
        == yaml.safe_load(tidemark("volume", "ls", "-o", "yaml"))
    )
    assert [(d["name"], d["display_name"], d["size"]) for d in documents] == [
        ("db", "db", 10 * GIB),
        ("wal", "wal", GIB),
    ]
    assert tidemark("volume", "ls", "-o", "name") == "db\nwal\n"
    wide, table = (tidemark("volume", "ls", *words).splitlines() for words in (["-o", "wide"], []))
    assert "ID" in wide[0].split()
    assert "ID" not in table[0].split()
    assert tidemark("volume", "show", "db", "-o", "name") == "db\n"
    assert json.loads(tidemark("volume", "show", "db", "-o", "json")) == documents[0]


def test_exact_bytes_are_for_programs(tidemark: CommandLine, agent: FakeAgent) -> None:
    agent.nodes = [node("db", size=10 * GIB)]
    for words in (["volume", "show", "db"], ["volume", "list"], ["tree"], ["pool", "list"], ["pool", "show"]):
        for form in ("table", "wide"):
            assert not re.search(r"\b\d{6,}\b", tidemark(*words, "-o", form)), words
    assert "10737418240" in tidemark("volume", "show", "db", "-o", "json")


def test_sorting_and_titles(tidemark: CommandLine, agent: FakeAgent) -> None:
    agent.nodes = [node("b", size=2 * GIB), node("a", size=10 * GIB), node("c", size=GIB)]

    def names(*words: str) -> list[str]:
        return [line.split()[0] for line in tidemark("volume", "list", "--no-headers", *words).splitlines()]

    assert names() == ["b", "a", "c"]
    assert names("--sort", "name") == ["a", "b", "c"]
    assert names("--sort", "size") == ["c", "b", "a"], "by bytes, not by text"
    assert names("--sort=-size") == ["a", "b", "c"]
    assert tidemark("volume", "list", "-o", "name", "--sort", "size") == "c\nb\na\n"


# 80 columns


LONG = "pvc-8e5e6b6a-4a35-4d0c-9d6a-1f0d6f1c2b3a.of-a-team-with-a-very-long-name"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns."""
    for module in ("output.printing", "tree"):
        monkeypatch.setattr(f"csi_driver.cli.{module}.terminal_width", lambda: 80)


def _long_agent(agent: FakeAgent) -> None:
    db = node(f"a{LONG}", used_by=("/var/lib/somewhere/deep/below/a/directory",))
    s1 = snapshot(f"b{LONG}", db)
    clone = node(f"c{LONG}", parent_id=s1.id, parent_uid=s1.uid)
    agent.nodes = [db, s1, clone, snapshot(f"d{LONG}", clone), node(f"e{LONG}", "group")]


@pytest.mark.parametrize("words", ["volume list", "snapshot list", "group list", "pool list", "tree"])
def test_tables_and_trees_fit_into_80_columns(
    tidemark: CommandLine, agent: FakeAgent, terminal: None, words: str
) -> None:
    _long_agent(agent)
    lines = tidemark(*words.split()).splitlines()
    assert max(cell_len(line) for line in lines) <= 80
    if words != "pool list":
        # Names differ at both ends, and both ends stay.
        assert any("pvc-8e5e" in line and "long-name" in line for line in lines)
    if words.endswith("list"):
        assert len(lines) == {"volume": 3, "snapshot": 3, "group": 2, "pool": 2}[words.split(maxsplit=1)[0]]
        assert lines[0].split()[0] in ("NAME", "POOL")


def test_one_object_is_shown_within_the_terminal(tidemark: CommandLine, agent: FakeAgent, terminal: None) -> None:
    db = node("db")
    taken = [snapshot(f"nightly-{number:02}", db) for number in range(20)]
    safety = snapshot("safety-" + "a" * 32, db)
    done = RollbackResult("r1", taken[0].id, TAKEN, safety.id, True)
    agent.nodes = [replace(db, rollbacks=(done,)), *taken, safety]
    agent.pool = replace(agent.pool, free=1_067_030_938, reserve=1_067_030_938)
    shown = tidemark("volume", "show", "db")
    for text in (shown, tidemark("pool", "show")):
        assert max(len(line) for line in text.splitlines()) <= 80
    words = " ".join(line.strip() for line in shown.splitlines())
    assert all(one.name in words for one in taken)
    assert "to nightly-00; the content before: before rollback of 2026-01-02 03:04" in words
    below = [line for line in shown.splitlines() if "nightly-19" in line]
    assert below[0].startswith(" " * len("rolled back: ")), "continued where the first line begins"


def test_wide_and_pipes_are_never_shortened(tidemark: CommandLine, agent: FakeAgent, terminal: None) -> None:
    _long_agent(agent)
    assert f"a{LONG}" in tidemark("volume", "list", "-o", "wide")
    assert f"d{LONG}" in tidemark("tree", "-o", "wide")


def test_a_pipe_is_not_a_terminal(tidemark: CommandLine, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    _long_agent(agent)
    assert f"a{LONG}" in tidemark("volume", "list")


@given(st.lists(st.tuples(st.text(max_size=30), st.integers(0, 3)), min_size=1, max_size=6), st.integers(20, 100))
def test_a_table_is_as_wide_as_the_terminal_or_its_columns_of_rank_0(
    columns: list[tuple[str, int]], width: int
) -> None:
    lines, left_out = draw([Cells("T", [escape(text)], rank=rank) for text, rank in columns], width)
    kept = len(columns) - len(left_out)
    assert kept >= sum(rank == 0 for _, rank in columns)
    assert all(cell_len(line) <= max(width, 12 * kept + 3 * (kept - 1)) for line in lines)


@given(st.text("abc日本é", max_size=40), st.integers(1, 30))
def test_a_shortened_text_keeps_both_ends(text: str, width: int) -> None:
    short = shorten(text, width)
    assert cell_len(short) <= width
    assert (short == text) == (cell_len(text) <= width)


def test_a_narrow_tree_has_details_below_the_name() -> None:
    db = node("db", condition="its ext4 met an error and takes no more writes, and this sentence goes on for a while")
    console = Console(width=60)
    with console.capture() as capture:
        console.print(draw_tree(AgentObjects([db, snapshot("s1", db)]), 60))
    lines = capture.get().splitlines()
    assert lines[0].strip() == "db"
    assert lines[1].startswith("  volume, 10 GiB") or "volume, 10 GiB" in lines[1]
    assert max(map(len, lines)) <= 60

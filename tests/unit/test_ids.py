"""Ids: parsing is total, and what it accepts can do no harm."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.domain.ids import (
    ANY_OWNER,
    MAX_NAME_BYTES,
    ObjectId,
    PoolRef,
    is_pool_name,
    member_name,
    name_hash,
    owner_of_node,
    parse,
)

POOLS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,29}[a-z0-9])?", fullmatch=True)
OWNERS = st.just(ANY_OWNER) | st.from_regex(r"(?a:[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)", fullmatch=True)
HASHES = st.from_regex(r"[0-9a-f]{32}", fullmatch=True)
IDS = st.builds(ObjectId, OWNERS, POOLS, HASHES)
NASTY = st.text(st.sampled_from(list("ab09:*./\\-_\0\n é٣ⅷ")), max_size=140)


@given(st.text() | NASTY)
def test_parsing_never_fails_and_is_exact(text: str) -> None:
    found = parse(text)
    assert found is None or str(found) == text


@given(IDS)
def test_every_id_comes_back(made: ObjectId) -> None:
    assert parse(str(made)) == made
    assert len(str(made).encode()) <= MAX_NAME_BYTES


@given(IDS, st.sampled_from(["\n", " ", "\0", ":", "/", ":x"]))
def test_nothing_may_be_added(made: ObjectId, extra: str) -> None:
    assert parse(str(made) + extra) is None
    assert parse(extra + str(made)) is None


@given(IDS)
def test_no_part_can_be_a_path(made: ObjectId) -> None:
    for part in (made.pool, made.hash):
        assert part not in {"", ".", ".."}
        assert "/" not in part
        assert "\0" not in part


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "::",
        "a:b",
        f"n:p:{'A' * 32}",
        f"n:p:{'0' * 31}",
        f"n:p:{'0' * 33}",
        f"n:P:{'0' * 32}",
        f"n:-p:{'0' * 32}",
        f"n:{'p' * 32}:{'0' * 32}",
        f":p:{'0' * 32}",
        f"**:p:{'0' * 32}",
        f"{'n' * 64}:p:{'0' * 32}",
        f"n:p:{'٣' * 32}",
        f"n/..:p:{'0' * 32}",
    ],
)
def test_what_was_never_given_out(text: str) -> None:
    assert parse(text) is None


@given(st.text())
def test_a_pool_of_a_good_name_can_be_parsed(name: str) -> None:
    assert is_pool_name(name) == (parse(f"n:{name}:{'0' * 32}") is not None)


@given(st.text(), st.text())
def test_names_and_kinds_have_hashes_of_their_own(a: str, b: str) -> None:
    assert (name_hash("volume", a) == name_hash("volume", b)) == (a == b)
    assert len({name_hash("volume", a), name_hash("snapshot", a), name_hash("group", a)}) == 3
    assert parse(f"n:p:{name_hash('volume', a)}") is not None


def test_hashes_stay_what_they_are() -> None:
    """They are in every persistent volume of every cluster: this value never changes."""
    assert name_hash("volume", "pvc-0") == "bd37f65ea5e16a4e2ed667be1ef38e69"


def test_names_are_not_normalised() -> None:
    assert name_hash("volume", "\u00e9") != name_hash("volume", "e\u0301")


@given(st.text().filter(lambda name: "\0" not in name), IDS)
def test_no_caller_can_name_a_member(name: str, source: ObjectId) -> None:
    assert "\0" in member_name(name, str(source))


@given(st.text(min_size=1))
def test_every_node_has_an_owner_that_parses(node: str) -> None:
    owner = owner_of_node(node)
    assert parse(f"{owner}:p:{'0' * 32}") is not None
    assert len(owner) <= 63


def test_a_short_node_name_is_its_owner() -> None:
    assert owner_of_node("Worker-1.example.org") == "Worker-1.example.org"
    assert owner_of_node("n" * 64) != owner_of_node("n" * 65)


@given(IDS, st.text(max_size=40))
def test_a_pool_makes_the_ids_of_what_is_in_it(made: ObjectId, name: str) -> None:
    pool = made.pool_ref
    assert pool == PoolRef(made.owner, made.pool)
    assert pool.object_id(made.hash) == made
    assert pool.shared == (made.owner == ANY_OWNER)
    assert pool.new_volume_id(name) == ObjectId(made.owner, made.pool, name_hash("volume", name))
    assert pool.new_snapshot_id(name) == ObjectId(made.owner, made.pool, name_hash("snapshot", name))
    assert pool.new_group_id(name) == ObjectId(made.owner, made.pool, name_hash("group", name))

"""The journal of freezes, of this version or another: what counts, and that what cannot be read is not forgotten."""

import os
from pathlib import Path
from typing import Any

import pytest

from csi_driver.host.freeze import journal
from csi_driver.host.freeze.journal import Journal

NOW = "this boot"
FACT = journal.entry_for("/staging", 7, 3, (64_768, 133)) | {"boot": NOW}
BEFORE = FACT | {"boot": "the boot before"}


def test_freezes_of_this_boot_count_with_all_that_is_noted_of_them() -> None:
    later = FACT | {"noted later": {"x": [1]}}
    assert journal.of_boot([BEFORE, FACT, later], NOW) == [FACT, later]
    assert journal.of_boot([BEFORE], NOW) == journal.of_boot([], NOW) == []
    assert journal.of_boot([{key: FACT[key] for key in FACT if key != "backing"}], NOW), "thawed wherever it is"


def test_what_is_noted_of_the_others_stays_when_one_is_taken_back(tmp_path: Path) -> None:
    later = FACT | {"minor": 4, "noted later": 1}
    journal.record(str(tmp_path), "group", [FACT, later])
    journal.remove_entry(str(tmp_path), "group", FACT)
    assert journal.read_entries(str(tmp_path)) == {"group": [later]}


def test_another_form_is_not_taken_back_piece_by_piece(tmp_path: Path) -> None:
    journal.record(str(tmp_path), "later", {"schema": 2, "boot": NOW})
    journal.remove_entry(str(tmp_path), "later", FACT)
    assert list(journal.read_entries(str(tmp_path))) == ["later"]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({"schema": 2, "boot": NOW, "mounts": []}, "has schema 2, and this driver reads 1"),
        ({"schema": 2}, "has schema 2, and this driver reads 1"),
        (None, "not a list of freezes"),
        ({"boot": "before"}, "not a list of freezes"),
        ([FACT, 1], "does not say of what it is"),
        ([{}], "does not say of what it is"),
        ([FACT | {"minor": "3"}], "does not say of what it is"),
        ([FACT | {"backing": {"st_ino": 1}}], "does not say of what it is"),
    ],
)
def test_what_cannot_be_read_is_said(found: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        journal.of_boot(found, NOW)


def test_a_later_form_of_another_boot_is_over() -> None:
    assert journal.of_boot({"schema": 2, "boot": "the boot before"}, NOW) == []


def local_and_pool(tmp_path: Path) -> tuple[Path, Path, Journal]:
    local, pool = tmp_path / "local", tmp_path / "pool"
    local.mkdir()
    pool.mkdir()
    return local, pool, Journal(str(local), str(pool))


def test_an_entry_lies_in_both_places_until_it_is_removed(tmp_path: Path) -> None:
    local, pool, both = local_and_pool(tmp_path)
    both.record("k", [FACT, FACT | {"major": 8}])
    assert journal.read_entries(str(local)) == journal.read_entries(str(pool)) == both.entries()
    (first, second) = both.entries()["k"]
    both.remove_entry("k", first)
    assert both.entries() == journal.read_entries(str(local)) == {"k": [second]}
    both.remove("k")
    assert (both.entries(), os.listdir(local), os.listdir(pool)) == ({}, [], [])


def test_what_an_older_agent_has_dealt_with_does_not_count(tmp_path: Path) -> None:
    local, pool, both = local_and_pool(tmp_path)
    both.record("dealt-with", [FACT])
    both.record("half", [FACT, FACT | {"major": 8}])
    journal.remove(str(pool), "dealt-with")
    half = journal.read_entries(str(pool))["half"]
    journal.remove_entry(str(pool), "half", half[0])
    assert both.entries() == {"half": [half[1]]}
    (local / ".later.frozen.json.abcdefgh").write_bytes(b"[")
    both.prepare()
    assert os.listdir(local) == ["half.frozen.json"]


def test_an_entry_of_one_place_counts(tmp_path: Path) -> None:
    local, pool, both = local_and_pool(tmp_path)
    journal.record(str(local), "later", [FACT])
    journal.record(str(pool), "earlier", [FACT])
    both.prepare()
    assert set(both.entries()) == {"later", "earlier"}
    assert both.path("later") == str(local / "later.frozen.json")
    assert both.path("earlier") == str(pool / "earlier.frozen.json")
    both.release()
    assert local.exists(), "it is not empty"
    both.remove("later")
    both.release()
    assert not local.exists()


def test_a_pool_without_a_directory_has_its_journal_on_the_node(tmp_path: Path) -> None:
    only = Journal(str(tmp_path))
    only.record("k", [FACT])
    assert only.entries() == {"k": [FACT]}
    only.prepare()
    assert only.entries() == {"k": [FACT]}

"""Freezes announced by this version or another: what counts is told, and what cannot be told is not forgotten."""

from pathlib import Path
from typing import Any

import pytest

from csi_driver.host.freeze import journal

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
    assert journal.announced(str(tmp_path)) == {"group": [later]}


def test_another_form_is_not_taken_back_piece_by_piece(tmp_path: Path) -> None:
    journal.record(str(tmp_path), "later", {"schema": 2, "boot": NOW})
    journal.remove_entry(str(tmp_path), "later", FACT)
    assert list(journal.announced(str(tmp_path))) == ["later"]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({"schema": 2, "boot": NOW, "mounts": []}, "has schema 2, and this driver reads 1"),
        ({"schema": 2}, "has schema 2, and this driver reads 1"),
        (None, "no list of freezes"),
        ({"boot": "before"}, "no list of freezes"),
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

"""Completed rollbacks as the PersistentVolume names them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.rollback_cases import SPEC, UID, volume

from csi_driver.domain.errors import Damaged
from csi_driver.operator.rollback.completed import COMPLETED_ANNOTATION, MOST_RECORDS, read_completed, record_completed


def test_used_names_are_read_as_they_were_written() -> None:
    written = record_completed(volume(), SPEC, "2027-01-01T00:00:00Z")
    read = read_completed(volume(metadata={"annotations": {COMPLETED_ANNOTATION: written}}))
    assert read["shop/back"].uid == UID
    assert read["shop/back"].snapshot == "s1"
    again = record_completed(
        volume(metadata={"annotations": {COMPLETED_ANNOTATION: written}}), replace(SPEC, uid="u2"), "later"
    )
    assert json.loads(again) == {"shop/back": {"uid": "u2", "snapshot": "s1", "at": "later"}}


def test_the_newest_names_are_remembered_in_bounded_space() -> None:
    text = ""
    for i in range(MOST_RECORDS + 5):
        spec = replace(SPEC, namespace="n" * 63, name=f"{i:03}" + "x" * 250, snapshot="s" * 253)
        text = record_completed(
            volume(metadata={"annotations": {COMPLETED_ANNOTATION: text}}), spec, "2027-01-01T00:00:00Z"
        )
    read = list(read_completed(volume(metadata={"annotations": {COMPLETED_ANNOTATION: text}})))
    assert len(read) == MOST_RECORDS
    assert read[0].startswith("n" * 63 + "/005")
    assert len(text) < 100 * 1024


@pytest.mark.parametrize("text", ["{", "[]", '{"shop/back": 1}', '{"shop/back": {"uid": "1"}}', "null"])
def test_names_that_cannot_be_read_may_be_spent(text: str) -> None:
    noted = volume(metadata={"name": "pvc-1", "annotations": {COMPLETED_ANNOTATION: text}})
    for read in (lambda: read_completed(noted), lambda: record_completed(noted, SPEC, "2027-01-01T00:00:00Z")):
        with pytest.raises(Damaged, match=r"tidemark.dev/rollbacks of PersistentVolume pvc-1: unreadable"):
            read()


def test_without_the_annotation_no_name_is_used() -> None:
    assert (
        read_completed(volume(metadata={"annotations": {COMPLETED_ANNOTATION: ""}})) == read_completed(volume()) == {}
    )
    assert read_completed(None) == {}

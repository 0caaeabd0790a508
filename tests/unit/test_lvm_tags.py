"""Records in tags of LVM: what is written is what is read; whatever else stands there is named, and never a crash."""

import random
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.domain.errors import Damaged
from csi_driver.domain.ids import Kind
from csi_driver.host.lvm.tags import (
    DRAFT,
    Tagged,
    additions,
    changes,
    from_tags,
    pool_of,
    pool_tag,
    records_of,
    to_tags,
)

ALLOWED = set(string.ascii_letters + string.digits + "._-+/=!:&#")
"""What lvm takes in a tag; a dash may not be the first."""
HASH, OTHER = "0123456789abcdef" * 2, "f" * 32

kinds: st.SearchStrategy[Kind] = st.sampled_from(["volume", "snapshot", "group"])
hashes = st.text("0123456789abcdef", min_size=32, max_size=32)
generations = st.integers(0, 10**12)
tag_texts = st.text(sorted(ALLOWED), min_size=1, max_size=120)
"""As somebody may have added them, or edited ours."""


def read(tags) -> tuple[Tagged | None, str]:
    """The record in the tags of a device, and why there is none."""
    try:
        return from_tags(tags, "fast/v-1"), ""
    except Damaged as error:
        return None, str(error)


@given(st.binary(max_size=6000), kinds, hashes, generations, st.randoms(), st.lists(tag_texts, max_size=5))
def test_a_record_is_read_as_it_was_written_among_tags_of_others(
    record, kind, digest, generation, order, foreign
) -> None:
    tags = to_tags(record, kind, digest, generation)
    for tag in tags:
        assert len(tag) < 1000
        assert set(tag) <= ALLOWED
        assert not tag.startswith("-")
    assert len(set(tags)) == len(tags)
    mixed = [*tags, DRAFT, *(tag for tag in foreign if not tag.startswith("tm."))]
    order.shuffle(mixed)
    assert from_tags(mixed, "fast/x") == (kind, digest, generation, record)


@given(st.lists(tag_texts | tag_texts.map("tm.".__add__), max_size=8))
def test_tags_that_no_driver_wrote_are_nothing_or_damaged_and_name_the_device(tags) -> None:
    found, refusal = read(tags)
    assert found is None
    assert refusal == "" or "fast/v-1" in refusal
    assert pool_of([tag for tag in tags if not tag.startswith("tidemark.pool=")]) is None


@given(st.binary(min_size=1, max_size=3000), st.data())
def test_an_edited_record_is_damaged_or_none_and_never_another(record, data) -> None:
    tags = to_tags(record, "volume", HASH, 7)
    at = data.draw(st.integers(0, len(tags) - 1))
    place = data.draw(st.integers(0, len(tags[at]) - 1))
    edited = [*tags]
    edited[at] = tags[at][:place] + data.draw(st.sampled_from(sorted(ALLOWED))) + tags[at][place + 1 :]
    found, refusal = read(edited)
    # An edit may make the tag a foreign one. A record that is read is the one that was written, of the same object.
    assert found in (None, ("volume", HASH, 7, record))
    assert refusal == "" or "fast/v-1" in refusal


@given(st.integers(), st.integers(0, 9))
def test_a_record_of_which_a_tag_is_missing_or_from_another_is_damaged(seed, at) -> None:
    noise = random.Random(seed)
    tags, others = (to_tags(noise.randbytes(2500), "volume", HASH, 3) for _ in range(2))
    at %= len(tags)
    with pytest.raises(Damaged, match=r"fast/v-1.*not whole"):
        from_tags(tags[:at] + tags[at + 1 :], "fast/v-1")
    with pytest.raises(Damaged, match="not whole"):
        from_tags([*tags[:at], others[at], *tags[at + 1 :]], "fast/v-1")


def test_a_large_record_has_several_tags() -> None:
    assert len(to_tags(random.Random(1).randbytes(5000), "group", HASH, 1)) > 3


def test_two_records_on_one_device_are_damaged_and_on_a_volume_group_they_are_two_groups() -> None:
    tags = [*to_tags(b"one", "group", HASH, 1), *to_tags(b"two", "group", OTHER, 4)]
    with pytest.raises(Damaged, match="several objects"):
        from_tags(tags, "fast/s-1")
    assert {(item.hash, item.generation, item.record) for item in records_of(tags)} == {
        (HASH, 1, b"one"),
        (OTHER, 4, b"two"),
    }


def test_a_record_that_unpacks_to_more_than_any_record_is_damaged() -> None:
    bomb = to_tags(bytes(5 << 20), "volume", HASH, 1)
    with pytest.raises(Damaged, match="does not end"):
        from_tags(bomb, "fast/v-1")


@given(st.sets(tag_texts), st.sets(tag_texts))
def test_the_arguments_of_a_change_make_one_set_of_tags_the_other(before, after) -> None:
    arguments = changes(before, after)
    tags = set(before)
    for option, tag in zip(arguments[::2], arguments[1::2], strict=True):
        (tags.discard if option == "--deltag" else tags.add)(tag)
    assert tags == after
    assert additions(sorted(after)) == changes((), after)


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=40) | st.integers(), max_size=6))
def test_a_pool_is_told_by_its_tag(identity) -> None:
    tag = pool_tag(identity)
    assert set(tag) <= ALLOWED
    assert pool_of(["others", tag]) == identity


@pytest.mark.parametrize("tag", ["tidemark.pool=", "tidemark.pool=!!", "tidemark.pool=W10", "tidemark.pool=e30x"])
def test_a_pool_s_tag_that_cannot_be_read_is_damaged(tag: str) -> None:
    with pytest.raises(Damaged, match=re.escape("volume group fast")):
        pool_of([tag], "fast")


def test_two_tags_of_a_pool_are_damaged() -> None:
    with pytest.raises(Damaged, match="2 tags"):
        pool_of([pool_tag({"name": "a"}), pool_tag({"name": "b"})], "fast")

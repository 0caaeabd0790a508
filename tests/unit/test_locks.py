"""Holds: all or none, never waited for, always given back."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.domain.errors import Busy
from csi_driver.service.locks import Locks

KEYS = st.sets(st.sampled_from("abcd"), max_size=3)


def free(locks: Locks) -> bool:
    try:
        with locks.hold("look", "abcd"):
            return True
    except Busy:
        return False


def settled(locks: Locks, key: str) -> bool:
    try:
        locks.settled(key)
    except Busy:
        return False
    return True


def test_exclusive_and_shared() -> None:
    locks = Locks()
    with locks.hold("first", ["a"], ["b"]):
        for refused in ((["a"], []), ([], ["a"]), (["b"], []), (["c", "a"], []), (["c"], ["a"])):
            with pytest.raises(Busy), locks.hold("second", *refused):
                pass
        with locks.hold("third", ["c"], ["b"]), locks.hold("fourth", [], ["b"]), pytest.raises(Busy):
            locks.hold("fifth", ["b"]).__enter__()
        with locks.hold("sixth", ["c"]):
            pass
    assert free(locks)


def test_who_is_refused_is_told_by_whom() -> None:
    locks = Locks()
    with (
        locks.hold("CreateSnapshot 's'", ["a"]),
        pytest.raises(Busy, match=r"CreateSnapshot 's' is in progress"),
        locks.hold("x", ["a"]),
    ):
        pass
    with locks.hold("x", [], ["a"]), pytest.raises(Busy, match="source of a copy"), locks.hold("y", ["a"]):
        pass


def test_what_is_made_or_deleted_is_held_alone_and_not_settled() -> None:
    locks = Locks()
    with locks.hold("DeleteVolume of v", ["b"], ["c"], existence=["a"]):
        with pytest.raises(Busy, match=r"DeleteVolume of v is in progress"):
            locks.settled("a")
        for other in "bc":
            locks.settled(other)
        with pytest.raises(Busy, match=r"DeleteVolume of v is in progress"), locks.hold("y", [], ["a"]):
            pass
    locks.settled("a")


def test_a_key_may_be_named_twice() -> None:
    locks = Locks()
    with locks.hold("x", ["a", "a"], ["a", "b", "b"]):
        with pytest.raises(Busy), locks.hold("y", [], ["a"]):
            pass
        with locks.hold("y", [], ["b"]):
            pass
    assert free(locks)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_given_back_whatever_happens(error: type[BaseException]) -> None:
    locks = Locks()
    with pytest.raises(error), locks.hold("x", ["a"], ["b"], ["c"]):
        raise error
    assert free(locks)
    assert settled(locks, "c")


@given(st.lists(st.tuples(KEYS, KEYS, KEYS, st.booleans()), max_size=12))
def test_against_a_model(wanted: list[tuple[set[str], set[str], set[str], bool]]) -> None:
    """Each of many comes, is let in or not, and may leave again, in any order."""
    locks = Locks()
    inside: list[tuple[set[str], set[str], set[str], Callable[[], object]]] = []
    for exclusive, shared, existence, leave in wanted:
        mine = exclusive | existence
        readers = shared - mine
        clash = any(mine & (e | s) or readers & e for e, s, _, _ in inside)
        stack = ExitStack()
        try:
            stack.enter_context(locks.hold("x", exclusive, shared, existence))
        except Busy:
            assert clash
        else:
            assert not clash
            inside.append((mine, readers, existence, stack.close))
        if leave and inside:
            inside.pop(0)[3]()
        assert {key for key in "abcd" if not settled(locks, key)} == {k for _, _, made, _ in inside for k in made}
    for _, _, _, close in inside:
        close()
    assert free(locks)

"""The sums behind an answer about capacity."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.domain.capacity import (
    GIB,
    MIB,
    CapacityPolicy,
    CapacityReport,
    Limit,
    Space,
    full_below,
    human,
    reserved_for_thick,
)
from csi_driver.domain.ids import ObjectId, name_hash
from csi_driver.domain.model import Volume, VolumeRequest

TIB = 1 << 40
BYTES = st.integers(0, 64 * TIB)
ACCOUNTS = st.builds(
    CapacityReport,
    st.builds(Space, BYTES, BYTES),
    st.builds(CapacityPolicy, st.floats(0.1, 100), st.none() | BYTES),
    BYTES,
    BYTES,
)


def volume(name: str, size: int, thick: bool = True) -> Volume:
    return Volume(
        ObjectId("n", "p", name_hash("volume", name)), name, f"uid-{name}", 0, size, VolumeRequest(name), thick=thick
    )


@pytest.mark.parametrize(
    ("total", "reserve"),
    [(0, 0), (300 * MIB, 30 * MIB), (GIB, GIB // 10), (10 * GIB, GIB), (20 * GIB, GIB), (40 * GIB, 2 * GIB)],
)
def test_the_reserve(total: int, reserve: int) -> None:
    assert CapacityPolicy().reserve_of(total) == reserve
    assert CapacityPolicy(reserve=5).reserve_of(total) == 5


@given(st.integers(300 * MIB, 64 * TIB))
def test_an_empty_pool_of_any_size_takes_volumes(total: int) -> None:
    """XFS itself takes a few per cent of a small one."""
    account = CapacityReport(Space(total, total * 9 // 10 + 1), CapacityPolicy(), 0, 0)
    assert account.available == 2 * total
    assert account.available_thick > total * 7 // 10


@given(st.integers(300 * MIB, 64 * TIB))
def test_a_pool_is_full_long_after_its_reserve_has_begun(total: int) -> None:
    assert full_below(total) < CapacityPolicy().reserve_of(total)
    account = CapacityReport(Space(total, full_below(total)), CapacityPolicy(), 0, 0)
    assert not account.full
    assert replace(account, space=Space(total, full_below(total) - 1)).full


def test_sizes_for_people() -> None:
    shown = [human(size) for size in (0, 4096, 3 << 29, 20 * GIB, 1 << 60)]
    assert shown == ["0 B", "4 KiB", "1.5 GiB", "20 GiB", "1024 PiB"]


@given(ACCOUNTS)
def test_what_is_available(account: CapacityReport) -> None:
    assert 0 <= account.available_thick <= account.available <= account.ceiling
    if account.below_reserve:
        assert account.available == 0
    else:
        assert account.available + account.committed >= account.ceiling
    if account.available_thick:
        assert account.available_thick + account.reserve + account.promised <= account.space.free


@given(ACCOUNTS, st.integers(1, TIB))
def test_a_promise_is_kept_out_of_the_next_answer(account: CapacityReport, size: int) -> None:
    after = replace(account, committed=account.committed + size)
    assert after.available == max(0, account.available - size)
    thick = replace(account, promised=account.promised + size)
    assert thick.available_thick <= max(0, account.space.free - account.reserve - account.promised - size)


def test_an_example() -> None:
    account = CapacityReport(Space(100 * GIB, 60 * GIB), CapacityPolicy(), 150 * GIB, 10 * GIB)
    assert account.reserve == 5 * GIB
    assert (account.ceiling, account.available, account.available_thick) == (200 * GIB, 50 * GIB, 45 * GIB)
    assert replace(account, space=Space(100 * GIB, 5 * GIB - 1)).available == 0
    assert replace(account, space=Space(100 * GIB, 5 * GIB)).available == 50 * GIB
    assert replace(account, committed=300 * GIB).available == 0


def test_what_thick_volumes_may_still_take() -> None:
    fresh, half, full, thin = (volume(n, 100, n != "thin") for n in ("fresh", "half", "full", "thin"))
    allocated = {half.id.hash: 50, full.id.hash: 120}
    assert reserved_for_thick([fresh, half, full, thin], allocated) == 100 + 50 + 0
    assert reserved_for_thick([], {}) == 0


@given(ACCOUNTS, st.integers(0, 100), st.integers(1, 100))
def test_a_limit_that_is_passed_refuses_like_the_reserve(account: CapacityReport, used: int, refuse_at: int) -> None:
    limit = Limit("metadata", used, 100, refuse_at)
    limited = replace(account, space=replace(account.space, limits=(Limit("area", 0, 1, 1), limit)))
    if used < refuse_at:
        assert limited.passed_limit is None
        assert limited.available == account.available
        assert limited.reservable == account.reservable
        assert limited.below_reserve == account.below_reserve
    else:
        assert limited.passed_limit is limit
        assert limited.below_reserve
        assert (limited.available, limited.available_thick, limited.available_thick_later) == (0, 0, 0)
        assert f"metadata is {used}% used" in limited.state

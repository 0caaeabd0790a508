"""Holds: all or none, waited for while they are short, always given back."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.domain.errors import Busy
from csi_driver.service import locks as module
from csi_driver.service.locks import Locks

KEYS = st.sets(st.sampled_from("abcd"), max_size=3)
LONG = 3600.0
"""Seconds for which a lock is never waited for in a test: whoever does so is woken, or the test hangs and fails."""


def impatient() -> Locks:
    """Holds that nobody waits for."""
    return Locks(patience=0.0)


async def free(locks: Locks) -> bool:
    try:
        async with locks.hold("look", "abcd"):
            return True
    except Busy:
        return False


async def settled(locks: Locks, key: str) -> bool:
    try:
        await locks.ensure_not_changing(key)
    except Busy:
        return False
    return True


async def is_refused(locks: Locks, *wanted: Sequence[str], match: str = "") -> None:
    with pytest.raises(Busy, match=match):
        async with locks.hold("refused", *wanted):
            pass


async def test_exclusive_and_shared() -> None:
    locks = impatient()
    async with locks.hold("first", ["a"], ["b"]):
        for refused in ((["a"], []), ([], ["a"]), (["b"], []), (["c", "a"], []), (["c"], ["a"])):
            await is_refused(locks, *refused)
        async with locks.hold("third", ["c"], ["b"]), locks.hold("fourth", [], ["b"]):
            await is_refused(locks, ["b"])
        async with locks.hold("sixth", ["c"]):
            pass
    assert await free(locks)


async def test_who_is_refused_is_told_by_whom() -> None:
    locks = impatient()
    async with locks.hold("CreateSnapshot 's'", ["a"]):
        await is_refused(locks, ["a"], match=r"CreateSnapshot 's' is in progress")
    async with locks.hold("x", [], ["a"]):
        await is_refused(locks, ["a"], match="source of a clone")


async def test_what_is_made_or_deleted_is_held_alone_and_not_settled() -> None:
    locks = impatient()
    async with locks.hold("DeleteVolume of v", ["b"], ["c"], creating_or_deleting=["a"]):
        with pytest.raises(Busy, match=r"DeleteVolume of v is in progress"):
            await locks.ensure_not_changing("a")
        for other in "bc":
            await locks.ensure_not_changing(other)
        await is_refused(locks, [], ["a"], match=r"DeleteVolume of v is in progress")
    await locks.ensure_not_changing("a")


async def test_a_key_may_be_named_twice() -> None:
    locks = impatient()
    async with locks.hold("x", ["a", "a"], ["a", "b", "b"]):
        await is_refused(locks, [], ["a"])
        async with locks.hold("y", [], ["b"]):
            pass
    assert await free(locks)


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_given_back_whatever_happens(error: type[BaseException]) -> None:
    locks = impatient()
    with pytest.raises(error):
        async with locks.hold("x", ["a"], ["b"], ["c"]):
            raise error
    assert await free(locks)
    assert await settled(locks, "c")


@given(st.lists(st.tuples(KEYS, KEYS, KEYS, st.booleans()), max_size=12))
def test_against_a_model(wanted: list[tuple[set[str], set[str], set[str], bool]]) -> None:
    """Each of many comes, is let in or not, and may leave again, in any order."""
    asyncio.run(_against_a_model(wanted))


async def _against_a_model(wanted: list[tuple[set[str], set[str], set[str], bool]]) -> None:
    locks = impatient()
    inside: list[tuple[set[str], set[str], set[str], AsyncExitStack]] = []
    for exclusive, shared, existence, leave in wanted:
        mine = exclusive | existence
        readers = shared - mine
        clash = any(mine & (e | s) or readers & e for e, s, _, _ in inside)
        stack = AsyncExitStack()
        try:
            await stack.enter_async_context(locks.hold("x", exclusive, shared, existence))
        except Busy:
            assert clash
        else:
            assert not clash
            inside.append((mine, readers, existence, stack))
        if leave and inside:
            await inside.pop(0)[3].aclose()
        assert {key for key in "abcd" if not await settled(locks, key)} == {k for _, _, made, _ in inside for k in made}
    for *_, stack in inside:
        await stack.aclose()
    assert await free(locks)


# ---- waiting


class Held:
    """A call that holds something until it is let go."""

    def __init__(self, locks: Locks, *wanted: Sequence[str]) -> None:
        self._locks, self._wanted = locks, wanted
        self.has_it, self.let_go = asyncio.Event(), asyncio.Event()
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        async with self._locks.hold("Held", *self._wanted):
            self.has_it.set()
            await self.let_go.wait()


@asynccontextmanager
async def held(locks: Locks, *wanted: Sequence[str]) -> AsyncIterator[Held]:
    call = Held(locks, *wanted)
    await call.has_it.wait()
    try:
        yield call
    finally:
        call.let_go.set()
        await call.task


async def a_while() -> None:
    """Every task that can go on has gone on."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("first", "second"),
    [((["a"],), (["a"],)), ((["a"],), ([], ["a"])), (([], ["a"]), (["a"],)), (([], [], ["a"]), ([], [], ["a", "b"]))],
    ids=["exclusive", "reader", "behind a reader", "existence"],
)
async def test_who_meets_a_short_one_waits_for_it(first: Sequence[list[str]], second: Sequence[list[str]]) -> None:
    locks = Locks(patience=LONG)
    async with held(locks, *first) as one, held(locks, ["z"]) as other:
        two = Held(locks, *second)
        await a_while()
        assert not two.has_it.is_set()
        other.let_go.set()  # of no concern to it
        await a_while()
        assert not two.has_it.is_set()
        one.let_go.set()
        await two.has_it.wait()
    two.let_go.set()
    await two.task
    assert await free(locks)


async def test_whoever_asks_whether_it_exists_waits_for_its_end() -> None:
    locks = Locks(patience=LONG)
    async with held(locks, ["b"], [], ["a"]) as one:
        await locks.ensure_not_changing("b")
        asked = asyncio.ensure_future(locks.ensure_not_changing("a"))
        await a_while()
        assert not asked.done()
        one.let_go.set()
        await asked


async def test_many_wait_and_each_has_its_turn_in_order() -> None:
    locks, order = Locks(patience=LONG), []

    async def call(number: int) -> None:
        async with locks.hold(f"call {number}", ["a"], ["b"]):
            order.append(number)
            await asyncio.sleep(0)

    async with held(locks, ["a"]):
        calls = [asyncio.ensure_future(call(number)) for number in range(20)]
        await a_while()
    await asyncio.gather(*calls)
    assert order == list(range(20))
    assert await free(locks)


async def test_nobody_waits_for_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has run for longer than anybody waits is work, or hangs: who meets it is told so without a turn of the loop."""
    now = 0.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    locks = Locks(patience=LONG)
    async with held(locks, ["old"], ["read"], ["made"]):
        now = LONG
        async with held(locks, ["young"]):
            for keys in (["old"], ["read"], ["made"], ["young", "old"]):
                await at_once(is_refused(locks, keys))
            with pytest.raises(Busy):
                await at_once(locks.ensure_not_changing("made"))
            waiting = asyncio.ensure_future(is_refused(locks, ["young"]))
            await a_while()
            assert not waiting.done()
            waiting.cancel()
    assert await free(locks)


async def at_once(call: Coroutine[object, object, object]) -> None:
    """Run a call that may not wait for anything."""
    try:
        call.send(None)
    except StopIteration:
        return
    call.close()
    raise AssertionError("it waits")


async def test_a_wait_ends_by_itself() -> None:
    locks = Locks(patience=0.01)
    async with held(locks, ["a"]):
        await is_refused(locks, ["a"], match="Held is in progress")


async def test_a_wait_ends_though_each_that_it_waits_for_is_short() -> None:
    """One of its two objects is held at every moment, by a call that has only just begun."""
    locks = Locks(patience=0.05)
    holder = Held(locks, ["a"])
    await holder.has_it.wait()
    waiting = asyncio.ensure_future(is_refused(locks, ["a", "b"]))
    await a_while()
    for key in itertools.cycle("ba"):
        following = Held(locks, [key])
        await following.has_it.wait()
        holder.let_go.set()
        await holder.task
        holder = following
        await asyncio.sleep(0.001)
        if waiting.done():
            break
    holder.let_go.set()
    await holder.task
    await waiting
    assert await free(locks)


@pytest.mark.parametrize("woken", [False, True])
async def test_who_gives_up_waiting_leaves_nothing_behind(woken: bool) -> None:
    locks = Locks(patience=LONG)
    async with locks.hold("one", ["a"]):
        two, three = Held(locks, ["a"]), Held(locks, ["a"])
        await a_while()
        if not woken:
            two.task.cancel()
            await a_while()
    if woken:  # it has been told that it may look again, and had no turn since
        two.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await two.task
    await three.has_it.wait()
    three.let_go.set()
    await three.task
    assert await free(locks)


async def test_what_only_another_call_can_change_is_waited_for() -> None:
    locks = Locks(patience=LONG)
    forever = asyncio.get_running_loop().time() + LONG
    assert not await locks.wait_released("a", 0.0)
    waiting = asyncio.ensure_future(locks.wait_released("a", forever))
    async with held(locks, ["b"]):
        pass
    await a_while()
    assert not waiting.done()
    async with held(locks, ["a"]):
        await a_while()
        assert not waiting.done()
    assert await waiting

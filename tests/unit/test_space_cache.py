"""The space of a pool: how old an answer may be, and who asks."""

import asyncio

import pytest

from csi_driver.domain.capacity import Space
from csi_driver.domain.errors import Unavailable
from csi_driver.service.space_cache import SpaceCache


class Pool:
    """A backend whose answers take time, and tell how many there were."""

    def __init__(self) -> None:
        self.asked = 0
        self.now = 0.0
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None

    async def space(self) -> Space:
        self.asked += 1
        asked = self.asked
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return Space(100, asked)

    def cache(self, max_age: float) -> SpaceCache:
        return SpaceCache(self.space, max_age, lambda: self.now)


async def test_what_costs_nothing_is_asked_each_time() -> None:
    pool = Pool()
    cache = pool.cache(0)
    assert cache.last is None
    assert [(await cache.get()).free for _ in range(3)] == [1, 2, 3]
    assert cache.last == Space(100, 3)


async def test_an_answer_is_used_until_it_is_old_or_something_changes() -> None:
    pool = Pool()
    cache = pool.cache(10)
    assert [(await cache.get()).free for _ in range(3)] == [1, 1, 1]
    pool.now = 9.9
    assert (await cache.get()).free == 1
    pool.now = 10.0
    assert (await cache.get()).free == 2
    cache.changed()
    assert cache.last == Space(100, 2), "for figures it is good enough"
    assert (await cache.get()).free == 3


async def test_callers_share_an_answer_that_was_asked_for_after_the_last_change() -> None:
    pool = Pool()
    cache = pool.cache(10)
    pool.go.clear()
    before = [asyncio.ensure_future(cache.get()) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert pool.asked == 1
    cache.changed()
    after = asyncio.ensure_future(cache.get())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    pool.go.set()
    assert (await after).free == 2
    assert {(await waiting).free for waiting in before} == {2}, "what was asked before the change does not count"
    assert pool.asked == 2


async def test_a_caller_that_gives_up_takes_the_answer_from_nobody() -> None:
    pool = Pool()
    cache = pool.cache(10)
    pool.go.clear()
    first, second = asyncio.ensure_future(cache.get()), asyncio.ensure_future(cache.get())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    pool.go.set()
    assert (await second).free == 1


async def test_an_error_is_everybodys_and_is_not_kept() -> None:
    pool = Pool()
    cache = pool.cache(10)
    pool.error = Unavailable("away")
    for result in await asyncio.gather(cache.get(), cache.get(), return_exceptions=True):
        assert isinstance(result, Unavailable)
    pool.error = None
    assert (await cache.get()).total == 100
    pool.error = Unavailable("away")
    cache.changed()
    with pytest.raises(Unavailable):
        await cache.get()

"""A informer is true: after a list, after changes, and after everything that can happen to a watch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.fake_api import Call, FakeApi, Fault, Object
from support.started import start_all
from support.waiting import until

from csi_driver.kube import client as api_module
from csi_driver.kube import informer as informer_module
from csi_driver.kube.informer import Informer
from csi_driver.kube.resources import NODES, PVCS, Kind


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer_module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(informer_module, "LONGEST_WAIT", 0.05)


@asynccontextmanager
async def started(fake: FakeApi, kind: Kind = NODES, **options: object) -> AsyncIterator[Informer]:
    informer = Informer(await fake.connect(), kind, **options)  # type: ignore[arg-type]
    await start_all([informer])
    while fake.watching == 0:
        await asyncio.sleep(0)
    yield informer
    await informer.stop()


def node(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": labels}}


async def heard(fake: FakeApi, informer: Informer) -> None:
    """A bookmark has reached the informer."""
    sent = time.monotonic()
    fake.bookmark()
    await until(lambda: time.monotonic() - informer.age >= sent)


def names(informer: Informer) -> set[str]:
    return {obj["metadata"]["name"] for obj in informer.all()}


async def test_a_list_and_then_changes(fake: FakeApi) -> None:
    fake.put(NODES, node("a"))
    seen: list[tuple[str, str]] = []
    async with started(fake) as informer:
        assert informer.has_synced
        assert names(informer) == {"a"}
        informer.subscribe(
            lambda old, new: seen.append(
                (
                    old["metadata"]["labels"].get("v", "-") if old else "",
                    new["metadata"]["labels"].get("v", "-") if new else "",
                )
            )
        )
        fake.put(NODES, node("b"))
        fake.change(NODES, "b", {"metadata": {"labels": {"v": "2"}}})
        fake.remove(NODES, "a")
        await until(lambda: names(informer) == {"b"} and informer.get("a") is None)
        found = informer.get("b")
        assert found is not None
        assert found["metadata"]["labels"] == {"v": "2"}
        assert informer.get("b", "elsewhere") is None
    assert seen == [("", "-"), ("", "-"), ("-", "2"), ("-", "")]
    assert len(fake.asked("list", NODES)) == len(fake.asked("watch", NODES)) == 1


async def test_what_is_kept_is_what_was_asked_for(fake: FakeApi) -> None:
    fake.put(PVCS, {"metadata": {"name": "c", "labels": {"l": "1"}, "managedFields": [{}]}, "spec": {"big": "x"}}, "ns")
    fake.put(PVCS, {"metadata": {"name": "c", "labels": {"l": "2"}}}, "ns")
    fake.put(PVCS, {"metadata": {"name": "d", "labels": {"l": "1"}, "managedFields": [{}]}, "spec": {"big": "x"}}, "ns")
    fake.put(PVCS, {"metadata": {"name": "d", "labels": {"l": "1"}}}, "elsewhere")
    options = {"namespace": "ns", "labels": "l=1", "transform": lambda obj: {"metadata": obj["metadata"]}}
    async with started(fake, PVCS, **options) as informer:
        assert set(informer.get("d", "ns") or ()) == {"metadata"}
        assert "managedFields" not in (informer.get("d", "ns") or {})["metadata"]
        assert len(informer.all()) == 1
        fake.change(PVCS, "c", {"metadata": {"labels": {"l": "1"}}}, "ns")
        fake.change(PVCS, "d", {"metadata": {"labels": {"l": "2"}}}, "ns")  # leaves the selection: gone from here
        await until(lambda: names(informer) == {"c"})


async def test_a_watch_that_is_cut_goes_on_where_it_was(fake: FakeApi) -> None:
    async with started(fake) as informer:
        fake.put(NODES, node("a"))
        await until(lambda: names(informer) == {"a"})
        fake.cut_watches()
        fake.put(NODES, node("b"))
        await until(lambda: names(informer) == {"a", "b"})
        assert len(fake.asked("list", NODES)) == 1


async def test_a_version_that_the_api_has_forgotten(fake: FakeApi) -> None:
    """Listed again; what came and went meanwhile is told as if it had been watched."""
    fake.put(NODES, node("a"))
    told: list[tuple[object, object]] = []
    async with started(fake) as informer:
        informer.subscribe(
            lambda old, new: told.append((old and old["metadata"]["name"], new and new["metadata"]["name"]))
        )
        await fake.deaf()
        fake.remove(NODES, "a")
        fake.put(NODES, node("b"))
        fake.forget()
        await fake.listen(fake.port)
        await until(lambda: names(informer) == {"b"})
        assert len(fake.asked("list", NODES)) == 2
    assert told == [(None, "a"), (None, "b"), ("a", None)]


async def test_a_watch_that_dies_quietly_is_noticed(fake: FakeApi) -> None:
    async with started(fake, quiet=0.3) as informer:
        fake.silent = True
        fake.put(NODES, node("a"))
        await until(lambda: len(fake.asked("watch", NODES)) > 1)
        fake.silent = False
        await until(lambda: names(informer) == {"a"})


async def test_a_kind_of_which_nothing_is_told_is_known_to_be_quiet(
    fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No bookmark either: the end of each watch is the sign of life, and nothing is listed again for it."""
    monkeypatch.setattr(informer_module, "WATCH_SECONDS", 1.0)
    async with started(fake) as informer:
        began = time.monotonic()
        await until(lambda: len(fake.asked("watch", NODES)) > 2)
        assert time.monotonic() - informer.age > began
        assert len(fake.asked("list", NODES)) == 1
        fake.put(NODES, node("a"))
        await until(lambda: names(informer) == {"a"})


async def test_the_age_says_whether_it_can_be_trusted(fake: FakeApi) -> None:
    api = await fake.connect()
    assert Informer(api, NODES).age == float("inf")
    async with started(fake) as informer:
        await heard(fake, informer)
        fake.silent = True
        fake.bookmark()
        old = informer.age
        await asyncio.sleep(0.02)
        assert informer.age > old


async def test_a_bookmark_saves_a_list(fake: FakeApi) -> None:
    async with started(fake) as informer:
        await heard(fake, informer)
        fake.forget()
        fake.cut_watches()
        fake.put(NODES, node("a"))
        await until(lambda: names(informer) == {"a"})
        assert len(fake.asked("list", NODES)) == 1


async def test_it_is_read_again_from_time_to_time(fake: FakeApi) -> None:
    async with started(fake, resync=0.2) as informer:
        fake.silent = True
        fake.put(NODES, node("lost by the watch"))
        await until(lambda: names(informer) == {"lost by the watch"})


async def test_an_api_that_refuses_is_asked_again(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "PAGE", 1)
    refusals = [Fault(503), Fault(403, "Forbidden", "no"), Fault(410), Fault(500)]

    def refuse(call: Call) -> None:
        if refusals and call.verb == "list" and (call.query.get("continue") or len(refusals) > 2):
            raise refusals.pop(0)

    fake.hooks.append(refuse)
    for name in ("a", "b"):
        fake.put(NODES, node(name))
    async with started(fake) as informer:
        assert names(informer) == {"a", "b"}
        assert refusals == []


async def test_a_kind_that_comes_later(fake: FakeApi) -> None:
    fake.unserved.add(NODES)
    informer = Informer(await fake.connect(), NODES)
    informer.start()
    await until(lambda: fake.asked("list", NODES))
    assert not informer.has_synced
    fake.unserved.clear()
    await informer.wait_synced()
    await informer.stop()


async def test_a_subscriber_that_fails_stops_nobody(fake: FakeApi) -> None:
    told: list[object] = []
    async with started(fake) as informer:
        informer.subscribe(lambda old, new: 1 // 0)
        informer.subscribe(lambda old, new: told.append(new))
        fake.put(NODES, node("a"))
        await until(lambda: told)

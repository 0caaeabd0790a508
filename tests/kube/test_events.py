"""Events: what is told about an object is there to read, and nothing that goes wrong with it harms the teller."""

from __future__ import annotations

from support.fake_api import Call, FakeApi, Fault

from csi_driver.kube.events import Events
from csi_driver.kube.resources import EVENTS, NODES, PVCS


async def test_the_same_words_are_counted(fake: FakeApi) -> None:
    claim = fake.put(PVCS, {"metadata": {"name": "c"}}, "ns")
    events = Events(await fake.connect(), "tidemark", "pod-1")
    for _ in range(3):
        await events.emit(claim, "Warning", "Full", "no room on n1")
    await events.emit(claim, "Warning", "Full", "no room on n2")
    found = {one["message"]: one for one in fake.all(EVENTS)}
    assert {text: one["count"] for text, one in found.items()} == {"no room on n1": 3, "no room on n2": 1}
    event = found["no room on n1"]
    assert event["involvedObject"]["uid"] == claim["metadata"]["uid"]
    assert (event["involvedObject"]["kind"], event["involvedObject"]["namespace"]) == ("PersistentVolumeClaim", "ns")
    assert (event["type"], event["reason"]) == ("Warning", "Full")
    assert event["source"] == {"component": "tidemark", "host": "pod-1"}

    again = Events(await fake.connect(), "tidemark", "pod-2")  # after a restart, or as the next leader
    await again.emit(claim, "Warning", "Full", "no room on n1")
    assert {one["message"]: one["count"] for one in fake.all(EVENTS)}["no room on n1"] == 4


async def test_an_event_that_the_api_let_go_is_made_again(fake: FakeApi) -> None:
    claim = fake.put(PVCS, {"metadata": {"name": "c"}}, "ns")
    events = Events(await fake.connect(), "tidemark")
    await events.emit(claim, "Normal", "Made", "done")
    fake.remove(EVENTS, fake.all(EVENTS)[0]["metadata"]["name"], "ns")
    await events.emit(claim, "Normal", "Made", "done")
    assert [one["count"] for one in fake.all(EVENTS)] == [1]


async def test_events_of_what_has_no_namespace(fake: FakeApi) -> None:
    node = fake.put(NODES, {"metadata": {"name": "n" * 253}})
    await Events(await fake.connect(), "tidemark").emit(node, "Normal", "Seen", "x" * 5000)
    (event,) = fake.all(EVENTS)
    assert event["metadata"]["namespace"] == "default"
    assert len(event["metadata"]["name"]) <= 253
    assert len(event["message"]) == 1024


async def test_an_event_is_never_worth_a_failure(fake: FakeApi) -> None:
    def refuse(call: Call) -> None:
        raise Fault(403, "Forbidden", "no right to make events")

    fake.hooks.append(refuse)
    events = Events(await fake.connect(), "tidemark")
    await events.emit({"metadata": {"name": "c"}}, "Normal", "Made", "done")
    await events.emit({}, "Normal", "Made", "done")
    assert fake.all(EVENTS) == []

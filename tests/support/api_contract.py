"""What the controller relies on of a Kubernetes API: asked of the one in memory, and of a real one on the test cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from csi_driver.domain.errors import AlreadyExists, NotFound
from csi_driver.kube import client as api_module
from csi_driver.kube import leader_election
from csi_driver.kube.client import Api, Object
from csi_driver.kube.errors import ApiRejected, Conflict
from csi_driver.kube.events import Events
from csi_driver.kube.informer import Informer
from csi_driver.kube.leader_election import LeaderElector
from csi_driver.kube.resources import CONFIG_MAPS, EVENTS, LEASES, NODES
from support.started import start_all
from support.waiting import until

Check = Callable[[Api, str], Awaitable[None]]
MARK = {"of": "contract"}
OURS = "of=contract"


def config_map(name: str, **data: str) -> Object:
    return {"kind": "ConfigMap", "metadata": {"name": name, "labels": MARK}, "data": data}


async def changes_carry_a_version(api: Api, namespace: str) -> None:
    made = await api.create(CONFIG_MAPS, config_map("versions", a="1", b="2"), namespace)
    assert made["kind"] == "ConfigMap"
    with pytest.raises(AlreadyExists):
        await api.create(CONFIG_MAPS, config_map("versions"), namespace)
    patched = await api.patch(CONFIG_MAPS, "versions", {"data": {"a": None, "c": "3"}}, namespace)
    assert patched["data"] == {"b": "2", "c": "3"}
    old = made["metadata"]["resourceVersion"]
    with pytest.raises(Conflict):
        await api.replace(CONFIG_MAPS, made)
    stale = {"metadata": {"resourceVersion": old}, "data": {"d": "4"}}
    with pytest.raises(Conflict):
        await api.patch(CONFIG_MAPS, "versions", stale, namespace)
    with pytest.raises(Conflict):
        await api.delete(CONFIG_MAPS, "versions", namespace, resource_version=old)
    with pytest.raises(Conflict):
        await api.delete(CONFIG_MAPS, "versions", namespace, uid="0" * 8)
    same = await api.patch(CONFIG_MAPS, "versions", {"data": {"c": "3"}}, namespace)
    assert same["metadata"]["resourceVersion"] == patched["metadata"]["resourceVersion"]  # nothing changed
    patched["data"] = {"e": "5"}
    assert (await api.replace(CONFIG_MAPS, patched))["data"] == {"e": "5"}
    assert await api.delete(CONFIG_MAPS, "versions", namespace, uid=made["metadata"]["uid"])
    assert not await api.delete(CONFIG_MAPS, "versions", namespace)


async def what_is_not_there(api: Api, namespace: str) -> None:
    assert await api.get(CONFIG_MAPS, "absent", namespace) is None
    with pytest.raises(NotFound):
        await api.patch(CONFIG_MAPS, "absent", {"data": {}}, namespace)
    assert await api.served("", "v1", "nodes")
    assert await api.served("coordination.k8s.io", "v1", "leases")
    assert not await api.served("absent.example", "v1", "things")


async def a_finalizer_holds_an_object(api: Api, namespace: str) -> None:
    body = config_map("held")
    body["metadata"]["finalizers"] = ["tidemark.dev/contract"]
    await api.create(CONFIG_MAPS, body, namespace)
    assert await api.delete(CONFIG_MAPS, "held", namespace)
    found = await api.get(CONFIG_MAPS, "held", namespace)
    assert found is not None
    assert "deletionTimestamp" in found["metadata"]
    await api.patch(CONFIG_MAPS, "held", {"metadata": {"finalizers": None}}, namespace)
    assert await api.get(CONFIG_MAPS, "held", namespace) is None


async def lists_are_paged_and_selected(api: Api, namespace: str) -> None:
    names = []
    for number in range(7):
        body = config_map("")
        body["metadata"] = {"generateName": "page-", "labels": {**MARK, "odd": str(number % 2)}}
        names.append((await api.create(CONFIG_MAPS, body, namespace))["metadata"]["name"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api_module, "PAGE", 3)
        pages = [len(items) async for items, _ in api.pages(CONFIG_MAPS, namespace, labels="odd")]
        found = await api.list(CONFIG_MAPS, namespace, labels="odd")
    assert pages == [3, 3, 1]
    assert {one["metadata"]["name"] for one in found} == set(names)
    assert {(one["kind"], one["apiVersion"]) for one in found} == {("ConfigMap", "v1")}
    assert len(await api.list(CONFIG_MAPS, namespace, labels="of=contract,odd in (1)")) == 3
    assert len(await api.list(CONFIG_MAPS, namespace, fields=f"metadata.name={names[0]}")) == 1
    for name in names:
        await api.delete(CONFIG_MAPS, name, namespace)


async def an_informer_follows(api: Api, namespace: str) -> None:
    await api.create(CONFIG_MAPS, config_map("first", a="1"), namespace)
    informer = Informer(api, CONFIG_MAPS, namespace, labels=OURS)
    seen: list[tuple[str, str]] = []
    informer.subscribe(lambda old, new: seen.append((str(old and old["data"]), str(new and new["data"]))))
    await start_all([informer])
    await api.create(CONFIG_MAPS, config_map("second", b="1"), namespace)
    await api.patch(CONFIG_MAPS, "second", {"data": {"b": "2"}}, namespace)
    await api.patch(CONFIG_MAPS, "first", {"metadata": {"labels": {"of": "others"}}}, namespace)
    await api.delete(CONFIG_MAPS, "second", namespace)
    await until(lambda: len(seen) >= 5)
    assert seen == [
        ("None", "{'a': '1'}"),
        ("None", "{'b': '1'}"),
        ("{'b': '1'}", "{'b': '2'}"),
        ("{'a': '1'}", "None"),
        ("{'b': '2'}", "None"),
    ]
    assert informer.all() == []
    await informer.stop()
    await api.delete(CONFIG_MAPS, "first", namespace)


async def events_are_counted(api: Api, namespace: str) -> None:
    about = await api.create(CONFIG_MAPS, config_map("told"), namespace)
    for events in (Events(api, "contract"), Events(api, "contract")):
        await events.emit(about, "Normal", "Contract", "the same words")
    (event,) = await api.list(EVENTS, namespace, fields="involvedObject.name=told")
    assert (event["count"], event["reason"]) == (2, "Contract")
    await api.delete(CONFIG_MAPS, "told", namespace)


async def one_leads(api: Api, namespace: str) -> None:
    told: list[str] = []

    async def lead(name: str) -> None:
        told.append(name)
        await asyncio.Event().wait()

    with pytest.MonkeyPatch.context() as patch:
        # A machine that is busy with other tests must not decide whether the lease is given back.
        patch.setattr(leader_election, "RELEASE_SECONDS", 20.0)
        tasks = []
        for name in ("a", "b"):
            leader = LeaderElector(api, namespace, "contract", name, retry=0.1)
            tasks.append(asyncio.create_task(leader.run(lambda name=name: lead(name))))
            await until(lambda: told)
        assert told == ["a"]
        for task in tasks:
            task.cancel()
            await asyncio.wait({task})
            if task is tasks[0]:
                await until(lambda: told == ["a", "b"])
    lease = await api.get(LEASES, "contract", namespace)
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == ""


async def a_refusal_has_its_reason(api: Api, namespace: str) -> None:
    with pytest.raises(ApiRejected) as caught:
        await api.create(CONFIG_MAPS, config_map("Not_A_Name"), namespace)
    assert caught.value.status == 422
    assert "Not_A_Name" in str(caught.value)
    assert isinstance(await api.list(NODES), list)


CHECKS: list[Check] = [
    changes_carry_a_version,
    what_is_not_there,
    a_finalizer_holds_an_object,
    lists_are_paged_and_selected,
    an_informer_follows,
    events_are_counted,
    one_leads,
    a_refusal_has_its_reason,
]

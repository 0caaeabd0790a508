"""The API client: what each answer of an API server becomes for a caller."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from aiohttp import web
from support.api_contract import CHECKS, Check
from support.fake_api import Call, FakeApi, Fault

from csi_driver.domain.errors import Precondition, Unavailable
from csi_driver.kube import client as api_module
from csi_driver.kube.client import Api
from csi_driver.kube.errors import ApiRejected, ResourceVersionExpired
from csi_driver.kube.resources import NODES, PVCS, PVS, ROLLBACKS, SNAPSHOTS, Kind


def claim(name: str, **labels: str) -> dict[str, object]:
    return {"metadata": {"name": name, "labels": labels}, "spec": {"storageClassName": "tidemark"}}


def test_paths() -> None:
    assert NODES.path("ignored", "n 1") == "/api/v1/nodes/n%201"
    assert PVCS.path() == "/api/v1/persistentvolumeclaims"
    assert PVCS.path("a/b", "c", "status") == "/api/v1/namespaces/a%2Fb/persistentvolumeclaims/c/status"
    assert str(SNAPSHOTS) == "volumesnapshots.snapshot.storage.k8s.io"
    assert Kind("g", "v1", "things", namespaced=False).path(name="x") == "/apis/g/v1/things/x"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_contract(fake: FakeApi, check: Check) -> None:
    await check(await fake.connect(), "ns")


async def test_status_is_written_apart(fake: FakeApi) -> None:
    api = await fake.connect()
    made = await api.create(ROLLBACKS, {"metadata": {"name": "r"}, "spec": {"a": 1}, "status": {"phase": "x"}}, "ns")
    assert "status" not in made
    await api.patch(ROLLBACKS, "r", {"status": {"phase": "Pending"}, "spec": {"a": 2}}, "ns", "status")
    await api.patch(ROLLBACKS, "r", {"status": {"phase": "no"}, "metadata": {"labels": {"l": "1"}}}, "ns")
    found = await api.get(ROLLBACKS, "r", "ns")
    assert found is not None
    assert (found["status"], found["spec"]) == ({"phase": "Pending"}, {"a": 1})
    found["status"]["phase"] = "Completed"
    assert (await api.replace(ROLLBACKS, found, "status"))["status"] == {"phase": "Completed"}


async def test_lists_are_paged_and_selected(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "PAGE", 3)
    for number in range(8):
        fake.put(PVCS, claim(f"c{number}", odd=str(number % 2)), "a" if number < 6 else "b")
    api = await fake.connect()
    assert [one["metadata"]["name"] for one in await api.list(PVCS)] == [f"c{n}" for n in range(8)]
    assert len(fake.asked("list", PVCS)) == 3
    found = await api.list(PVCS, "a", labels="odd=1")
    assert [one["metadata"]["name"] for one in found] == ["c1", "c3", "c5"]
    assert {one["kind"] for one in found} == {"PersistentVolumeClaim"}  # a built-in list's items do not say it
    assert [one["metadata"]["name"] for one in await api.list(PVCS, fields="metadata.name=c7")] == ["c7"]
    pages = api.pages(PVCS)
    await anext(pages)
    fake.put(NODES, {"metadata": {"name": "n"}})
    fake.forget()
    with pytest.raises(ResourceVersionExpired):
        await anext(pages)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Unavailable),
        (403, ApiRejected),
        (422, ApiRejected),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
async def test_refusals(fake: FakeApi, status: int, kind: type[Exception]) -> None:
    def refuse(call: Call) -> None:
        raise Fault(status, "Why", "the words of the API")

    fake.hooks.append(refuse)
    api = await fake.connect()
    for call in (api.get(NODES, "n"), api.list(NODES), api.create(NODES, {}), api.patch(NODES, "n", {})):
        with pytest.raises(kind, match="the words of the API") as caught:
            await call
    if kind is ApiRejected:
        assert caught.value.status == status  # type: ignore[attr-defined]


async def test_an_api_that_is_away_and_comes_back(fake: FakeApi) -> None:
    api = await fake.connect()
    await api.list(NODES)
    await fake.deaf()
    await api.close()  # connections that stand would be served on
    api = await fake.connect()
    with pytest.raises(Unavailable, match="cannot reach"):
        await api.get(NODES, "n")
    await fake.listen(fake.port)
    assert await api.get(NODES, "n") is None


async def test_what_the_cluster_serves(fake: FakeApi) -> None:
    fake.unserved.add(SNAPSHOTS)
    api = await fake.connect()
    assert await api.served("", "v1", "nodes")
    assert await api.served("snapshot.storage.k8s.io", "v1", "volumesnapshotcontents")
    assert not await api.served("snapshot.storage.k8s.io", "v1", "volumesnapshots")
    assert not await api.served("groupsnapshot.storage.k8s.io", "v1beta1", "volumegroupsnapshots")


@pytest.fixture
async def proxy() -> AsyncIterator[tuple[str, list[str]]]:
    """A proxy that passes nothing on; what it was asked for."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readline()).decode().strip())
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


@pytest.fixture
def ambient(proxy: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    """That proxy as a pod has the cluster's, for what leaves the cluster; Python knows no CIDR in NO_PROXY."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, proxy[0])
        monkeypatch.setenv(name.upper(), proxy[0])
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.0/8,10.0.0.0/8")
    return proxy


async def test_no_proxy_of_the_environment_is_used(fake: FakeApi, ambient: tuple[str, list[str]]) -> None:
    _, asked = ambient
    fake.put(NODES, {"metadata": {"name": "n"}})
    api = await fake.connect()
    assert len(await api.list(NODES)) == 1
    async with aclosing(api.watch(NODES, "0")) as changes:
        assert (await anext(changes))[0] == "ADDED"
    assert asked == []


@pytest.fixture
async def issuer() -> AsyncIterator[tuple[str, list[str]]]:
    """Who renews tokens of OpenID; for which paths it was asked."""
    asked: list[str] = []

    async def serve(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path == "/token":
            return web.json_response({"id_token": "renewed", "refresh_token": "next"})
        return web.json_response({"token_endpoint": f"http://{request.host}/token"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    await runner.cleanup()


async def test_a_token_is_renewed_through_no_proxy_of_the_environment(
    fake: FakeApi, ambient: tuple[str, list[str]], issuer: tuple[str, list[str]], tmp_path: Path
) -> None:
    """By the client, in a session of its own. What comes after finds the variables as they were."""
    before = dict(os.environ)
    said = {"client-id": "a", "client-secret": "b", "idp-issuer-url": issuer[0], "refresh-token": "first"}
    user = {"auth-provider": {"name": "oidc", "config": said}}
    api = await Api.connect(fake.kubeconfig(tmp_path / "config", user))
    assert await api.list(PVS) == []
    await api.close()
    assert issuer[1] == ["/.well-known/openid-configuration", "/token"]
    assert ambient[1] == []
    assert dict(os.environ) == before


async def test_a_program_that_a_kubeconfig_calls_for_a_token_sees_the_proxy(
    fake: FakeApi, ambient: tuple[str, list[str]], tmp_path: Path
) -> None:
    """It is its user's, and may have to reach somebody far away."""
    version = "client.authentication.k8s.io/v1"
    credential = json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": {"token": "of-a-program"}})
    seen = tmp_path / "seen"
    script = f'printf %s "$https_proxy" >{shlex.quote(str(seen))}; printf %s {shlex.quote(credential)}'
    user = {"exec": {"apiVersion": version, "command": "sh", "args": ["-c", script]}}
    api = await Api.connect(fake.kubeconfig(tmp_path / "config", user))
    assert await api.list(PVS) == []
    await api.close()
    assert (seen.read_text(), ambient[1]) == (ambient[0], [])


async def test_a_proxy_that_is_asked_for_is_used(fake: FakeApi, proxy: tuple[str, list[str]], tmp_path: Path) -> None:
    url, asked = proxy
    api = await Api.connect(fake.kubeconfig(tmp_path / "config"), url)
    with pytest.raises(Unavailable):
        await api.get(NODES, "n")
    await api.close()
    assert asked == [f"GET http://127.0.0.1:{fake.port}/api/v1/nodes/n HTTP/1.1"]


async def test_configuration_from_a_file(fake: FakeApi, tmp_path: Path) -> None:
    api = await Api.connect(fake.kubeconfig(tmp_path / "config"))
    assert await api.list(PVS) == []
    await api.close()
    with pytest.raises(Precondition, match="missing: there is no such file; use --kubeconfig FILE"):
        await Api.connect(str(tmp_path / "missing"))
    for content in ("", "- a list", "no: [yaml"):
        (tmp_path / "other").write_text(content)
        with pytest.raises(Precondition, match="other: it is no kubeconfig; use --kubeconfig FILE"):
            await Api.connect(str(tmp_path / "other"))
    with pytest.raises(Precondition, match="service account"):
        await Api.connect()

"""The endpoint that the API server asks: over HTTPS, by the protocol of admission reviews, and never in the way."""

from __future__ import annotations

import asyncio
import json
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from csi_driver.domain.errors import Precondition, Unavailable
from csi_driver.kube import admission
from csi_driver.kube.admission import Webhook, patch
from csi_driver.kube.tls_secret import replace_atomically
from csi_driver.operator.certificates import ca

NAME = "tidemark-webhook.tidemark.svc"


class Served:
    """A webhook on a port, and an API server that trusts `root`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = ca.new_ca()
        self.seen: list[Any] = []
        self.answer: Mapping[str, str] | Exception = {}
        self.renew()
        self.webhook = Webhook(("127.0.0.1", 0), directory, self.annotate)

    def renew(self) -> None:
        pair = ca.issue(self.root, "controller.tidemark.internal", NAME)
        replace_atomically(
            self.directory, {"ca.crt": self.root.certificate, "tls.crt": pair.certificate, "tls.key": pair.key}
        )

    async def annotate(self, claim: Any) -> Mapping[str, str]:
        self.seen.append(claim)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def ask(self, body: Any, name: str = NAME) -> tuple[int, Any]:
        trust = ssl.create_default_context(cadata=self.root.certificate.decode())
        async with aiohttp.ClientSession() as session:
            where = f"https://127.0.0.1:{self.webhook.port}/pin"
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"Content-Type": "application/json"}
            async with session.post(where, data=data, ssl=trust, server_hostname=name, headers=headers) as answer:
                return answer.status, await answer.json() if answer.status == 200 else await answer.text()

    async def notes(self, **metadata: Any) -> Any:
        """What the API server would make of a claim's annotations."""
        status, answer = await self.ask(review(metadata))
        assert status == 200
        response = answer["response"]
        assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
        assert (response["uid"], response["allowed"]) == ("u-1", True)
        if "patch" not in response:
            return None
        assert response["patchType"] == "JSONPatch"
        return json.loads(b64decode(response["patch"]))


def review(metadata: Any) -> Any:
    request = {"uid": "u-1", "namespace": "app", "operation": "CREATE", "object": {"metadata": metadata, "spec": {}}}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setattr(admission, "POLL_SECONDS", 0.02)
    made = Served(tmp_path)
    running = asyncio.ensure_future(made.webhook.run())
    async with asyncio.timeout(60):
        while not made.webhook.port and not running.done():
            await asyncio.sleep(0.01)
    yield made
    running.cancel()
    await asyncio.wait([running])


async def test_a_claim_is_annotated(served: Served) -> None:
    served.answer = {"volume.kubernetes.io/selected-node": "n-1"}
    assert await served.notes(name="c") == [{"op": "add", "path": "/metadata/annotations", "value": served.answer}]
    path = "/metadata/annotations/volume.kubernetes.io~1selected-node"
    assert await served.notes(name="c", annotations={"a": "b"}) == [{"op": "add", "path": path, "value": "n-1"}]
    assert [claim["metadata"]["namespace"] for claim in served.seen] == ["app", "app"]
    assert patch({"metadata": {"annotations": {"a": "b"}}}, {"~": "x"})[0]["path"] == "/metadata/annotations/~0"


@pytest.mark.parametrize("trouble", [{}, Unavailable("the API is away"), RuntimeError("a mistake of ours")])
async def test_a_claim_without_a_pin_is_admitted_as_it_is(served: Served, trouble: Any) -> None:
    served.answer = trouble
    assert await served.notes(generateName="c-") is None


async def test_an_answer_that_does_not_come_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "ANSWER_SECONDS", 0.01)

    async def hang(claim: Any) -> Mapping[str, str]:
        await asyncio.Event().wait()
        return {}

    served.webhook._annotate = hang
    assert await served.notes(name="c") is None


@pytest.mark.parametrize("body", [b"", b"\xff", [], {}, {"request": None}, {"request": {"uid": "u", "object": None}}])
async def test_what_is_no_review(served: Served, body: Any) -> None:
    status, text = await served.ask(body)
    assert (status, text) == (400, "not an AdmissionReview of a PVC\n")
    assert served.seen == []


async def test_it_is_known_by_its_name_alone(served: Served) -> None:
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await served.ask(review({"name": "c"}), "another.tidemark.svc")


async def test_plain_text_is_not_served(served: Served) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"http://127.0.0.1:{served.webhook.port}/pin", json=review({"name": "c"}))
    assert served.seen == []


async def test_a_new_certificate_is_followed_and_a_wrong_one_is_not(served: Served) -> None:
    assert await served.notes(name="c") is None
    served.root = ca.new_ca()
    served.renew()
    async with asyncio.timeout(60):
        while True:
            try:
                assert await served.notes(name="c") is None
                break
            except aiohttp.ClientConnectorCertificateError:
                await asyncio.sleep(0.01)
    good = {name: (served.directory / name).read_bytes() for name in ("ca.crt", "tls.crt", "tls.key")}
    other = ca.issue(ca.new_ca(), "other")
    replace_atomically(served.directory, good | {"tls.crt": other.certificate})
    served.webhook._load()
    assert await served.notes(name="c") is None


async def test_a_taken_port_is_refused(served: Served) -> None:
    taken = Webhook(("127.0.0.1", served.webhook.port), served.directory, served.annotate)
    with pytest.raises(Precondition, match="cannot listen"):
        await taken.run()


async def test_it_waits_for_its_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "FIRST_POLL_SECONDS", 0.01)
    late = Served(tmp_path / "late")
    (tmp_path / "late" / "..data").rename(tmp_path / "away")
    running = asyncio.ensure_future(late.webhook.run())
    await asyncio.sleep(0.05)
    assert late.webhook.port == 0
    assert not running.done()
    late.renew()
    async with asyncio.timeout(60):
        while not late.webhook.port:
            await asyncio.sleep(0.01)
    assert await late.notes(name="c") is None
    running.cancel()
    await asyncio.wait([running])

"""A controller that makes its own certificates: from an empty namespace to calls over mutual TLS."""

from __future__ import annotations

import asyncio
import json
import ssl
from base64 import b64decode
from typing import Any

import aiohttp
from controller_rig import NAMESPACE, ControllerRig
from support.fake_api import FakeApi
from support.ports import free_port
from support.rpc_rig import create_volume, places
from support.topology_objects import NS, Objects, claim
from test_controller import http, until_ready

from csi_driver.kube.resources import MUTATING_WEBHOOKS, PODS, SECRETS
from csi_driver.kube.tls_secret import LOADED_PREFIX, TlsSecretFiles
from csi_driver.operator.installation import SELECTED_NODE
from csi_driver.rpc import tls


async def test_from_an_empty_namespace(fake: FakeApi) -> None:
    """Two replicas start at once; agents get what a kubelet would mount."""
    rig = ControllerRig(fake)
    own: dict[str, Any] = {"controller_secret": "", "agent_secret": "", "webhook_address": ("127.0.0.1", free_port())}
    fake.put(MUTATING_WEBHOOKS, {"metadata": {"name": "tidemark-pin"}, "webhooks": [{"name": "a", "clientConfig": {}}]})
    for pod in ("tidemark-controller-1", "tidemark-controller-2"):
        labels = {"app.kubernetes.io/name": "tidemark", "app.kubernetes.io/component": "controller"}
        fake.put(PODS, {"metadata": {"name": pod, "labels": labels}, "spec": {"nodeName": "n-1"}}, NAMESPACE)
    api = await fake.connect()
    kubelet = TlsSecretFiles(api, NAMESPACE, "tidemark-agent-tls", rig.root / "mounted")
    for agent in rig.agents.values():
        agent.identity = tls.TlsDirectory(rig.root / "mounted")
    first, second = await asyncio.gather(
        rig.start("csi", pod_name="tidemark-controller-1", certificates=str(rig.root / "own-1"), **own),
        rig.start(
            "csi-2",
            pod_name="tidemark-controller-2",
            certificates=str(rig.root / "own-2"),
            **{**own, "webhook_address": None},
        ),
    )
    rig.controller = first
    rig.connect("csi")
    following = asyncio.ensure_future(kubelet.run())
    try:
        async with asyncio.timeout(60):
            while not (rig.root / "mounted" / "tls.key").exists():
                await asyncio.sleep(0.05)
            for agent in rig.agents.values():
                await agent.pool.open()
                await agent.start()
                rig.add(agent)
            await until_ready(rig.identity)
            request = create_volume("v", accessibility_requirements=places("n-1"))
            assert (await rig.stub.CreateVolume(request)).volume.volume_id.startswith("n-1:")
            while len(told(fake)) < 2:
                await asyncio.sleep(0.05)
            assert len(set(told(fake).values())) == 1, "both replicas have loaded the same"
            assert (rig.root / "own-1" / "tls.crt").read_bytes() == (rig.root / "own-2" / "tls.crt").read_bytes()
            _, figures = await http(rig.controller.probes.port, "/metrics")
            for role in ("authority", "controller", "agent"):
                assert f'tidemark_certificate_expiry_timestamp_seconds{{role="{role}"}}' in figures
            assert await pinned(fake, own["webhook_address"][1]) == "n-1"
    finally:
        following.cancel()
        await second.stop()
        await rig.__aexit__()


async def pinned(fake: FakeApi, port: int) -> str:
    """As the API server asks: by the name and the authority in the webhook's configuration."""
    objects = Objects(fake)
    objects.snapshot("s", "n-1")
    review = {"request": {"uid": "u", "namespace": NS, "object": claim("c", snapshot="s")}}
    hook = fake.get(MUTATING_WEBHOOKS, "tidemark-pin")
    assert hook is not None
    bundle = b64decode(hook["webhooks"][0]["clientConfig"]["caBundle"]).decode()
    trust = ssl.create_default_context(cadata=bundle)
    async with aiohttp.ClientSession() as session:
        where, name = f"https://127.0.0.1:{port}/pin", "tidemark-webhook.tidemark.svc"
        while True:
            try:
                async with session.post(where, json=review, ssl=trust, server_hostname=name) as answer:
                    response = (await answer.json())["response"]
                break
            except aiohttp.ClientConnectorError:  # it looks for its certificate five times a second
                await asyncio.sleep(0.05)
    notes = json.loads(b64decode(response["patch"]))[0]["value"]
    return str(notes[SELECTED_NODE])


def told(fake: FakeApi) -> dict[str, str]:
    found = fake.get(SECRETS, "tidemark-controller-tls", NAMESPACE)
    notes = (found or {"metadata": {}})["metadata"].get("annotations", {})
    return {key: value for key, value in notes.items() if key.startswith(LOADED_PREFIX)}

"""Who may talk to an agent: its controllers, and nobody else in the cluster; also while the authority is replaced."""

import json
import subprocess
from base64 import b64decode
from typing import Any

import pytest
from rig.cluster import NAMESPACE, Cluster
from rig.images import TIDEMARK
from rig.kubectl import Document, Kubectl
from rig.objects import pod
from rig.paths import KUBECONFIG, programs

PYTHON = "/opt/tidemark/bin/python"

KNOCK = """
import asyncio, json, sys, grpc
from csi_driver._pb import csi_pb2, csi_pb2_grpc
from csi_driver.domain.errors import Unavailable
from csi_driver.rpc import tls
from csi_driver.rpc.clients.agent_channels import AgentChannels
from csi_driver.service.discovery import FixedDiscovery

given = json.loads(sys.stdin.read())
agent, controller = (tuple(part.encode() for part in given[role]) for role in ("agent", "controller"))

async def ask(credentials):
    options = [("grpc.ssl_target_name_override", tls.AGENT)]
    channel = (grpc.aio.secure_channel(given["address"], credentials, options=options) if credentials
               else grpc.aio.insecure_channel(given["address"]))
    async with channel:
        try:
            await csi_pb2_grpc.ControllerStub(channel).ListVolumes(csi_pb2.ListVolumesRequest(max_entries=1), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code().name
    return "OK"

class Fixed:
    def __init__(self, material):
        self.read = lambda: material

async def as_controller(server):
    # Something that answers on an agent's address, with a certificate of the right authority: is it taken for an agent?
    authority, certificate, key = server
    credentials = grpc.ssl_server_credentials([(key, certificate)], authority, True)
    fake = grpc.aio.server()
    csi_pb2_grpc.add_ControllerServicer_to_server(csi_pb2_grpc.ControllerServicer(), fake)
    port = fake.add_secure_port("127.0.0.1:0", credentials)
    await fake.start()
    agents = AgentChannels(FixedDiscovery({"fake": f"127.0.0.1:{port}"}), Fixed(controller))
    try:
        await agents.call("fake", "csi.v1.Controller/ListVolumes", csi_pb2.ListVolumesRequest(),
                          csi_pb2.ListVolumesResponse, 10)
    except Unavailable:
        return "refused"
    except grpc.aio.AioRpcError as error:
        return error.code().name
    finally:
        await agents.close()
        await fake.stop(None)

async def main():
    print(json.dumps({
        "plain text": await ask(None),
        "no certificate": await ask(grpc.ssl_channel_credentials(agent[0])),
        "an agent's": await ask(tls.channel_credentials(agent)),
        "a controller's": await ask(tls.channel_credentials(controller)),
        "a controller in an agent's place": await as_controller(controller),
        "an agent in its place": await as_controller(agent),
    }))

asyncio.run(main())
"""

CALL = """
import asyncio, json, sys, threading, grpc
from csi_driver._pb import csi_pb2, csi_pb2_grpc

async def main():
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    counted = {}
    async with grpc.aio.insecure_channel("unix:///csi/csi.sock") as channel:
        stub = csi_pb2_grpc.ControllerStub(channel)

        async def call():
            try:
                await stub.ListVolumes(csi_pb2.ListVolumesRequest(), timeout=30)
                code = "OK"
            except grpc.aio.AioRpcError as error:
                code = error.code().name + " " + (error.details() or "")
            counted[code] = counted.get(code, 0) + 1

        while not over.is_set() or sum(counted.values()) < 200:
            await asyncio.gather(*(call() for _ in range(4)))
            await asyncio.sleep(0.2)
    print(json.dumps(counted))

asyncio.run(main())
"""


def material(secret: Document) -> list[str]:
    return [b64decode(secret["data"][key]).decode() for key in ("ca.crt", "tls.crt", "tls.key")]


def test_nobody_but_a_controller_talks_to_an_agent(cluster: Cluster, kubectl: Kubectl) -> None:
    release = cluster.kubectl.within(NAMESPACE)
    agent = cluster.living("agent")[0]
    given = {
        "address": f"{agent['status']['podIP']}:9807",
        "agent": material(release.get("secret", "tidemark-agent-tls")),
        "controller": material(release.get("secret", "tidemark-controller-tls")),
    }
    kubectl.apply(pod("stranger", image=TIDEMARK, script="sleep 600"))
    kubectl.ready("stranger")
    output = json.loads(kubectl("exec", "-i", "stranger", "--", PYTHON, "-c", KNOCK, stdin=json.dumps(given)))
    assert output == {
        "plain text": "UNAVAILABLE",
        "no certificate": "UNAVAILABLE",
        "an agent's": "PERMISSION_DENIED",
        "a controller's": "OK",
        "a controller in an agent's place": "refused",
        "an agent in its place": "UNIMPLEMENTED",
    }


@pytest.mark.slow(seconds=240)
@pytest.mark.disturbs
@pytest.mark.timeout(600)
def test_the_authority_is_replaced_and_no_call_is_lost(cluster: Cluster) -> None:
    release = cluster.kubectl.within(NAMESPACE)
    before = release.get("secret", "tidemark-authority")["data"]["tls.crt"]
    callers = [calling(each["metadata"]["name"]) for each in cluster.living("controller")]
    try:
        release("annotate", "secret", "tidemark-authority", "tidemark.dev/rotate=now")
        release.until(lambda secret: replaced(secret, before), "secret", "tidemark-authority", seconds=400)
        # Every peer has what the new authority signed, and trusts it alone.
        authority = release.get("secret", "tidemark-authority")["data"]["tls.crt"]
        for name in ("tidemark-agent-tls", "tidemark-controller-tls"):
            assert release.get("secret", name)["data"]["ca.crt"] == authority
    finally:
        answers = [caller.communicate(timeout=120) for caller in callers]
    for caller, (output, complaint) in zip(callers, answers, strict=True):
        assert caller.returncode == 0, complaint
        counted = json.loads(output)
        assert list(counted) == ["OK"], counted
        assert counted["OK"] >= 200


def replaced(secret: Document, before: str) -> bool:
    data: dict[str, Any] = secret["data"]
    return data["tls.crt"] != before and not {"next.crt", "old.crt"} & set(data)


def calling(name: str) -> "subprocess.Popen[str]":
    """Calls through one controller, until its standard input is closed."""
    argv = [str(programs() / "kubectl"), f"--kubeconfig={KUBECONFIG}", f"--namespace={NAMESPACE}", "exec", "-i", name]
    argv += ["--container=controller", "--", PYTHON, "-c", CALL]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

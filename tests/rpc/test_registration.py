"""Registration with the kubelet: asked, refused, asked again; and a name that is never absent once it was there."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from support.kubelet import Kubelet
from support.rpc_rig import Rig

from csi_driver.domain.errors import Precondition
from csi_driver.rpc import kubelet_registration
from csi_driver.rpc.kubelet_registration import Registrar

NAME = "csi.tidemark.dev"
SOCKET = f"{NAME}-reg.sock"


@pytest.fixture
def registry() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tm-") as made:
        yield Path(made)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubelet_registration, "BACK_OFF", (0.01,))


@asynccontextmanager
async def registering(registry: Path, endpoint: str, reported: list[str] | None = None) -> AsyncIterator[Registrar]:
    made = Registrar(str(registry), NAME, endpoint, (reported if reported is not None else []).append)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await made.stop()


async def test_the_kubelet_takes_the_driver_on(rig: Rig, registry: Path) -> None:
    reported: list[str] = []
    async with Kubelet(registry) as kubelet:
        async with registering(registry, str(rig.server.path), reported):
            await kubelet.until("registered", SOCKET)
            assert kubelet.drivers == {NAME: "node-1"}
            assert reported == ["yes"]
            assert (registry / SOCKET).stat().st_mode & 0o777 == 0o600
        # Stopped, as for an upgrade: the name stays, so the node keeps the driver.
        assert [path.name for path in registry.iterdir()] == [SOCKET]
        assert kubelet.drivers == {NAME: "node-1"}
        async with registering(registry, str(rig.server.path)):
            await kubelet.until("registered", SOCKET, 2)
        assert [what for what, _ in kubelet.heard] == ["appeared", "registered"] * 2


async def test_a_refusal_is_reported_and_the_socket_made_again(rig: Rig, registry: Path) -> None:
    reported: list[str] = []
    async with Kubelet(registry) as kubelet:
        kubelet.refusals = ["the first reason", "the second"]
        async with registering(registry, str(rig.server.path), reported):
            await kubelet.until("registered", SOCKET)
            assert [what for what, _ in kubelet.heard] == ["appeared", "refused"] * 2 + ["appeared", "registered"]
            assert len(reported) == 3
            assert "the first reason" in reported[0]
            assert "the second" in reported[1]
            assert reported[2] == "yes"
            assert kubelet.drivers == {NAME: "node-1"}


async def test_a_wrong_endpoint_is_refused_in_the_kubelets_words(registry: Path) -> None:
    reported: list[str] = []
    async with Kubelet(registry) as kubelet, registering(registry, str(registry / "nobody.sock"), reported):
        await kubelet.until("refused", SOCKET, 2)
    assert "NodeGetInfo" in reported[0]
    assert kubelet.drivers == {}


async def test_a_kubelet_that_starts_later_or_again(rig: Rig, registry: Path) -> None:
    async with registering(registry, str(rig.server.path)):
        for _ in range(2):
            async with Kubelet(registry) as kubelet:
                await kubelet.until("registered", SOCKET)
                assert kubelet.drivers == {NAME: "node-1"}


@pytest.mark.parametrize("what", ["a killed agent's socket", "a file", "a leftover of a start"])
async def test_what_lies_there_is_replaced(rig: Rig, registry: Path, what: str) -> None:
    if what == "a file":
        (registry / SOCKET).write_text("x")
    else:
        name = SOCKET if "killed" in what else f".{NAME}-reg.0123abcd.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(registry / name))
    async with Kubelet(registry) as kubelet, registering(registry, str(rig.server.path)):
        await kubelet.until("registered", SOCKET)
        assert ("removed", SOCKET) not in kubelet.heard
    assert [path.name for path in registry.iterdir()] == [SOCKET]


async def test_a_kubelet_that_does_not_look(rig: Rig, registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubelet_registration, "SILENCE_SECONDS", 0.05)
    reported: list[str] = []
    async with registering(registry, str(rig.server.path), reported):
        async with asyncio.timeout(60):
            while not reported:
                await asyncio.sleep(0.01)
        assert "has not looked" in reported[0]
        async with Kubelet(registry) as kubelet:
            await kubelet.until("registered", SOCKET)
            async with asyncio.timeout(60):
                while reported[-1] != "yes":
                    await asyncio.sleep(0.01)
        # Once it has, it need not call again.
        await asyncio.sleep(0.2)
        assert reported[-1] == "yes"


def test_a_directory_that_is_not_there(registry: Path) -> None:
    with pytest.raises(Precondition, match="plugins_registry"):
        Registrar(str(registry / "nowhere"), NAME, "/csi.sock").check()

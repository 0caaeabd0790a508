from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from support.rpc_rig import Rig

from csi_driver._pb import csi_pb2, csi_pb2_grpc
from csi_driver.domain.errors import InvalidRequest, Precondition
from csi_driver.rpc.agent.identity import Identity
from csi_driver.rpc.server import Server, clear_stale, socket_path


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tm-") as made:
        yield Path(made)


def server(path: Path, name: str = "csi.tidemark.dev") -> Server:
    return Server(f"unix://{path}", [Identity(name, lambda: True)])


async def name_at(path: Path) -> str:
    async with grpc.aio.insecure_channel(f"unix://{path}") as channel:
        answer = await csi_pb2_grpc.IdentityStub(channel).GetPluginInfo(csi_pb2.GetPluginInfoRequest(), timeout=60)
        return answer.name


async def test_the_socket_is_private_and_goes_with_the_server(directory: Path) -> None:
    path = directory / "new" / "deeper" / "csi.sock"
    before = os.umask(0o022)
    try:
        made = server(path)
        await made.start()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert os.listdir(path.parent) == ["csi.sock"]
        assert await name_at(path) == "csi.tidemark.dev"
        await made.stop(0)
        await made.stop(0)
        assert os.listdir(path.parent) == []
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


async def test_an_existing_directory_is_left_as_it_is(directory: Path) -> None:
    directory.chmod(0o750)
    made = server(directory / "csi.sock")
    await made.start()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750
    await made.stop(0)


async def test_a_stale_socket_is_replaced(directory: Path) -> None:
    path = directory / "csi.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    made = server(path)
    await made.start()
    assert await name_at(path) == "csi.tidemark.dev"
    await made.stop(0)


async def test_a_live_socket_is_refused(directory: Path) -> None:
    path = directory / "csi.sock"
    first = server(path, "csi.first.dev")
    await first.start()
    with pytest.raises(Precondition, match="another process serves"):
        await server(path).start()
    assert await name_at(path) == "csi.first.dev"
    await first.stop(0)


async def test_a_live_socket_with_a_full_queue_is_live(directory: Path) -> None:
    path = directory / "csi.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path))
        listener.listen(0)
        waiting.connect(str(path))
        with pytest.raises(Precondition, match="another process serves"):
            clear_stale(path)
    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
async def test_what_is_no_socket_is_never_removed(directory: Path, kind: str) -> None:
    path = directory / "csi.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/etc/passwd")
    with pytest.raises(Precondition, match="is no socket"):
        await server(path).start()
    assert os.path.lexists(path)


async def test_a_successor_may_come_while_the_last_calls_end(rig: Rig) -> None:
    path = rig.server.path
    pause = rig.faults.pause("create_volume")
    last = asyncio.ensure_future(rig.volume("last"))
    await pause.reached.wait()
    stopping = asyncio.create_task(rig.server.stop(60))
    while path.exists():
        await asyncio.sleep(0.01)
    successor = server(path, "csi.second.dev")
    await successor.start()
    assert not stopping.done()
    pause.release()
    assert (await last).volume_id
    await stopping
    assert await name_at(path) == "csi.second.dev"
    await successor.stop(0)


async def test_a_directory_that_cannot_be_made(directory: Path) -> None:
    (directory / "file").write_text("")
    with pytest.raises(Precondition, match="cannot be"):
        await server(directory / "file" / "csi.sock").start()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/run/csi.sock",
        "unix:/run/csi.sock",
        "unix://run/csi.sock",
        "unix:///run/csi",
        "tcp://0.0.0.0:1",
        "unix:///a\0b.sock",
        "unix:///" + "x" * 108 + ".sock",
    ],
)
def test_endpoints_that_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="endpoint"):
        socket_path(url)


async def test_an_unknown_servicer_is_a_defect(directory: Path) -> None:
    with pytest.raises(TypeError, match="no protocol"):
        await Server(f"unix://{directory}/csi.sock", [object()]).start()


def test_grpc_never_hooks_into_fork() -> None:
    code = "import os, csi_driver.rpc.server, sys; print(os.environ['GRPC_ENABLE_FORK_SUPPORT'], 'grpc' in sys.modules)"
    environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "1"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["0", "True"]

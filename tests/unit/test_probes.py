"""What the kubelet's probes are told."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from csi_driver.domain.errors import Precondition, Unavailable
from csi_driver.probes import AgentHealth, ControllerHealth, Health, ProbeServer


@contextmanager
def listening(health: Health, host: str = "127.0.0.1") -> Iterator[str]:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(3)
    server = ProbeServer((host, 0), registry, health)
    server.start()
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{server.port}"
    finally:
        server.stop()


def ask(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_paths(host: str) -> None:
    health = AgentHealth()
    try:
        with listening(health, host) as url:
            assert ask(f"{url}/healthz") == (200, "ok\n")
            assert ask(f"{url}/readyz") == (200, "ready: yes\n")
            assert "things_total 3.0" in ask(f"{url}/metrics")[1]
            assert ask(f"{url}/")[0] == 404
            assert ask(f"{url}/metrics/x")[0] == 404
    except Precondition:
        if ":" in host:
            pytest.skip("no IPv6 here")
        raise


def test_readiness_says_what_is_missing() -> None:
    health = AgentHealth()
    with listening(health) as url:
        health.set_not_ready("tls", "no certificate yet")
        health.set_not_ready("start", "pools are being opened")
        health.note("registered", "the kubelet refuses: why")
        status, text = ask(f"{url}/readyz")
        assert status == 503
        assert text == "start: pools are being opened\ntls: no certificate yet\nregistered: the kubelet refuses: why\n"
        assert ask(f"{url}/healthz")[0] == 200
        health.set_ready("tls")
        health.set_ready("start")
        assert ask(f"{url}/readyz") == (200, "ready: yes\nregistered: the kubelet refuses: why\n")


def test_a_controllers_answers() -> None:
    missing = ["pods"]

    def check() -> None:
        if missing:
            raise Unavailable(f"not read yet: {missing[0]}")

    with listening(ControllerHealth(check)) as url:
        assert ask(f"{url}/healthz") == (200, "alive\n")
        assert ask(f"{url}/readyz") == (503, "not read yet: pods\n")
        missing.clear()
        assert ask(f"{url}/readyz") == (200, "ready\n")
        assert "things_total 3.0" in ask(f"{url}/metrics")[1]


def test_a_server_that_was_stopped_gives_its_port_back() -> None:
    server = ProbeServer(("127.0.0.1", 0), CollectorRegistry(), AgentHealth())
    server.start()
    port = server.port
    with pytest.raises(Precondition, match=f"--metrics-address 127.0.0.1:{port} cannot be served"):
        ProbeServer(("127.0.0.1", port), CollectorRegistry(), AgentHealth()).start()
    assert ask(f"http://127.0.0.1:{port}/healthz")[0] == 200
    server.stop()
    server.stop()
    again = ProbeServer(("127.0.0.1", port), CollectorRegistry(), AgentHealth())
    again.start()
    again.stop()


@pytest.mark.parametrize("health", [AgentHealth(stalled=0.2), ControllerHealth(lambda: None, stalled=0.2)])
async def test_an_event_loop_that_stands_still_is_noticed(health: AgentHealth | ControllerHealth) -> None:
    turning = asyncio.create_task(health.run())
    await asyncio.sleep(0)
    answers: list[tuple[int, str]] = []
    with listening(health) as url:

        def watch() -> None:
            time.sleep(0.5)
            answers.extend((ask(f"{url}/healthz"), ask(f"{url}/readyz")))

        watcher = threading.Thread(target=watch)
        watcher.start()
        watcher.join()  # the event loop stands still meanwhile
        turning.cancel()
    (alive, why), (ready, _) = answers
    assert (alive, ready) == (503, 503)
    assert "has not turned" in why


def sleep_in_the_kernel(fifo: Path) -> None:
    """Wait where no signal reaches this thread, as for a disk that does not answer, until somebody writes to `fifo`.

    posix_spawn waits so for its child's exec, and the child opens the fifo first.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    actions, pid = ctypes.create_string_buffer(256), ctypes.c_int()
    libc.posix_spawn_file_actions_init(actions)
    libc.posix_spawn_file_actions_addopen(actions, 9, bytes(fifo), os.O_RDONLY, 0)
    words = (ctypes.c_char_p * 2)(b"true", None)
    failed = libc.posix_spawn(ctypes.byref(pid), b"/bin/true", actions, None, words, None)
    assert not failed, os.strerror(failed)
    os.waitpid(pid.value, 0)


def state_of(thread: int) -> str:
    return Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_loop_that_waits_for_a_disk_is_left_alone(tmp_path: Path) -> None:
    """No restart ends such a wait; but no work is sent here either."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    health = AgentHealth(stalled=0.2)
    stuck: list[int] = []

    async def loop() -> None:
        turning = asyncio.create_task(health.run())
        await asyncio.sleep(0)
        stuck.append(threading.get_native_id())
        sleep_in_the_kernel(fifo)
        turning.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(loop()))
    thread.start()
    try:
        until = time.monotonic() + 60
        while not stuck or state_of(stuck[0]) != "D":
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(0.5)  # at least as long as is called stalled here
        with listening(health) as url:
            alive, why = ask(f"{url}/healthz")
            assert (alive, "waited in the kernel" in why) == (200, True), why
            assert ask(f"{url}/readyz")[0] == 503
    finally:
        os.close(os.open(fifo, os.O_WRONLY))
        thread.join()

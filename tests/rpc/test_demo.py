"""`tidemark demo --memory`, and the other commands against an agent of their own: no root, one process each."""

import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.agent_process import ready

from csi_driver.cli.demo.keys import NO_TERMINAL, PROMPT
from csi_driver.cli.demo.model import REGION, SIZE, Model, labels, pattern
from csi_driver.rpc.clients.cli_client import Client

TIDEMARK = (sys.executable, "-m", "csi_driver.cli.main")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def clean_environment(**more: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("TIDEMARK_", "CSI_"))} | more


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short name: below a long one the demo goes to /tmp, since a socket's path is limited."""
    with tempfile.TemporaryDirectory(prefix="tm-", dir="/tmp") as name:
        yield Path(name)


def processes_of(directory: Path) -> list[str]:
    """Processes that were started with something in this directory: agents that nobody stopped."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(directory) in file.read_text(errors="replace"):
                found.append(file.parent.name)
        except OSError:
            continue  # ended meanwhile
    return found


def demo(short: Path, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*TIDEMARK, "demo", "--memory", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env=clean_environment(TMPDIR=str(short), **environment),
    )


def test_the_demo_plays_in_memory_and_says_so(short: Path) -> None:
    done = demo(short, "--step")
    assert done.returncode == 0, done.stderr
    # There is no terminal to wait at, and no mount for a database.
    assert NO_TERMINAL in done.stdout
    assert PROMPT not in done.stdout
    assert "Left out: a database needs a mounted volume" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith("All 135 checks passed on the in-memory backend")
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert list(short.iterdir()) == []


def test_a_demo_by_steps_goes_on_with_each_key_and_ends_as_ever(short: Path) -> None:
    person, program = pty.openpty()
    environment = clean_environment(TMPDIR=str(short), TERM="dumb")
    with subprocess.Popen(
        [*TIDEMARK, "demo", "--memory", "--step"], stdin=program, stdout=program, stderr=program, env=environment
    ) as process:
        os.close(program)
        shown = b""
        keys = 0
        with suppress(OSError):  # nobody has the terminal any longer
            while part := os.read(person, 4096):
                shown += part
                if shown.count(PROMPT.encode()) > keys:
                    os.write(person, b" ")
                    keys += 1
    os.close(person)
    assert process.returncode == 0, shown.decode()
    steps = re.findall(rb"^ ?(\d+)  ", re.sub(rb"\r|\x1b\[\S*?[A-Zm]", b"", shown), re.MULTILINE)
    assert keys == len(steps) - 1 > 10
    assert b"checks passed" in shown
    assert list(short.iterdir()) == []


@pytest.mark.parametrize("name", ["v1", "s1", "s2", "rescue", "web-2", "safety-1", "safety-2"])
def test_one_wrong_byte_on_any_device_fails_the_demo_and_is_named(short: Path, name: str) -> None:
    done = demo(short, TIDEMARK_DEMO_CORRUPT=name)
    assert done.returncode == 1
    assert f"a check failed: {name} holds" in done.stderr
    assert "??" in done.stderr
    assert "checks passed" not in done.stdout
    assert list(short.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "after"), [(signal.SIGINT, 0.3), (signal.SIGINT, 1.7), (signal.SIGTERM, 1.3), (signal.SIGHUP, 1.0)]
)
def test_a_demo_that_is_broken_off_leaves_nothing(short: Path, number: signal.Signals, after: float) -> None:
    process = subprocess.Popen(
        # A run of the tests under nohup passes on that SIGHUP is ignored.
        ["env", "--default-signal", *TIDEMARK, "demo", "--memory"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=clean_environment(TMPDIR=str(short)),
    )
    time.sleep(after)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode in {128 + number, -number}
    assert processes_of(short) == []
    assert list(short.iterdir()) == []


def test_a_demo_whose_agent_dies_says_so(short: Path) -> None:
    process = subprocess.Popen(
        [*TIDEMARK, "demo", "--memory"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(TMPDIR=str(short)),
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    end = time.monotonic() + 30
    while not list(short.glob("*/csi.sock")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    for pid in children.read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the demo's agent ended with exit code -9" in stderr
    assert list(short.iterdir()) == []


# The model that the demo is held to


def test_the_model_counts_what_is_shared() -> None:
    model = Model()
    model.make("v")
    model.write("v", 0, "d1")
    model.write("v", 1, "d2")
    model.copy("v", "s")
    assert model.usage("v") == model.usage("s") == (0, 2 * REGION)
    model.write("v", 1, "d4")
    assert model.usage("v") == model.usage("s") == (REGION, REGION)
    assert labels(bytes(model.content["v"])) == ("d1", "d4", "", "")
    assert labels(bytes(model.content["s"])) == ("d1", "d2", "", "")
    model.drop("s")
    assert model.usage("v") == (2 * REGION, 0)


def test_a_region_with_one_wrong_byte_has_no_name() -> None:
    content = bytearray(SIZE)
    content[:REGION] = pattern("d1")
    content[REGION - 1] ^= 1
    content[3 * REGION] = 1
    assert labels(bytes(content)) == ("??", "", "", "??")


def test_no_two_blocks_of_the_patterns_are_equal() -> None:
    blocks = {pattern(label)[at : at + 4096] for label in ("d1", "d2") for at in range(0, REGION, 4096)}
    assert len(blocks) == 2 * REGION // 4096


# What an agent tells systemd


def test_an_agent_says_ready_when_it_answers_and_says_that_it_stops(short: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(short / "notify"))
        systemd.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        systemd.settimeout(60)

        def told() -> tuple[str, int]:
            """A message, and the process that it is from."""
            message, ancillary, _, _ = systemd.recvmsg(4096, socket.CMSG_SPACE(12))
            return message.decode(), struct.unpack("=iii", ancillary[0][2])[0]

        endpoint = f"unix://{short}/csi.sock"
        options = ("--pool", "p=memory:", "--node-name", "n1", "--endpoint", endpoint)
        environment = clean_environment(NOTIFY_SOCKET=str(short / "notify"))
        with (short / "log").open("wb") as log:
            agent = subprocess.Popen([*TIDEMARK, "agent", *options], stdout=log, stderr=log, env=environment)
        try:
            # Of the process that was started, as a unit with KillMode=process must have it.
            assert told() == ("READY=1\nSTATUS=Serving p", agent.pid)
            with Client(endpoint) as client:
                assert client.probe()
            agent.terminate()
            assert told() == ("STOPPING=1", agent.pid)
        finally:
            agent.terminate()
            assert agent.wait(30) == 0


# The other commands


@pytest.fixture
def tidemark(tmp_path: Path) -> Iterator[Run]:
    """Run a command against an agent with a pool in memory."""
    endpoint = f"unix://{tmp_path}/csi.sock"
    environment = clean_environment(CSI_ENDPOINT=endpoint, TIDEMARK_STAGING=f"{tmp_path}/staging")
    options = ("--pool", "p=memory:", "--node-name", "n1", "--log-format", "json")
    with (tmp_path / "log").open("wb") as log:
        agent = subprocess.Popen([*TIDEMARK, "agent", *options], stdout=log, stderr=log, env=environment)

    def run(*arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        command = [*TIDEMARK, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done

    try:
        ready(environment["CSI_ENDPOINT"], agent, tmp_path / "log").close()
        yield run
    finally:
        agent.terminate()
        assert agent.wait(30) == 0


def test_a_disk_from_its_creation_to_its_end(tidemark: Run, tmp_path: Path) -> None:
    assert "n1" in tidemark("status").stdout
    assert json.loads(tidemark("status", "--json").stdout)["ready"] is True
    assert "memory" in tidemark("pools").stdout
    assert "tidemark volume create" in tidemark("volume", "list").stdout

    made = json.loads(tidemark("volume", "create", "db", "--size", "1Mi", "--block", "--json").stdout)
    assert (made["name"], made["size"], made["kind"]) == ("db", 1 << 20, "volume")
    assert "unchanged" in tidemark("volume", "create", "db", "--size", "1Mi", "--block").stdout
    assert "`tidemark volume expand db 2Mi`" in tidemark("volume", "create", "db", "2Mi", "--block", code=1).stderr

    place = tmp_path / "shown"
    tidemark("mount", "db", str(place), "--block")
    with place.open("r+b") as device:
        device.write(b"old")
    tidemark("snapshot", "create", "db", "s1")
    with place.open("r+b") as device:
        device.write(b"new")
    assert "tidemark umount" in tidemark("rollback", "db", "s1", code=1).stderr
    assert str(place) in tidemark("volume", "list").stdout
    tidemark("umount", str(place))
    assert not os.path.lexists(place)
    assert "no volume is mounted" in tidemark("umount", str(place), code=1).stderr

    rolled = json.loads(tidemark("rollback", "db", "s1", "--name", "r1", "--json").stdout)
    again = json.loads(tidemark("rollback", "db", "s1", "--name", "r1", "--json").stdout)
    assert (rolled["already_done"], again["already_done"]) == (False, True)
    assert rolled["safety_id"] == again["safety_id"]
    tidemark("mount", "db", str(place))
    assert place.read_bytes()[:3] == b"old"
    # Taken away by hand it is staged still, and nothing tells where it was: by its name it is taken away entirely.
    place.unlink()
    assert "`tidemark umount db` unstages it" in tidemark("volume", "delete", "db", code=1).stderr
    assert "no longer in use" in tidemark("umount", "db").stdout
    assert "there is nothing to unmount" in tidemark("umount", "db", code=1).stderr

    tidemark("volume", "create", "copy", "--from", "s1")
    assert json.loads(tidemark("volume", "expand", "copy", "2Mi", "--json").stdout)["size"] == 2 << 20
    tidemark("mount", "copy", str(place))
    assert place.read_bytes()[:3] == b"old"
    tidemark("umount", str(place))
    out = tidemark("tree").stdout.splitlines()
    assert out[0].startswith("db  volume")
    assert any("s1  snapshot" in line for line in out)
    assert next(line for line in out if "copy  volume" in line).startswith("│   └── ")
    shown = tidemark("volume", "show", "db").stdout
    assert "s1, before rollback of " in shown
    assert "rolled back:" in shown

    tidemark("group", "create", "g1", "db", "copy")
    assert "g1/db" in tidemark("snapshot", "list", "--of", "db").stdout
    assert "delete the group" in tidemark("snapshot", "delete", "g1/db", code=1).stderr
    tidemark("group", "delete", "g1")
    safety = [s["name"] for s in json.loads(tidemark("snapshot", "list", "--json").stdout) if s["name"] != "s1"]
    tidemark("snapshot", "delete", "s1", *safety)
    tidemark("volume", "delete", "db", "copy")
    assert json.loads(tidemark("tree", "--json").stdout) == []


def test_refusals_name_the_next_step(tidemark: Run, tmp_path: Path) -> None:
    assert "`tidemark volume list`" in tidemark("volume", "delete", "nobody", code=1).stderr
    assert "`tidemark snapshot list`" in tidemark("snapshot", "delete", "nobody", code=1).stderr
    assert "20Gi" in tidemark("volume", "create", "x", "--size", "big", code=2).stderr
    assert "block" in tidemark("volume", "create", "x", "--size", "1Mi", code=1).stderr
    tidemark("volume", "create", "raw", "--size", "1Mi", "--block")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "not empty" in tidemark("mount", "raw", str(tmp_path / "full"), code=1).stderr
    assert "--block" in tidemark("mount", "raw", str(tmp_path / "x"), code=1).stderr
    other = f"n2:p:{'0' * 32}"
    assert "n2" in tidemark("volume", "show", other, code=1).stderr

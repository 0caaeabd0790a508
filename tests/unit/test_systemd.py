"""systemd: what an agent tells it, and the units of packaging/systemd."""

import configparser
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from csi_driver.cli.main import app
from csi_driver.host.systemd import VARIABLE, notify

UNITS = Path(__file__).resolve().parent.parent.parent / "packaging" / "systemd"
AGENT, MOUNT = UNITS / "tidemark-agent.service", UNITS / "tidemark-mount@.service"
INSTALLED = "/opt/tidemark/bin/tidemark"

OWN_NAMESPACE = {
    *("BindPaths", "BindReadOnlyPaths", "DynamicUser", "ExecPaths", "InaccessiblePaths", "MountFlags", "MountImages"),
    *("NoExecPaths", "PrivateDevices", "PrivateMounts", "PrivateTmp", "ProtectClock", "ProtectControlGroups"),
    *("ProtectHome", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc"),
    *("ProtectSystem", "ReadOnlyPaths", "ReadWritePaths", "RootDirectory", "RootImage", "TemporaryFileSystem"),
}
"""Options of systemd.exec(5) with which a unit gets a mount namespace of its own."""


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd listens on it, and its name in the variable."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@tidemark-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1) if name[0] == "@" else name)
        listening.settimeout(10)
        yield listening, name


def test_a_state_is_one_datagram(systemd: tuple[socket.socket, str]) -> None:
    listening, name = systemd
    assert notify("READY=1\nSTATUS=Serving fast", {VARIABLE: name})
    assert listening.recv(1000) == b"READY=1\nSTATUS=Serving fast"


def test_an_agent_does_not_wait_for_a_systemd_that_reads_nothing(systemd: tuple[socket.socket, str]) -> None:
    _, name = systemd
    sent = 0
    while notify("STATUS=" + "x" * 1000, {VARIABLE: name}):
        sent += 1
        assert sent < 100_000
    assert sent > 0


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    assert not notify("READY=1", {})
    assert not notify("READY=1", {VARIABLE: ""})
    assert not notify("READY=1", {VARIABLE: str(tmp_path / "nobody")})
    assert not notify("READY=1", {VARIABLE: "vsock:2:1234"})


def test_the_agents_mounts_are_seen_by_the_machine_and_outlive_it() -> None:
    service = unit(AGENT)["Service"]
    assert not OWN_NAMESPACE & service.keys()
    assert "RuntimeDirectory" not in service
    # Its helper processes are not signalled: the watchdog thaws what a killed agent left frozen, and a check goes on.
    assert (service["KillMode"], service["OOMPolicy"]) == ("process", "continue")


def test_a_restarted_agent_unmounts_nothing() -> None:
    ordering = unit(MOUNT)["Unit"]
    assert {"Requires", "BindsTo", "PartOf", "Requisite"}.isdisjoint(ordering)
    assert ordering["After"] == "tidemark-agent.service"  # and at a shutdown unmounted before it stops
    assert "tidemark-agent.service" in ordering["Wants"]


def test_the_settings_are_variables_of_the_agent() -> None:
    agent = typer.main.get_command(app).commands["agent"]  # type: ignore[attr-defined]
    known = {
        name
        for option in agent.params
        for name in ([option.envvar] if isinstance(option.envvar, str) else option.envvar or ())
    }
    written = re.findall(r"^#?([A-Z_]+)=", (UNITS / "agent.env").read_text(), re.MULTILINE)
    assert len(written) >= 4
    assert set(written) <= known


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="NOT TESTED: no systemd-analyze here")
@pytest.mark.parametrize("name", ["tidemark-agent.service", "tidemark-mount@db.service"])
def test_systemd_reads_the_units_without_a_complaint(name: str, tmp_path: Path) -> None:
    for path in (AGENT, MOUNT):
        # What it would start must be there.
        (tmp_path / path.name).write_text(path.read_text().replace(INSTALLED, sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(tmp_path / name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")

"""One machine as its owner has it: the lines of the systemd units, typed by hand as systemd would run them."""

import configparser
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.agent_process import AgentRig

pytestmark = [pytest.mark.root, pytest.mark.timeout(200)]

UNITS = Path(__file__).resolve().parent.parent.parent / "packaging" / "systemd"
INSTALLED = "/opt/tidemark/bin/tidemark"


def command_of(unit: str, key: str, directory: Path) -> list[str]:
    """What a unit runs, with this Python's command, for the volume `db` below `directory`."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read(UNITS / unit)
    words = shlex.split(parser["Service"][key].replace("/mnt/", f"{directory}/mnt/").replace("%i", "db"))
    assert words[0] == INSTALLED
    return [sys.executable, "-m", "csi_driver.cli.main", *words[1:]]


class Systemd:
    """Starts the agent's unit and waits for READY, as systemd does with Type=notify."""

    def __init__(self, rig: AgentRig) -> None:
        self.rig = rig
        root = rig.root
        settings = dict(re.findall(r"^([A-Z_]+)=(.*)$", (UNITS / "agent.env").read_text(), re.MULTILINE))
        assert settings["TIDEMARK_POOL_IMAGE"].endswith("/pool.img")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("TIDEMARK_", "CSI_"))}
        self.environment = clean | settings | {
            "TIDEMARK_POOL_IMAGE": str(rig.image),
            "TIDEMARK_POOL_SIZE": "1Gi",
            "TIDEMARK_POOL_IMAGE_SPARSE": "1",
            "TIDEMARK_POOL_MOUNT": str(rig.pool),
            "TIDEMARK_RUNTIME_DIR": str(root / "run"),
            "TIDEMARK_STAGING": str(root / "run" / "staging"),
            "CSI_ENDPOINT": rig.endpoint,
            "NOTIFY_SOCKET": str(root / "notify"),
        }  # fmt: skip
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(root / "notify"))
        self.notify.settimeout(60)

    def start(self) -> None:
        argv = command_of("tidemark-agent.service", "ExecStart", self.rig.root)
        with self.rig.log.open("ab") as log:
            self.rig.process = subprocess.Popen(argv, stdout=log, stderr=log, env=self.environment)
        while not self.notify.recv(4096).startswith(b"READY=1"):  # STOPPING of the one before
            pass

    def run(self, *argv: str) -> str:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=self.environment)
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout

    def tidemark(self, *words: str) -> str:
        return self.run(sys.executable, "-m", "csi_driver.cli.main", *words)


@pytest.fixture
def systemd(rig: AgentRig) -> Iterator[Systemd]:
    made = Systemd(rig)
    yield made
    made.notify.close()


def mount_id(point: Path) -> list[str]:
    """Number, device and root of what is mounted there; empty if nothing is."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [word for line in lines if line[4] == str(point) for word in line[:4]]


@pytest.mark.parametrize("end", [AgentRig.stop, AgentRig.kill], ids=["restart", "crash"])
def test_volumes_in_use_outlive_the_agent_and_its_unit_finds_them(
    systemd: Systemd, end: Callable[[AgentRig], object]
) -> None:
    rig, point = systemd.rig, systemd.rig.root / "mnt" / "db"
    mount = command_of("tidemark-mount@.service", "ExecStart", rig.root)
    systemd.start()
    systemd.tidemark("volume", "create", "db", "--size", "64Mi")
    systemd.run(*mount)
    before = mount_id(point)
    assert before
    with (point / "rows").open("w") as file:
        file.write("with an agent\n")
        end(rig)
        file.write("without one\n")
        file.flush()
        os.fsync(file.fileno())
        assert mount_id(point) == before
        systemd.start()
        # The unit may be started again where the volume is mounted already.
        systemd.run(*mount)
        assert mount_id(point) == before
        file.write("with the next one\n")
    assert (point / "rows").read_text().splitlines() == ["with an agent", "without one", "with the next one"]
    systemd.run(*command_of("tidemark-mount@.service", "ExecStop", rig.root))
    assert not mount_id(point)
    assert "in use" not in systemd.tidemark("tree")
    assert rig.stop() == 0


def test_after_a_boot_the_units_bring_the_volume_back(systemd: Systemd) -> None:
    """A reboot leaves the pool's file alone: nothing is mounted, nothing attached, and /run is empty."""
    rig, point = systemd.rig, systemd.rig.root / "mnt" / "db"
    mount = command_of("tidemark-mount@.service", "ExecStart", rig.root)
    systemd.start()
    systemd.tidemark("volume", "create", "db", "--size", "64Mi")
    systemd.run(*mount)
    (point / "rows").write_text("kept\n")
    systemd.run(*command_of("tidemark-mount@.service", "ExecStop", rig.root))
    assert rig.stop() == 0
    # What the how-to says of taking it away, but for the file itself.
    systemd.run("umount", str(rig.pool))
    associated = systemd.run("losetup", "--noheadings", "--output", "NAME", "--associated", str(rig.image)).split()
    systemd.run("losetup", "--detach", *associated)
    systemd.run("rm", "-r", str(rig.root / "run"))
    systemd.start()
    systemd.run(*mount)
    assert (point / "rows").read_text() == "kept\n"
    assert rig.process is not None
    rig.process.send_signal(signal.SIGTERM)
    assert rig.process.wait(30) == 0
    assert (point / "rows").read_text() == "kept\n"

"""What a superblock asks for, what the kernel says of a mounted file system, and e2fsck that outlasts whoever started it."""

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from freeze_rig import Disk, Pool, sh
from support.waiting import wait_until

from csi_driver.host import commands
from csi_driver.host.errors import Busy
from csi_driver.host.fs import condition, fsck
from csi_driver.host.helper.client import HelperPool

SIZE = 16 << 20
HERE = Path(__file__).resolve().parents[2]


@pytest.fixture
def ext4(tmp_path: Path) -> Path:
    """An image with an ext4 that nobody ever mounted."""
    if commands.resolve("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4")
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    commands.run(("mkfs.ext4", "-q", str(path)), 30)
    return path


def poke(image: Path, offset: int, form: str, value: int) -> None:
    """Change a field of the superblock; its checksum does not matter to who reads it here."""
    with image.open("r+b") as file:
        file.seek(1024 + offset)
        file.write(struct.pack(form, value))


def test_a_superblock_asks_for_a_check_or_does_not(ext4: Path) -> None:
    assert condition.complaint(ext4, is_ext4=True) == ""
    poke(ext4, 52, "<H", 1000)  # mounted a thousand times
    poke(ext4, 54, "<H", 20)  # and to be checked after twenty
    assert condition.complaint(ext4, is_ext4=True) == ""
    poke(ext4, 58, "<H", 3)
    assert "errors" in condition.complaint(ext4, is_ext4=True)
    poke(ext4, 58, "<H", 0)
    assert "not unmounted" in condition.complaint(ext4, is_ext4=True)
    poke(ext4, 58, "<H", 1)
    poke(ext4, 404, "<I", 7)
    assert condition.complaint(ext4, is_ext4=True) == "its superblock counts 7 errors"
    poke(ext4, 56, "<H", 0)
    assert condition.complaint(ext4, is_ext4=True) == condition.LOST
    assert condition.complaint(ext4, is_ext4=False) == "", "who knows what it is"


def test_what_is_shorter_than_a_superblock(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x")
    assert condition.complaint(path, is_ext4=True) == condition.LOST
    assert condition.complaint(path, is_ext4=False) == ""


def test_a_device_without_an_ext4_counts_no_errors() -> None:
    assert condition.errors_of_ext4("no-such-device") == 0


@pytest.mark.root
async def test_an_xfs_that_shut_down_refuses_an_open_alone(root: None, pool: Pool, children: HelperPool) -> None:
    disk = pool.disk("xfs")
    number = [disk.major, disk.minor]
    assert await children.run("is_shut_down", 10, point=str(disk.point), device_number=number) is False
    before = await children.run("statvfs", 10, **disk.mount)
    assert before["shut_down"] == 0
    sh("xfs_io", "-x", "-c", "shutdown", disk.point)
    line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {disk.point} " in line)
    assert "rw" in line.rpartition(" - ")[2].split()[2].split(","), "mountinfo tells it now: so might we"
    assert await children.run("is_shut_down", 10, point=str(disk.point), device_number=number) is True
    after = await children.run("statvfs", 10, **disk.mount)
    assert (after["shut_down"], after["f_blocks"]) == (1, before["f_blocks"])


@pytest.mark.root
def test_the_kernel_counts_the_errors_of_an_ext4(root: None, pool: Pool) -> None:
    disk = pool.disk("ext4")
    assert condition.errors_of_ext4(name(disk)) == 0
    Path(f"/sys/fs/ext4/{name(disk)}/trigger_fs_error").write_text("1")
    wait_until(lambda: condition.errors_of_ext4(name(disk)) > 0)


def name(disk: Disk) -> str:
    return Path(disk.device).name


# ---- e2fsck


def stand_in(place: Path, script: str) -> str:
    """The runner's first words, with another e2fsck: a script of the shell's."""
    tools = place / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "e2fsck").write_text(f"#!/bin/sh\n{script}\n")
    (tools / "e2fsck").chmod(0o755)
    patch = f"from csi_driver.host import commands; commands.DIRECTORIES = ({str(tools)!r},); "
    return fsck._BOOTSTRAP.replace("from csi_driver.host.fs.fsck", patch + "from csi_driver.host.fs.fsck")


def ended(directory: Path) -> fsck.Outcome:
    wait_until(lambda: fsck.outcome(str(directory)).result != "running")
    return fsck.outcome(str(directory))


def said(directory: Path) -> str:
    log = directory / fsck.LOG
    return log.read_text() if log.exists() else ""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "check"
    path.mkdir()
    return path


def test_errors_are_mended(ext4: Path, directory: Path) -> None:
    commands.run(("debugfs", "-w", "-R", "set_super_value state 2", str(ext4)), 10)
    assert condition.complaint(ext4, is_ext4=True)
    fsck.start(str(directory), str(ext4))
    outcome = ended(directory)
    assert outcome.result == "mended"
    assert str(ext4) not in outcome.message, "who reads it knows which one it is about"
    assert condition.complaint(ext4, is_ext4=True) == ""
    assert (directory / fsck.LOG).exists()


def test_what_it_cannot_mend(ext4: Path, directory: Path) -> None:
    commands.run(("debugfs", "-w", "-R", "clri <2>", str(ext4)), 10)  # the root directory
    fsck.start(str(directory), str(ext4))
    outcome = ended(directory)
    assert outcome.result == "damaged"
    assert "UNEXPECTED INCONSISTENCY" in outcome.message


@pytest.mark.parametrize(
    ("script", "result"),
    [
        ("exit 0", "mended"),
        ("exit 1", "mended"),
        ("exit 2", "mended"),
        ("exit 3", "mended"),
        ("exit 4", "damaged"),
        ("exit 5", "damaged"),
        ("exit 12", "damaged"),
        ("exit 8", "failed"),
        ("exit 16", "failed"),
        ("echo Error writing block 7: No space left on device; exit 12", "failed"),
        ("echo Input/output error; exit 4", "failed"),
        ("exit 32", "interrupted"),
        ("kill -9 $$", "interrupted"),
    ],
)
def test_how_it_ended(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, script: str, result: str
) -> None:
    monkeypatch.setattr(fsck, "_BOOTSTRAP", stand_in(tmp_path, script))
    fsck.start(str(directory), "/nowhere")
    assert ended(directory).result == result


def test_only_its_last_words_are_kept(tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'for n in $(seq 1000); do echo "$3: line $n"; done; echo "$3: the end"; exit 4'
    monkeypatch.setattr(fsck, "_BOOTSTRAP", stand_in(tmp_path, script))
    fsck.start(str(directory), "/some/image")
    words = ended(directory).message
    assert words.startswith("...")
    assert words.endswith("line 1000 the end")
    assert len(words) <= 300


def test_one_at_a_time(tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = tmp_path / "go"
    monkeypatch.setattr(fsck, "_BOOTSTRAP", stand_in(tmp_path, f"until [ -e {go} ]; do sleep 0.02; done"))
    fsck.start(str(directory), "/nowhere")
    assert fsck.outcome(str(directory)).result == "running"
    with pytest.raises(Busy):
        fsck.start(str(directory), "/nowhere")
    go.touch()
    assert ended(directory).result == "mended"


STARTER = """
import sys
sys.path.insert(0, sys.argv[1])
from csi_driver.host.fs import fsck
fsck._BOOTSTRAP = sys.argv[2]
fsck.start(sys.argv[3], "/nowhere")
print("ready", flush=True)
import time
time.sleep(600)
"""


def test_it_outlasts_whoever_started_it(
    tmp_path: Path, directory: Path, spawn: Callable[..., "subprocess.Popen[str]"]
) -> None:
    """An agent that is killed, with all its session; the next one finds the check at work, and then its end."""
    go = tmp_path / "go"
    bootstrap = stand_in(tmp_path, f"echo begun; until [ -e {go} ]; do sleep 0.02; done; exit 1")
    agent = spawn(sys.executable, "-c", STARTER, str(HERE), bootstrap, str(directory), start_new_session=True)
    wait_until(lambda: said(directory) == "begun\n")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        os.killpg(agent.pid, number)
    agent.wait(20)
    assert fsck.outcome(str(directory)).result == "running"
    go.touch()
    outcome = ended(directory)
    assert (outcome.result, outcome.message) == ("mended", "begun")


def test_a_killed_runner_does_not_make_its_work_look_ended(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "go"
    monkeypatch.setattr(fsck, "_BOOTSTRAP", stand_in(tmp_path, f"echo begun; until [ -e {go} ]; do sleep 0.02; done"))
    fsck.start(str(directory), "/nowhere")
    wait_until(lambda: said(directory) == "begun\n")
    runner = next(process for process in fsck._started if process.poll() is None)
    runner.kill()
    runner.wait(20)
    assert fsck.outcome(str(directory)).result == "running"
    go.touch()
    assert ended(directory).result == "interrupted", "nobody noted how it ended"

"""`tidemark demo` on a real XFS, and a mounted disk by the command line: root, loop devices, nothing left afterwards."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csi_driver.cli.demo.agent import why_not_reflink

REASON = why_not_reflink()

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(REASON), reason=f"NOT TESTED: {REASON}"),
    pytest.mark.timeout(180),
]

TIDEMARK = (sys.executable, "-m", "csi_driver.cli.main")
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("TIDEMARK_", "CSI_"))}


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short name: below a long one the demo goes to /tmp, since a socket's path is limited."""
    with tempfile.TemporaryDirectory(prefix="tm-", dir="/tmp") as name:
        yield Path(name)


def traces(place: Path) -> list[str]:
    """Mounts and loop devices below a directory."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    backing = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing.append(file.read_text())
        except OSError:
            continue  # detached meanwhile
    return [path for path in mounts + backing if path.startswith(f"{place}/")]


def test_the_demo_plays_on_xfs_and_leaves_nothing(short: Path) -> None:
    done = subprocess.run(
        [*TIDEMARK, "demo"],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
        env=CLEAN | {"TMPDIR": str(short)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("All 143 checks passed on XFS reflink")
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 100
    assert list(short.iterdir()) == []
    assert traces(short) == []
    # What a person would type, and what the database says before, after the migration, and at the end.
    lines = [line.strip() for line in done.stdout.splitlines()]
    typed = [line.removeprefix("$ tidemark ").split()[0] for line in lines if line.startswith("$ tidemark ")]
    assert typed == [
        *("volume", "mount", "snapshot", "umount", "rollback", "mount"),
        *("volume", "mount", "snapshot", "umount", "umount", "volume"),
    ]
    totals = re.findall(r"([\d,]+) orders, ([\d,.]+) euros", done.stdout)
    assert totals[0] == totals[2] == ("5,000", totals[0][1])
    assert totals[1] == totals[3] != totals[0]
    assert re.search(r"back in \d+ ms; \d+ ms with umount and mount", done.stdout)


@pytest.mark.parametrize("name", ["shop", "v1", "s2", "web-1"])
def test_one_wrong_byte_on_a_device_fails_the_demo_and_is_named(short: Path, name: str) -> None:
    done = subprocess.run(
        [*TIDEMARK, "demo"],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
        env=CLEAN | {"TMPDIR": str(short), "TIDEMARK_DEMO_CORRUPT": name},
    )
    assert done.returncode == 1
    assert f"a check failed: {name} holds" in done.stderr
    assert list(short.iterdir()) == []
    assert traces(short) == []


MOMENTS: dict[str, Callable[[Path], object]] = {
    "agent starts": lambda place: list(place.iterdir()),
    "shop mounted": lambda place: any(trace.endswith("/mnt/shop") for trace in traces(place)),
    "disk made": lambda place: any(trace.strip().endswith("/disk.img") for trace in traces(place)),
    "disk published": lambda place: any("/published/" in trace for trace in traces(place)),
}
"""Of a demo that runs: what is there from then on."""


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "agent starts"),
        (signal.SIGINT, "shop mounted"),
        (signal.SIGTERM, "disk made"),
        (signal.SIGINT, "disk published"),
    ],
)
def test_a_demo_that_is_broken_off_leaves_nothing(short: Path, number: signal.Signals, moment: str) -> None:
    process = subprocess.Popen(
        [*TIDEMARK, "demo"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=CLEAN | {"TMPDIR": str(short)},
    )
    while not MOMENTS[moment](short):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 128 + number, stderr
    assert list(short.iterdir()) == []
    assert traces(short) == []


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """An agent on a pool image of its own; what the commands need to reach it."""
    from csi_driver.cli.demo.agent import DemoAgent

    agent = DemoAgent("reflink")
    try:
        agent.start()
        yield CLEAN | {"CSI_ENDPOINT": agent.endpoint, "TIDEMARK_STAGING": f"{agent.root}/staging"}
    finally:
        code = agent.stop()
        agent.remove()
    assert code == 0
    assert agent.remaining() == []


@pytest.fixture
def run(environment: dict[str, str]) -> Callable[..., str]:
    """A command; what it printed, or with `refused` what it said on stderr."""

    def run(*arguments: str, refused: bool = False) -> str:
        done = subprocess.run(
            [*TIDEMARK, *arguments], capture_output=True, text=True, check=False, timeout=100, env=environment
        )
        assert done.returncode == int(refused), (arguments, done.stdout, done.stderr)
        return done.stderr if refused else done.stdout

    return run


def test_a_disk_is_mounted_and_unmounted_by_the_command_line(
    environment: dict[str, str], run: Callable[..., str]
) -> None:
    place = Path(environment["TIDEMARK_STAGING"]).parent / "published" / "db"
    second = place.with_name("copy")
    run("volume", "create", "db", "--size", "64Mi")
    run("mount", "db", str(place), "-o", "noatime")
    (place / "file").write_text("before")
    run("snapshot", "create", "db", "s1")
    (place / "file").write_text("after")
    run("umount", str(place))
    assert not place.exists()
    run("volume", "create", "copy", "--from", "s1")
    run("mount", "copy", str(second), "--read-only")
    assert (second / "file").read_text() == "before"
    with pytest.raises(OSError, match="Read-only"):
        (second / "file").write_text("no")
    run("umount", str(second))
    run("rollback", "db", "s1")
    run("mount", "db", str(place))
    assert (place / "file").read_text() == "before"
    run("umount", str(place))
    run("volume", "delete", "db", "copy")
    assert list(Path(environment["TIDEMARK_STAGING"]).iterdir()) == []


def test_what_was_unmounted_by_hand_is_taken_away_and_what_was_there_before_stays(
    environment: dict[str, str], run: Callable[..., str]
) -> None:
    """A plain umount leaves the disk staged. The directory says which disk it was for, and whether it was there before."""
    place = Path(environment["TIDEMARK_STAGING"]).parent / "published" / "db"
    run("volume", "create", "db", "--size", "64Mi")
    place.mkdir(parents=True, mode=0o750)
    inode = place.stat().st_ino
    run("mount", "db", str(place))
    subprocess.run(["umount", str(place)], check=True)
    message = run("volume", "delete", "db", refused=True)
    assert "db is staged, but mounted at no directory: `tidemark umount db` unstages it" in message
    assert "and no longer in use" in run("umount", str(place))
    assert "no volume is mounted at" in run("umount", str(place), refused=True)
    assert place.stat().st_ino == inode

    # Once more, and now files of the user's lie where it was: they stay, and the disk is taken away all the same.
    run("mount", "db", str(place))
    subprocess.run(["umount", str(place)], check=True)
    (place / "mine").touch()
    run("umount", str(place))
    (place / "mine").unlink()

    # Somebody works in it: told by name, and nothing is changed.
    run("mount", "db", str(place))
    with subprocess.Popen(["sleep", "600"], cwd=place) as process:
        message = run("umount", str(place), refused=True)
        process.kill()
    assert f"pid {process.pid} (sleep)" in message
    run("umount", str(place))
    assert place.stat().st_ino == inode
    run("volume", "delete", "db")
    assert list(Path(environment["TIDEMARK_STAGING"]).iterdir()) == []


@pytest.mark.alone  # nobody else may take the number that came free
def test_a_raw_disk_whose_device_went_away_is_taken_away(environment: dict[str, str], run: Callable[..., str]) -> None:
    place = Path(environment["TIDEMARK_STAGING"]).parent / "published" / "raw"
    run("volume", "create", "raw", "--size", "64Mi", "--block")
    run("mount", "raw", str(place), "--block")
    (device,) = [line.split()[1] for line in run("volume", "show", "raw").splitlines() if line.startswith("device:")]
    subprocess.run(["losetup", "--detach", device], check=True)
    while device in (
        shown := run("volume", "show", "raw")
    ):  # it goes when the last who looks at all devices has closed it
        time.sleep(0.02)
    assert str(place) in shown
    assert f"raw is mounted at {place}: `tidemark umount raw` first" in run("volume", "delete", "raw", refused=True)
    run("umount", str(place))
    assert not os.path.lexists(place)
    run("volume", "delete", "raw")
    assert [line for line in traces(place.parent.parent) if "published" in line or "staging" in line] == []


def test_what_is_seen_at_two_paths_is_taken_away_at_either(
    environment: dict[str, str], run: Callable[..., str]
) -> None:
    """Stage and publish lie in a directory that is bind-mounted within its peer group: the disk has one place of each all the same."""
    root = Path(environment["TIDEMARK_STAGING"]).parent
    origin, seen = root / "d", root / "k"
    for path in (origin, seen):
        path.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "d", str(origin)], check=True)
        subprocess.run(["mount", "--make-shared", str(origin)], check=True)
        (origin / "k").mkdir()
        subprocess.run(["mount", "--bind", str(origin / "k"), str(seen)], check=True)
        environment["TIDEMARK_STAGING"] = f"{seen}/staging"
        run("volume", "create", "db", "--size", "64Mi")
        run("mount", "db", str(seen / "db"))
        listed = run("volume", "list")
        assert str(seen / "db") in listed
        assert str(origin / "k" / "db") not in listed
        assert "and no longer in use" in run("umount", str(origin / "k" / "db"))
        run("volume", "delete", "db")
        assert list((seen / "staging").iterdir()) == []
        assert list(seen.iterdir()) == [seen / "staging"]
    finally:
        for path in (seen, origin):
            subprocess.run(["umount", str(path)], check=False)

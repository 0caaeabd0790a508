"""Random sequences of everything that a pool can do, and kills in the middle of it, against a plain model of bytes.

TIDEMARK_MODEL_EXAMPLES=N runs N random examples of each machine instead of the few that are the same every time;
TIDEMARK_MODEL_SEED=S repeats such a run, but for where its kills land.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import get_state_machine_test
from model import UNIT, Content, Disk
from model_bench import Bench
from model_bytes import write_device, write_file, zero_device
from model_steps import ACTIONS, Machine

MIB = 1 << 20


class RawMachine(Machine):
    """Raw block volumes of 16 to 64 units."""

    kinds = ("",)

    def first_size(self, fs: str, number: int) -> int:
        return (16 + number % 49) * UNIT

    def growth(self, number: int) -> int:
        return (1 + number % 16) * (UNIT if number % 2 else 4096)

    def write(self, disk: Disk, chance: random.Random, lazy: bool) -> Content:
        """A few writes: direct or not, whole blocks of 4096 bytes or sectors of 512, and zeroes."""
        target = self.bench.target(disk.id)
        assert isinstance(disk.content, bytes)
        content = bytearray(disk.content)
        for _ in range(chance.randint(1, 4)):
            how = "cached" if lazy else chance.choice(["direct", "direct", "cached", "cached", "zeroes"])
            grain = 512 if how == "cached" else 4096
            most = disk.size // grain
            # The ends are where sizes go wrong.
            at = chance.choice([0, most - 1, *(chance.randrange(most) for _ in range(4))])
            count = min(chance.choice([1, 2, 3, 16, 40]), most - at)
            data = bytes(count * grain) if how == "zeroes" else chance.randbytes(count * grain)
            if how == "zeroes":
                zero_device(target, at * grain, len(data))
            else:
                write_device(target, at * grain, data, how == "direct", lazy)
            content[at * grain : at * grain + len(data)] = data
        return bytes(content)


class FileMachine(Machine):
    """Mounted volumes with a few files."""

    kinds = ("ext4", "xfs", "ext4")

    def first_size(self, fs: str, number: int) -> int:
        return (320 if fs == "xfs" else 32) * MIB + number % 5 * MIB

    def growth(self, number: int) -> int:
        return 64 * MIB

    def write(self, disk: Disk, chance: random.Random, lazy: bool) -> Content:
        """Files are made, written over in part, and replaced by others; all of it durably."""
        target = self.bench.target(disk.id)
        assert isinstance(disk.content, dict)
        files = dict(disk.content)
        for _ in range(chance.randint(1, 3)):
            name = f"file{chance.randrange(4)}"
            if name in files and chance.random() < 0.2:
                Path(target, name).unlink()
                del files[name]
                name = "removed"
            old = files.get(name, b"")
            at = chance.randint(0, len(old))
            data = chance.randbytes(chance.choice([1, 100, 4096, 5000, 200_000]))
            write_file(target, name, at, data, lazy)
            files[name] = old[:at] + data + old[at + len(data) :]
        return files


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One agent on one pool for all examples; each leaves the pool empty."""
    if os.geteuid() != 0 or not os.access("/dev/loop-control", os.W_OK) or shutil.which("mkfs.xfs") is None:
        pytest.skip("needs root, /dev/loop-control and mkfs.xfs (Debian's xfsprogs)")
    made = Bench(tmp_path_factory.mktemp("model"))
    try:
        made.start()
        yield made
    finally:
        made.close()


def explore(
    bench: Bench, machine: type[Machine], examples: int, steps: int, record: Callable[[str, object], None]
) -> None:
    """Run a machine: the same examples every time, or, where the environment says how many, random ones."""
    asked = int(os.environ.get("TIDEMARK_MODEL_EXAMPLES", "0"))
    machine.bench = bench
    bench.counts.clear()
    bench.failures.clear()
    run = get_state_machine_test(
        machine,
        settings=settings(
            max_examples=asked or examples,
            stateful_step_count=steps,
            derandomize=not asked,
            deadline=None,
            database=None,
            # Where a kill lands is chance, so that a smaller example is not found by trying, and a step takes a second.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )
    number = int(os.environ.get("TIDEMARK_MODEL_SEED", "0"))
    if asked or number:
        number = number or random.SystemRandom().randrange(1, 1 << 32)
        print(f"TIDEMARK_MODEL_SEED={number}")
        run = seed(number)(run)
    try:
        run()
    except BaseException:
        for which, done in enumerate(bench.failures, 1):
            print(f"\n-- failure {which}; the agent's log: {bench.root}/failed-{which}.log\n{done}")
        raise
    finally:
        for name, count in sorted(bench.counts.items()):
            print(f"{count:6} {name}")
        record("kills", bench.counts["kills"])
        record("contents compared", bench.counts["contents compared"])
    unused = [name for name in ACTIONS if not bench.counts[f"step: {name}"]]
    assert not unused, f"never done: {unused}: other examples are needed"
    assert bench.counts["kills"] > examples, "hardly a kill: other examples are needed"


@pytest.mark.root
@pytest.mark.slow(seconds=60)
@pytest.mark.timeout(0)
def test_raw_disks_and_snapshots_hold_what_the_model_says(
    bench: Bench, record_property: Callable[[str, object], None]
) -> None:
    explore(bench, RawMachine, 4, 26, record_property)


@pytest.mark.root
@pytest.mark.slow(seconds=40)
@pytest.mark.timeout(0)
def test_files_and_snapshots_hold_what_the_model_says(
    bench: Bench, record_property: Callable[[str, object], None]
) -> None:
    explore(bench, FileMachine, 3, 20, record_property)

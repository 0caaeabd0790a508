"""The power is cut while an agent works: what was answered is there, what was not is there whole or not at all.

A kernel of its own is needed for that: a killed process of user-mode Linux takes the page cache of its kernel with it. The cut
of crash/test_crash_pool.py shuts the pool's file system down instead, at every step, but cannot do so while it is in use.

TIDEMARK_POWER_CUTS=N cuts it N times; TIDEMARK_TEST_BACKEND=lvm does it on a pool of logical volumes. Where the cuts land is chance; none of the checks depends on it.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from power_machine import PowerMachine
from power_model import Model
from support.lvm_machine import why_no_lvm
from support.machine import KIND
from support.uml_boot import why_not

CUTS = int(os.environ.get("TIDEMARK_POWER_CUTS", "2"))
Line = dict[str, Any]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[PowerMachine]:
    if reason := why_no_lvm() if KIND == "lvm" else why_not():
        pytest.skip(reason)
    made = PowerMachine(tmp_path)
    try:
        yield made
    finally:
        made.cut()


@pytest.mark.slow(seconds=150)
@pytest.mark.timeout(900 if KIND == "reflink" else 0)
def test_what_was_answered_survives_a_power_cut(
    machine: PowerMachine, record_property: Callable[[str, object], None]
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed: {seed}")
    random_ = random.Random(seed)
    model, cuts = Model(), 0
    try:
        for number in range(CUTS):
            if number % 2 == 1:
                cut_in_recovery(machine, model, random_)
                cuts += 1
            cut_at_work(machine, model, random_)
            cuts += 1
        ended = [line for line in heard(machine.boot("check", 0), model) if "ended" in line]
        assert [line["ended"] for line in ended] == [0]
    except BaseException:
        print("\n".join(machine.console[-200:]))
        raise
    finally:
        record_property("power cuts", cuts)
        record_property(
            "calls answered", sum(count for what, count in model.counts.items() if what.startswith("done: "))
        )
    assert sum(count for what, count in model.counts.items() if what.startswith("done: ")) > 0
    assert model.written["b"] > 0
    print(dict(sorted(model.counts.items())), model.written)


def heard(lines: Iterator[Line], model: Model) -> Iterator[Line]:
    """What the machine says, once the model knows it."""
    for line in lines:
        model.hear(line)
        yield line


def cut_at_work(machine: PowerMachine, model: Model, random_: random.Random) -> None:
    """Let it do some calls, and cut the power inside one of them or just after it."""
    calls, booted = random_.randrange(3, 16), False
    for line in heard(machine.boot("work", random_.randrange(1 << 32)), model):
        booted = booted or "booted" in line
        if "begin" in line and "writer" not in line:
            calls -= 1
            if calls == 0:
                time.sleep(random_.choice([0.0, 0.003, 0.01, 0.03]))
                machine.cut()
    if not booted:
        words = [line for line in machine.console if "errno" in line or "panic" in line] or machine.console[-1:]
        pytest.skip(f"user-mode Linux does not boot here: {' / '.join(words)}")
    assert calls <= 0, "the machine ended by itself"
    model.cut()


def cut_in_recovery(machine: PowerMachine, model: Model, random_: random.Random) -> None:
    """Cut the power while the agent starts, or while what it serves is looked at."""
    for line in heard(machine.boot("check", 0), model):
        if "booted" in line:
            time.sleep(random_.uniform(0.2, 2.0))
            machine.cut()
    model.cut()

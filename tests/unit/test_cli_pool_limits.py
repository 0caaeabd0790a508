"""What a pool can run out of beside its data, as `tidemark pool` shows it."""

import json

from support.cli_schema import validate
from support.fake_agent import CommandLine, FakeAgent

from csi_driver.cli.refusals import no_space
from csi_driver.rpc.clients.cli_client import PoolLimit, PoolSpace


def limited(used: int) -> PoolSpace:
    limits = (
        PoolLimit("thin metadata", used << 20, 400 << 20, 300 << 20, "add a disk: tidemark pool grow"),
        PoolLimit("metadata area", 1 << 20, 32 << 20, 28 << 20),
    )
    return PoolSpace(
        "fast", "n1", "lvm", "vg/pool", "u", 20 << 30, 9 << 30, 0, 9 << 30, 1 << 30, 2.0, 1, 1, limits=limits
    )


def test_what_else_a_pool_can_run_out_of_is_shown(tidemark: CommandLine, agent: FakeAgent) -> None:
    agent.pools = lambda: [limited(100)]  # type: ignore[method-assign]
    shown = " ".join(tidemark("pool", "show", "fast").split())
    assert "thin metadata: 100 MiB of 400 MiB; from 300 MiB on, nothing new is taken" in shown
    assert "metadata area: 1 MiB of 32 MiB" in shown
    assert "refuses" not in shown
    documents = json.loads(tidemark("pool", "list", "-o", "json"))
    validate(documents, "pool", many=True)
    assert [limit["used"] for limit in documents[0]["limits"]] == [100 << 20, 1 << 20]


def test_a_limit_that_is_passed_says_what_makes_more_of_it(tidemark: CommandLine, agent: FakeAgent) -> None:
    agent.pools = lambda: [limited(320)]  # type: ignore[method-assign]
    for command in ("show", "list"):
        shown = " ".join(tidemark("pool", command).split())
        assert "refuses new volumes and snapshots: 320 MiB of 400 MiB of its thin metadata are used" in shown
        assert "or add a disk: tidemark pool grow" in shown
    refusal = no_space(limited(320), 1 << 30)
    assert "320 MiB of 400 MiB of its thin metadata" in refusal
    assert "tidemark pool grow" in refusal
    assert "metadata area" not in refusal


def test_disks_are_not_touched_by_a_command_that_is_wrong(tidemark: CommandLine) -> None:
    assert "add --lvm" in tidemark("pool", "create", "fast", "/dev/null", code=2)
    assert "not a valid pool name" in tidemark("pool", "create", "Fast", "--lvm", "/dev/null", code=2)
    assert "not a name of a volume group" in tidemark(
        "pool", "create", "fast", "--lvm", "--vg", "a b", "/dev/null", code=2
    )
    assert "is not a size" in tidemark("pool", "create", "fast", "--lvm", "--size", "huge", "/dev/null", code=2)

"""Each check of `tidemark doctor`: what makes it ok, and that everything else has a remedy."""

from dataclasses import replace

import pytest
from support.cli_schema import validate

from csi_driver.cli.doctor import checks
from csi_driver.cli.doctor.command import lines
from csi_driver.cli.doctor.facts import Facts, PoolFacts
from csi_driver.cli.output.documents import plain
from csi_driver.host.clock import ClockState

ALL = (1 << 41) - 1
GOOD = Facts(
    release="6.1.0-25-amd64",
    root=True,
    capabilities=ALL,
    file_systems=frozenset({"xfs", "ext4"}),
    missing_tools=(),
    loop_control=True,
    lvm="",
    lvm_seen=True,
    tracefs="/sys/kernel/tracing",
    clock=ClockState(True, 0.01),
    kubelet="/var/lib/kubelet",
    kubelet_parts=frozenset({"plugins", "plugins_registry", "pods", "pki"}),
    kubelet_shared=True,
    pools=(PoolFacts("/srv/pool", "xfs", True),),
    agent="1.2.3",
    agent_error="",
)


def state_of(check: str, facts: Facts) -> str:
    (result,) = [result for result in checks.run_checks(facts) if result.check == check]
    assert bool(result.remedy) == (result.state != "ok"), result
    return result.state


def test_a_good_machine_has_nothing_to_do() -> None:
    results = checks.run_checks(GOOD)
    assert {result.state for result in results} == {"ok"}
    assert len(results) == len({result.check for result in results}) == 12


@pytest.mark.parametrize(
    ("check", "changes", "state"),
    [
        ("kernel", {"release": "5.15.0"}, "ok"),
        ("kernel", {"release": "5.14.21-150500"}, "fail"),
        ("kernel", {"release": "4.18.0"}, "fail"),
        ("kernel", {"release": "10.2"}, "ok"),
        ("kernel", {"release": "odd"}, "warn"),
        ("XFS", {"file_systems": frozenset({"ext4"})}, "fail"),
        ("XFS", {"file_systems": None}, "warn"),
        ("programs", {"missing_tools": ("mkfs.xfs",)}, "fail"),
        ("loop devices", {"loop_control": False}, "fail"),
        ("loop devices", {"loop_control": None}, "warn"),
        ("capabilities", {"root": False}, "warn"),
        ("capabilities", {"capabilities": None}, "warn"),
        ("capabilities", {"capabilities": ALL & ~(1 << 21)}, "fail"),
        ("capabilities", {"capabilities": ALL & ~(1 << 24)}, "warn"),
        ("LVM filter", {"lvm": "no global_filter rejects /dev/loop*"}, "warn"),
        ("LVM filter", {"lvm_seen": False}, "warn"),
        ("tracefs", {"tracefs": ""}, "warn"),
        ("tracefs", {"tracefs": None}, "warn"),
        ("clock", {"clock": ClockState(False, 0.0)}, "warn"),
        ("clock", {"clock": ClockState(True, 7.5)}, "warn"),
        ("clock", {"clock": None}, "warn"),
        ("kubelet directory", {"kubelet": "", "kubelet_parts": frozenset()}, "ok"),
        ("kubelet directory", {"kubelet_parts": frozenset({"plugins"})}, "fail"),
        ("kubelet directory", {"kubelet_parts": frozenset(), "root": False}, "warn"),
        ("mount propagation", {"kubelet": "", "kubelet_shared": None}, "ok"),
        ("mount propagation", {"kubelet_shared": False}, "fail"),
        ("mount propagation", {"kubelet_shared": None}, "warn"),
        ("agent", {"agent": "", "agent_error": "no agent answers"}, "warn"),
        ("pool /srv/pool", {"pools": (PoolFacts("/srv/pool", "ext4"),)}, "fail"),
        ("pool /srv/pool", {"pools": (PoolFacts("/srv/pool", "xfs", False),)}, "fail"),
        ("pool /srv/pool", {"pools": (PoolFacts("/srv/pool", error="No such file or directory"),)}, "fail"),
    ],
)
def test_one_fact_decides_one_check(check: str, changes: dict[str, object], state: str) -> None:
    facts = replace(GOOD, **changes)  # type: ignore[arg-type]
    assert state_of(check, facts) == state


def test_what_is_missing_is_named() -> None:
    (result,) = [checks.check_capabilities(replace(GOOD, capabilities=ALL & ~(1 << 21)))]
    assert "CAP_SYS_ADMIN" in result.message
    assert "5.15" in checks.check_kernel(replace(GOOD, release="5.4.0")).remedy
    assert "mkfs.xfs" in checks.check_tools(replace(GOOD, missing_tools=("mkfs.xfs",))).message


def test_results_are_as_the_published_schema_says_and_each_is_one_line_with_its_remedy() -> None:
    results = checks.run_checks(replace(GOOD, clock=ClockState(False, 0.0), release="4.4"))
    validate(plain(results), "check", many=True)
    assert lines(results[0]) == ["fail  kernel: 4.4 is older than 5.15", "      use Linux 5.15 or newer"]
    assert lines(checks.check_xfs(GOOD)) == ["ok    XFS: the kernel has it"]

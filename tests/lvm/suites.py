"""What runs inside the machine, a boot for each: the short suite with every change, the others in `make soak`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CRASH = "tests/crash/test_crash_pool.py::test_killed_at_every_point"
SANITY = "tests/agent/test_csi_sanity.py::test_conformance_on_a_real_pool"
DATABASE = "tests/agent/test_postgresql.py"


@dataclass(frozen=True)
class Suite:
    """`arguments`: of pytest. `limit`: seconds until it is given up."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    limit: float = 600.0


CONTRACT_SLICE = tuple(
    f"tests/contract/test_contract_{test}[lvm]"
    for test in (
        "backend.py::test_what_open_finds_is_what_was_made",  # records out of tags
        "backend.py::test_empty_and_erased",  # mapped chunks, the next generation
        "volumes.py::test_a_volume_from_a_snapshot",  # a clone, and one that is larger: three commits
        "snapshots.py::test_a_snapshot_of_a_volume_in_use_holds_what_was_synced",  # messages while it is suspended
        "groups.py::test_a_group_holds_all_its_volumes",
        "rollbacks.py::test_back_to_older_then_newer",
    )
)
"""Contract tests that touch a device, one for each thing that is lvm's own; a test takes 5 to 20 s here."""

INSIDE_SLICE = tuple(
    f"tests/lvm/inside/test_{test}"
    for test in (
        "machine.py",
        "dm.py",
        "dm_freeze.py::test_all_disks_are_taken_at_one_moment",
        "dm_freeze.py::test_a_disk_that_somebody_else_suspended_is_refused_and_stays_suspended",
        "dm_freeze.py::test_past_the_deadline_all_is_free",
        "dm_freeze.py::test_whoever_dies_at_a_call_all_is_free",  # one process at each of ten calls
        "dm_session.py::test_when_all_die_the_next_agent_frees_what_is_recorded",
        "lvm_commands.py::test_commands_do_what_they_say_and_reports_are_read",
        "lvm_commands.py::test_an_lvm_that_hangs_is_killed_at_its_deadline_and_the_pool_goes_on",
        "lvm_commands.py::test_a_thin_device_that_a_killed_lvm_had_made_and_not_counted_wedges_nothing",
        "lvm_pool_disks.py::test_a_pool_is_made_and_grows_while_its_volumes_are_written",
        "lvm_kills.py",
    )
)
"""Of `tests/lvm/inside`, what keeps data and pods: with all of it, the short suite took more than twenty minutes beside the other tests."""

SUITES = {
    "short": Suite(
        [
            *INSIDE_SLICE,
            *CONTRACT_SLICE,
            # Five points of each: what is made of several commits, what freezes, what suspends, what replaces.
            *(f"{CRASH}[{name}]" for name in ("create from snapshot", "group of mounted ones")),
            *(f"{CRASH}[{name}]" for name in ("snapshot of a raw one in use", "rollback with safety")),
        ],
        {"TIDEMARK_CRASH_POINTS": "5", "TIDEMARK_LVM_KILLS": "3"},
        1800,
    ),
    "inside": Suite(["tests/lvm/inside"], {"TIDEMARK_LVM_KILLS": "20"}, limit=7200),
    "contract": Suite(["tests/contract", "-k", "lvm"], limit=7200),
    "sanity": Suite([f"{SANITY}[mount-ext4]", f"{SANITY}[block]"], limit=3600),
    "database": Suite([DATABASE], {"TIDEMARK_DATABASE_CUTS": "10"}, 3600),
    "model": Suite(["tests/agent/test_model.py"], {"TIDEMARK_MODEL_EXAMPLES": "2"}, 10800),
    "crash": Suite(["tests/crash", "-k", "every_point and not on_the_node"], limit=36000),
    "deaths": Suite(["tests/lvm/inside/test_dm_freeze.py"], {"TIDEMARK_LVM_DEATHS": "all"}, 3600),
    "kills": Suite(["tests/lvm/inside/test_lvm_kills.py"], {"TIDEMARK_LVM_KILLS": "1000"}, 18000),
}


def chosen() -> list[str]:
    """The suite that TIDEMARK_LVM_SUITE names, or the short one."""
    return [os.environ.get("TIDEMARK_LVM_SUITE", "short")]

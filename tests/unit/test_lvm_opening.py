"""Which volume groups are served as a pool, and what is said of the others."""

from dataclasses import replace

import pytest

from csi_driver.backends.lvm import opening
from csi_driver.backends.lvm.pool_status import area_of
from csi_driver.backends.options import PoolOptions
from csi_driver.domain.errors import DriverError
from csi_driver.host.lvm.reports import ThinPool, VolumeGroup
from csi_driver.host.lvm.tags import pool_of, pool_tag

MIB = 1 << 20
OPTIONS = PoolOptions("fast", "node-1", "vg/pool")
POOL = {"format": 1, "uuid": "u-1", "name": "fast", "owner": "node-1"}
GROUP = VolumeGroup("vg", "g", 1 << 40, 1 << 30, 4 * MIB, (pool_tag(POOL),), 2, 0, 3, 64 * MIB, 30 * MIB, "", "")
THIN = ThinPool("pool", "p", 1 << 40, 1 << 30, 65536, True, "error", 1.0, 1.0, "", "twi-aotz--")


def test_a_pool_of_this_agent_is_served_as_it_is() -> None:
    opening.check_group("fast", GROUP)
    assert opening.check_pool("fast", "vg", "pool", [THIN]) == THIN
    assert opening.identify(OPTIONS, GROUP, ["v-x"]) == opening.Identity("u-1")
    assert opening.known_uuid(GROUP) == "u-1"


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (replace(GROUP, lock_type="sanlock"), "shared by several machines"),
        (replace(GROUP, missing_pv_count=1), "1 of the 2 disks of volume group vg are away"),
        (replace(GROUP, area_size=MIB), "1 MiB for its metadata.*pvcreate --metadatasize 64m"),
    ],
)
def test_a_group_that_cannot_be_a_pool_is_refused_with_what_to_do(group: VolumeGroup, words: str) -> None:
    with pytest.raises(DriverError, match=words):
        opening.check_group("fast", group)


@pytest.mark.parametrize(
    ("pools", "words"),
    [
        ([], "no thin pool 'pool'.*tidemark pool create"),
        ([replace(THIN, name="other")], "give one of vg/other"),
        ([replace(THIN, when_full="queue")], "lvchange --errorwhenfull y vg/pool"),
        ([replace(THIN, zero=False)], "lvchange -Zy vg/pool"),
    ],
)
def test_a_thin_pool_that_would_lose_or_show_data_is_refused(pools: list[ThinPool], words: str) -> None:
    with pytest.raises(DriverError, match=words):
        opening.check_pool("fast", "vg", "pool", pools)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (POOL | {"owner": "node-2"}, "is pool 'fast' of 'node-2', not 'fast' of 'node-1'"),
        (POOL | {"name": "slow"}, "is pool 'slow' of 'node-1'"),
        (POOL | {"name": "slow", "owner": ""}, "is pool 'slow' of ''"),
        (POOL | {"format": 2}, "has format 2.*use a newer driver"),
        (POOL | {"format": "1"}, "cannot be read"),
        (POOL | {"uuid": "../../etc"}, "cannot be read"),
        ({"format": 1}, "cannot be read"),
    ],
)
def test_a_pool_of_somebody_else_or_of_another_format_is_refused(made: dict[str, object], words: str) -> None:
    with pytest.raises(DriverError, match=words):
        opening.identify(OPTIONS, replace(GROUP, tags=(pool_tag(made),)), [])


def test_a_pool_that_nobody_owns_yet_is_claimed_in_one_change() -> None:
    tag = pool_tag(POOL | {"owner": ""})
    found = opening.identify(OPTIONS, replace(GROUP, tags=("of-others", tag)), [])
    assert found.uuid == "u-1"
    assert found.drop == (tag,)
    assert pool_of(found.add) == POOL


def test_a_volume_group_becomes_a_pool_only_if_that_is_said_and_it_is_empty() -> None:
    bare = replace(GROUP, tags=("of-others",))
    with pytest.raises(DriverError, match=r"tidemark pool create.*--pool-init"):
        opening.identify(OPTIONS, bare, [])
    init = replace(OPTIONS, init=True)
    with pytest.raises(DriverError, match=r"other logical volumes .home"):
        opening.identify(init, bare, ["home"])
    found = opening.identify(init, bare, [])
    assert pool_of(found.add) == POOL | {"uuid": found.uuid}
    assert found.drop == ()


@pytest.mark.parametrize("tags", [(), ("of-others",), ("tidemark.pool=!",), (pool_tag({"uuid": "a/b"}),)])
def test_the_uuid_of_what_cannot_be_read_is_not_known(tags: tuple[str, ...]) -> None:
    assert opening.known_uuid(replace(GROUP, tags=tags)) == ""


def test_half_of_the_metadata_area_may_be_used() -> None:
    found = area_of(GROUP)
    assert (found.total, found.used) == (32 * MIB, 2 * MIB)

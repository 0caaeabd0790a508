"""What lvm is given and what it says: configuration, reports, refusals."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.backends.lvm import refusals
from csi_driver.domain import errors
from csi_driver.host.lvm import reports
from csi_driver.host.lvm.configuration import configuration, is_usable_path, parse_version, version_text

NEW = (2, 3, 16)
LV = {
    "lv_name": "v-1.1", "lv_uuid": "abc-def", "lv_size": "4194304", "lv_tags": "a,b", "pool_lv": "pool", "origin": "",
    "thin_id": "7", "lv_attr": "Vwi-aotz--", "data_percent": "12.50",
}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ("  LVM version:     2.03.16(2) (2022-05-18)\n  Library version: 1.02.185\n", (2, 3, 16)),
        ("  LVM version:     2.03.11(2)-RHEL8 (2021-01-28)\n", (2, 3, 11)),
        ("  LVM version:     2.02.187(2) (2020-03-24)\n", (2, 2, 187)),
        ("no such thing", None),
    ],
)
def test_the_version_is_read(answer: str, version: tuple[int, int, int] | None) -> None:
    assert parse_version(answer) == version


def test_versions_are_written_as_lvm_does() -> None:
    assert version_text((2, 3, 9)) == "2.03.9"
    assert version_text((2, 2, 187)) == "2.02.187"


def test_a_filter_accepts_the_given_devices_and_rejects_all_others() -> None:
    text = configuration(["/dev/disk/by-id/nvme-Model_1.0", "/dev/vdb"], NEW, udev=False)
    accepted = '["a|^/dev/disk/by-id/nvme-Model_1[.]0$|","a|^/dev/vdb$|","r|.*|"]'
    assert f"filter={accepted} " in text
    assert f"global_filter={accepted} " in text
    assert "use_devicesfile=0" in text
    assert "use_devicesfile" not in configuration(["/dev/vdb"], (2, 3, 11), udev=False)  # that one does not know it


def test_without_udev_lvm_makes_the_nodes_itself() -> None:
    assert "udev_sync=0 udev_rules=0 verify_udev_operations=1" in configuration(["/dev/vdb"], NEW, udev=False)
    assert "udev_sync=1 udev_rules=1 verify_udev_operations=0" in configuration(["/dev/vdb"], NEW, udev=True)


@given(st.text(max_size=60))
def test_no_path_breaks_out_of_the_filter(text: str) -> None:
    path = f"/dev/{text}"
    if is_usable_path(path):
        assert not set(path) & set('"|\\{}[]()*?^$ \n')
        configuration([path], NEW, udev=False)
    else:
        with pytest.raises(ValueError, match="filter"):
            configuration([path], NEW, udev=False)


def report(kind: str, *rows: dict[str, str]) -> str:
    return json.dumps({"report": [{kind: list(rows)}], "log": []})


def test_a_report_is_read() -> None:
    found = reports.logical_volume(reports.parse(report("lv", LV))[0])
    assert (found.name, found.size, found.tags, found.thin_id, found.data_percent) == (
        "v-1.1",
        4 << 20,
        ("a", "b"),
        7,
        12.5,
    )
    assert (found.active, found.open, found.suspended) == (True, True, False)
    idle = reports.logical_volume(LV | {"thin_id": "", "lv_tags": "", "data_percent": "", "lv_attr": "Vwi---tz-k"})
    assert (idle.thin_id, idle.tags, idle.data_percent, idle.active) == (None, (), None, False)
    assert reports.logical_volume(LV | {"lv_attr": "Vwi-sotz--"}).suspended


@given(st.sampled_from(sorted(LV)), st.none() | st.text(max_size=8))
def test_a_column_that_is_missing_or_odd_is_a_bad_report_and_no_crash(key: str, value: str | None) -> None:
    row = {name: text for name, text in (LV | {key: value}).items() if text is not None}
    refusal = ""
    try:
        reports.logical_volume(row)
    except reports.BadReport as error:
        refusal = str(error)
    assert refusal == "" or key in refusal


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"report": 7}', '{"report": [{"lv": [{"lv_name": 3}]}]}', '{"report": [7]}']
)
def test_what_is_no_report_is_said(text: str) -> None:
    with pytest.raises(reports.BadReport, match="cannot be read"):
        reports.parse(text)


def test_the_uuid_of_a_device_has_no_dashes() -> None:
    assert reports.dm_uuid("AbC-1", "dEf-2-3") == "LVM-AbC1dEf23"


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ('  Cannot create new thin volume, free space in thin pool fast/pool reached threshold.', errors.OutOfSpace, "pool grow"),
        ('  Volume group "fast" has insufficient free space (10 extents): 25 required.', errors.OutOfSpace, "no room"),
        ('  VG fast metadata on /dev/ubda (607234 bytes) exceeds maximum metadata size (521472 bytes)\n  Failed to write VG fast.',
         errors.OutOfSpace, "metadata is full"),
        ('  Logical volume fast/v contains a filesystem in use.', errors.InUse, "stop what uses it"),
        ('  Logical volume fast/v is used by another device.', errors.InUse, "stop what uses it"),
        ('  Volume group "fast" not found\n  Cannot process volume group fast', errors.Unavailable, "attached"),
        ('  Failed to find logical volume "fast/v"', errors.Damaged, "by hand"),
        ('  Logical Volume "v" already exists in volume group "fast"', errors.AlreadyExists, "by hand"),
        ('  Cannot access VG fast with system ID other with local system ID this.', errors.Unavailable, "another machine"),
        ('  Cannot change VG fast while PVs are missing.\n  Consider vgreduce --removemissing.', errors.Unavailable, "away"),
        ('  Thin pool fast-pool-tpool (253:2) transaction_id is 3, while expected 4.\n  Manual intervention may be required',
         errors.Unavailable, "repair"),
        ("  /run/lock/lvm/V_fast:aux: open failed: Permission denied\n  Can't get lock for fast.", errors.Busy, "try again"),
        ('  thin-pool: Required device-mapper target(s) not detected in your kernel.\n  modprobe failed', errors.Precondition,
         "modprobe -a dm-thin-pool dm-snapshot"),
        ('  device-mapper: suspend ioctl on (253:5) failed: Device or resource busy', errors.Busy, "try again"),
        ('  Something that nobody has seen', errors.Precondition, "nobody has seen"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_to_do(said: str, kind: type[errors.DriverError], words: str) -> None:
    error = refusals.explain("lvcreate in pool fast", said)
    assert type(error) is kind
    assert "lvcreate in pool fast" in str(error)
    assert words in str(error)


def test_warnings_are_left_out_unless_they_are_all() -> None:
    said = (
        "  WARNING: Sum of all thin volume sizes exceeds.\n  For thin pool auto extension activation/x.\n  It failed.\n"
    )
    assert refusals.essence(said) == "It failed"
    assert refusals.essence("  WARNING: only this\n") == "WARNING: only this"
    assert "exit status 5" in str(refusals.explain("lvs in pool fast", "", 5))

"""Mount flags: each is what every kernel from 5.15 on takes, and what is refused is named; tests/host mounts each of them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.domain.errors import InvalidRequest
from csi_driver.domain.model import AccessMode, Capability, SizeRange, VolumeRequest
from csi_driver.domain.mount_flags import check_known_flags, check_mount_flags, examples, plain_flags, removed_flags
from csi_driver.domain.requests import check_capability, check_volume_request

ACCEPTED_BEFORE = {
    "ext4": ["noacl", "nouser_xattr", "prjquota", "iversion", "norelatime", "nostrictatime"],
    "xfs": ["sunit=8", "swidth=16", "iversion", "norelatime", "nostrictatime"],
}
"""What version 4414c43 accepted, and a mount refuses."""


@pytest.mark.parametrize("flag", ["noatime", "ro", "context=system_u:object_r:svirt_t:s0:c1,c2", "nosuid"])
def test_flags_for_all(flag: str) -> None:
    for fs_type in ("ext4", "xfs", ""):
        check_mount_flags([flag], fs_type)


@pytest.mark.parametrize(
    "flag",
    [
        "",
        " ",
        "bind",
        "loop",
        "noatime,suid",
        "remount",
        "noatime ",
        "x y",
        "data=a b",
        "no/atime",
        "offset=0",
        "nöatime",
    ],
)
def test_flags_that_are_refused(flag: str) -> None:
    for fs_type in ("ext4", "xfs", ""):
        with pytest.raises(InvalidRequest, match="mount flag"):
            check_mount_flags([flag], fs_type)


def test_flags_of_one_file_system() -> None:
    check_mount_flags(["data=ordered"], "ext4")
    check_mount_flags(["logbsize=256k"], "xfs")
    check_mount_flags(["data=ordered", "logbsize=256k"], "")
    with pytest.raises(InvalidRequest, match="with xfs"):
        check_mount_flags(["data=ordered"], "xfs")
    with pytest.raises(InvalidRequest, match="with ext4"):
        check_mount_flags(["logbsize=256k"], "ext4")


@given(st.lists(st.text(), max_size=4), st.sampled_from(["ext4", "xfs", ""]))
def test_no_flag_smuggles_another(flags: list[str], fs_type: str) -> None:
    """Options are joined by commas for mount: an accepted flag is one option of the list, or a value that may hold commas."""
    try:
        check_mount_flags(flags, fs_type)
    except InvalidRequest:
        return
    for flag in flags:
        assert "," not in flag.partition("=")[0]
        assert flag.isascii()
        assert not set(flag) & set(" \t\n\0\\/")


@pytest.mark.parametrize(("fs_type", "flag"), [(fs, flag) for fs, flags in ACCEPTED_BEFORE.items() for flag in flags])
def test_what_no_kernel_takes_is_refused_for_a_new_volume(fs_type: str, flag: str) -> None:
    """A pod of it would hang. One that exists goes on: on an older kernel its mount may well take it."""
    name = flag.partition("=")[0]
    how = Capability("mount", AccessMode.WRITER, fs_type, (flag,))
    with pytest.raises(InvalidRequest, match=f"'{name}' is refused by kernels .* with {fs_type}"):
        check_volume_request(VolumeRequest("v", SizeRange(1), (how,)))
    check_capability(how, made_before=True)
    assert removed_flags(["noatime", flag], fs_type) == [flag]


def test_what_was_never_accepted_is_refused_for_a_volume_that_exists_too() -> None:
    check_known_flags(["noatime", "commit=5", "logbufs=8"], "")
    for flag, fs_type in itertools.product(("bind", "loop", "offset=0", "noatime,suid", ""), ("", "ext4", "xfs")):
        with pytest.raises(InvalidRequest, match="is not allowed"):
            check_known_flags([flag], fs_type)
    with pytest.raises(InvalidRequest, match="'logbufs' is not allowed with ext4"):
        check_known_flags(["commit=5", "logbufs=8"], "ext4")


@pytest.mark.parametrize("fs_type", ["", "ext4", "xfs"])
def test_a_flag_has_the_value_that_it_needs(fs_type: str) -> None:
    for name, example in examples(fs_type).items():
        check_mount_flags([example], fs_type)
        with pytest.raises(InvalidRequest, match=f"'{name}' needs another value: write it like {name}="):
            check_mount_flags([f"{name}="], fs_type)
        if name not in plain_flags(fs_type):
            with pytest.raises(InvalidRequest, match=f"'{name}' needs another value"):
                check_mount_flags([name], fs_type)
    for name in plain_flags(fs_type) - examples(fs_type).keys():
        with pytest.raises(InvalidRequest, match=f"'{name}' takes no value|alone is refused"):
            check_mount_flags([f"{name}=1"], fs_type)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["commit=soon"], "write it like commit=30"),
        (["errors=ignore"], "write it like errors=remount-ro"),
        (["logbufs=9"], "write it like logbufs=8"),
        (["inode_readahead_blks=33"], r"write it like inode_readahead_blks=32 \(0, or a power of two"),
        (["allocsize=96k"], r"write it like allocsize=64k \(a power of two from 4k to 1g\)"),
        (["logbsize=48k"], r"write it like logbsize=256k \(16k, 32k, 64k, 128k or 256k\)"),
        (["journal_async_commit"], "alone is refused .* add data=writeback"),
        (["data=journal", "delalloc"], "exclude each other"),
    ],
)
def test_values_and_pairs_that_a_mount_refuses(flags: list[str], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        check_mount_flags(flags, "")


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("inode_readahead_blks", "0 1 2 64 1073741824", "3 33 1073741823 2147483648 064 -1 32k"),
        (
            "logbsize",
            "16k 16K 16384 32k 32768 64k 65536 128k 131072 256k 256K 262144",
            "0 0k 8k 8192 16 24k 20000 512k 524288 1m m 256m 16kk",
        ),
        (
            "allocsize",
            "4096 4k 4K 64k 65536 1m 1M 1048576 512m 1024m 1048576k 1g 1G 1073741824",
            "0 1 2k 2048 5k 4095 96k 100000 3m 2g 2048m 2097152k 2147483648 g 04k",
        ),
        ("commit", "0 30 999999 017", "08 019 1000000 -1"),
        ("stripe", "0 16 999999999 017", "08 1000000000 16k"),
    ],
)
def test_a_bounded_value_is_one_that_a_mount_takes(name: str, taken: str, refused: str) -> None:
    for value in taken.split():
        check_mount_flags([f"{name}={value}"], "")
    for value in refused.split():
        with pytest.raises(InvalidRequest, match=f"'{name}' needs another value: write it like {name}="):
            check_mount_flags([f"{name}={value}"], "")


def test_a_volume_that_exists_keeps_a_value_that_is_refused_now() -> None:
    check_known_flags(["inode_readahead_blks=33", "allocsize=96k", "logbsize=0", "commit=08"], "")


def test_a_flags_value_is_not_reported() -> None:
    """By the protocol it may be a secret."""
    for flag in ("commit=hunter2", "context=hunter2/", "passphrase=hunter2", "noatime=hunter2"):
        with pytest.raises(InvalidRequest) as refused:
            check_mount_flags([flag], "ext4")
        assert "hunter2" not in str(refused.value)

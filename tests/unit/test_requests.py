"""What a request may say; everything else is refused by its name."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.domain.errors import InvalidRequest
from csi_driver.domain.model import AccessMode, Capability, SizeRange, Source, VolumeRequest
from csi_driver.domain.requests import (
    KUBERNETES_PREFIX,
    check_capability,
    check_map,
    check_name,
    check_volume_parameters,
    check_volume_request,
    difference,
    refuse_parameters,
    split_labels,
)

BLOCK = Capability("block", AccessMode.WRITER)
EXT4 = Capability("mount", AccessMode.WRITER, "ext4")
XFS = Capability("mount", AccessMode.WRITER, "xfs")
GOOD = VolumeRequest("v", SizeRange(1), (BLOCK,))


@given(st.text())
def test_names(name: str) -> None:
    good = 0 < len(name.encode()) <= 128 and "\0" not in name
    if good:
        check_name(name, "the name")
    else:
        with pytest.raises(InvalidRequest, match="the name"):
            check_name(name, "the name")


@given(st.dictionaries(st.text(), st.text()))
def test_labels_and_parameters_are_parted(values: dict[str, str]) -> None:
    values |= {KUBERNETES_PREFIX + key: value for key, value in list(values.items())[:2]}
    parameters, labels = split_labels(values, "parameters")
    assert parameters | labels == values
    assert not parameters.keys() & labels.keys()
    assert all(key.startswith(KUBERNETES_PREFIX) for key in labels)
    assert not any(key.startswith(KUBERNETES_PREFIX) for key in parameters)


def test_maps_have_a_limit_in_bytes() -> None:
    check_map({"k": "v" * 4095}, "parameters")
    with pytest.raises(InvalidRequest, match="parameters"):
        check_map({"k": "v" * 4096}, "parameters")
    with pytest.raises(InvalidRequest):
        check_map({"k": "é" * 2048}, "parameters")


def test_parameters_of_a_class() -> None:
    check_volume_parameters({})
    check_volume_parameters({"pool": "fast", "provisioning": "thick"})
    check_volume_parameters({"provisioning": "thin"})
    for key, value in (("pool", "No"), ("pool", ""), ("pool", "../x"), ("provisioning", "Thick"), ("speed", "1")):
        with pytest.raises(InvalidRequest, match=key):
            check_volume_parameters({key: value})
    refuse_parameters({}, "snapshots")
    with pytest.raises(InvalidRequest, match="pool"):
        refuse_parameters({"pool": "a"}, "snapshots")


def test_capabilities() -> None:
    for good in (BLOCK, EXT4, XFS, Capability("mount", AccessMode.READER)):
        check_capability(good)
    for bad, word in (("btrfs", "btrfs is refused"), ("ext3", "ext3"), ("EXT4", "EXT4"), ("xfs;", "xfs;")):
        with pytest.raises(InvalidRequest, match=word):
            check_capability(Capability("mount", AccessMode.WRITER, bad))


def test_volume_requests() -> None:
    check_volume_request(GOOD)
    check_volume_request(replace(GOOD, capabilities=(BLOCK, EXT4)))
    for bad in (
        replace(GOOD, name=""),
        replace(GOOD, capabilities=()),
        replace(GOOD, capabilities=(EXT4, XFS)),
        replace(GOOD, capabilities=(BLOCK, replace(EXT4, mount_flags=("bind",)))),
        replace(GOOD, parameters={"speed": "1"}),
    ):
        with pytest.raises(InvalidRequest):
            check_volume_request(bad)


def test_differences_are_named() -> None:
    assert difference(GOOD, GOOD) == ""
    assert difference(replace(GOOD, range=SizeRange(9), labels={"csi.storage.k8s.io/x": "y"}), GOOD) == ""
    assert "capabilities" in difference(replace(GOOD, capabilities=(EXT4,)), GOOD)
    difference_text = difference(
        replace(GOOD, parameters={"pool": "a"}), replace(GOOD, parameters={"provisioning": "thick"})
    )
    assert "pool (None then, 'a' now)" in difference_text
    assert "provisioning ('thick' then, None now)" in difference_text
    difference_text = difference(
        replace(GOOD, source=Source("volume", "x")), replace(GOOD, source=Source("snapshot", "x"))
    )
    assert "source" in difference_text
    assert "none then, x now" in difference(replace(GOOD, source=Source("volume", "x")), GOOD)

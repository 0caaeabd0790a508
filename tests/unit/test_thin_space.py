"""Chunks that only some thin volumes refer to, from a dump of the pool's metadata."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from csi_driver.host.block import thin_space

DUMP = """<superblock uuid="" time="3" transaction="6" flags="0" version="2" data_block_size="128" nr_data_blocks="0">
  <device dev_id="1" mapped_blocks="12" transaction="0" creation_time="0" snap_time="1">
    <range_mapping origin_begin="0" data_begin="0" length="10" time="0"/>
    <single_mapping origin_block="10" data_block="50" time="1"/>
    <single_mapping origin_block="11" data_block="51" time="1"/>
  </device>
  <device dev_id="2" mapped_blocks="11" transaction="2" creation_time="1" snap_time="3">
    <range_mapping origin_begin="0" data_begin="0" length="10" time="0"/>
    <single_mapping origin_block="10" data_block="60" time="1"/>
  </device>
  <device dev_id="12" mapped_blocks="2" transaction="2" creation_time="1" snap_time="3">
    <range_mapping origin_begin="0" data_begin="8" length="2" time="0"/>
  </device>
</superblock>
"""
WITH_SHARED_PARTS = """<superblock uuid="" time="3" transaction="6" version="2" data_block_size="128" nr_data_blocks="0">
  <def name="7">
    <range_mapping origin_begin="0" data_begin="0" length="8" time="0"/>
  </def>
  <device dev_id="1" mapped_blocks="12" transaction="0" creation_time="0" snap_time="1">
    <ref name="7"/>
    <range_mapping origin_begin="8" data_begin="8" length="2" time="0"/>
    <range_mapping origin_begin="10" data_begin="50" length="2" time="1"/>
  </device>
  <device dev_id="2" mapped_blocks="11" transaction="2" creation_time="1" snap_time="3">
    <ref name="7"/>
    <range_mapping origin_begin="8" data_begin="8" length="2" time="0"/>
    <single_mapping origin_block="10" data_block="60" time="1"/>
  </device>
  <device dev_id="12" mapped_blocks="2" transaction="2" creation_time="1" snap_time="3">
    <range_mapping origin_begin="0" data_begin="8" length="2" time="0"/>
  </device>
</superblock>
"""


@pytest.fixture(params=[DUMP, WITH_SHARED_PARTS], ids=["plain", "shared parts"])
def dump(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def metadata(_: str) -> Iterator[str]:
        yield "/dev/dm-0"

    monkeypatch.setattr(thin_space, "_metadata", metadata)
    monkeypatch.setattr(thin_space, "_lines", lambda argv, seconds: request.param.splitlines(keepends=True))


@pytest.mark.usefixtures("dump")
@pytest.mark.parametrize(
    ("chosen", "chunks"),
    [([1], 2), ([2], 1), ([12], 0), ([1, 2], 8 + 2 + 1), ([1, 2, 12], 10 + 2 + 1), ([2, 12], 1), ([99], 0)],
)
@pytest.mark.parametrize("batch", [1, 2, 100])
def test_what_only_the_chosen_refer_to(
    chosen: list[int], chunks: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thin_space, "_BATCH", batch)
    assert thin_space.freed_chunks("pool", chosen, 1.0) == chunks

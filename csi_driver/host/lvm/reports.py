"""What lvm reports, as dataclasses. Sizes in bytes; lvm is asked with the columns that stand beside each class."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, str]

REPORT_OPTIONS = ("--reportformat", "json", "--units", "b", "--nosuffix")


class BadReport(ValueError):
    """A report that is not what lvm was asked for."""


def parse(text: str) -> list[dict[str, str]]:
    """Return the rows of a report in JSON, whatever it is of. Raises BadReport."""
    try:
        reports = json.loads(text)["report"]
        rows = [row for report in reports for kind, rows in report.items() if kind != "log" for row in rows]
        if not all(type(value) is str for row in rows for value in row.values()):
            raise TypeError("a value is not a text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadReport(f"lvm's report cannot be read ({error!r}): {text.strip()[:200]!r}") from error
    return rows


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """A logical volume. `thin_id`: None if it is not in a thin pool; `data_percent`: None if it is not active."""

    name: str
    uuid: str
    size: int
    tags: tuple[str, ...]
    pool: str
    origin: str
    thin_id: int | None
    attributes: str
    data_percent: float | None

    COLUMNS = "lv_name,lv_uuid,lv_size,lv_tags,pool_lv,origin,thin_id,lv_attr,data_percent"

    @property
    def active(self) -> bool:
        """Whether it has a device now."""
        return self.attributes[4:5] == "a"

    @property
    def suspended(self) -> bool:
        """Whether its device is suspended: what writes to it hangs."""
        return self.attributes[4:5] in ("s", "S")

    @property
    def open(self) -> bool:
        """Whether somebody has its device open."""
        return self.attributes[5:6] == "o"


def logical_volume(row: Row) -> LogicalVolume:
    """Read a row of lvs. Raises BadReport."""
    return LogicalVolume(
        name=_text(row, "lv_name"),
        uuid=_text(row, "lv_uuid"),
        size=_number(row, "lv_size"),
        tags=_list(row, "lv_tags"),
        pool=_text(row, "pool_lv"),
        origin=_text(row, "origin"),
        thin_id=_optional_number(row, "thin_id"),
        attributes=_text(row, "lv_attr"),
        data_percent=_percent(row, "data_percent"),
    )


@dataclass(frozen=True, slots=True)
class ThinPool:
    """A thin pool. Percents are None where it is not active. `when_full`: error or queue."""

    name: str
    uuid: str
    size: int
    metadata_size: int
    chunk_size: int
    zero: bool
    when_full: str
    data_percent: float | None
    metadata_percent: float | None
    health: str
    attributes: str

    COLUMNS = (
        "lv_name,lv_uuid,lv_size,lv_metadata_size,chunk_size,zero,lv_when_full,data_percent,metadata_percent,"
        "lv_health_status,lv_attr"
    )


def is_thin_pool(row: Row) -> bool:
    """Return whether a row of lvs with lv_attr is of a thin pool."""
    return row.get("lv_attr", "").startswith("t")


def thin_pool(row: Row) -> ThinPool:
    """Read a row of lvs. Raises BadReport."""
    return ThinPool(
        name=_text(row, "lv_name"),
        uuid=_text(row, "lv_uuid"),
        size=_number(row, "lv_size"),
        metadata_size=_number(row, "lv_metadata_size"),
        chunk_size=_number(row, "chunk_size"),
        zero=_text(row, "zero") == "zero",
        when_full=_text(row, "lv_when_full"),
        data_percent=_percent(row, "data_percent"),
        metadata_percent=_percent(row, "metadata_percent"),
        health=_text(row, "lv_health_status"),
        attributes=_text(row, "lv_attr"),
    )


@dataclass(frozen=True, slots=True)
class VolumeGroup:
    """A volume group. `area_size`, `area_free`: of the smallest area in which a disk keeps the group's metadata.

    `lock_type`: of a group that several machines share; `system_id`: of the machine that it belongs to.
    """

    name: str
    uuid: str
    size: int
    free: int
    extent_size: int
    tags: tuple[str, ...]
    pv_count: int
    missing_pv_count: int
    lv_count: int
    area_size: int
    area_free: int
    system_id: str
    lock_type: str

    COLUMNS = (
        "vg_name,vg_uuid,vg_size,vg_free,vg_extent_size,vg_tags,pv_count,vg_missing_pv_count,lv_count,vg_mda_size,"
        "vg_mda_free,vg_systemid,vg_lock_type"
    )


def volume_group(row: Row) -> VolumeGroup:
    """Read a row of vgs. Raises BadReport."""
    return VolumeGroup(
        name=_text(row, "vg_name"),
        uuid=_text(row, "vg_uuid"),
        size=_number(row, "vg_size"),
        free=_number(row, "vg_free"),
        extent_size=_number(row, "vg_extent_size"),
        tags=_list(row, "vg_tags"),
        pv_count=_number(row, "pv_count"),
        missing_pv_count=_number(row, "vg_missing_pv_count"),
        lv_count=_number(row, "lv_count"),
        area_size=_number(row, "vg_mda_size"),
        area_free=_number(row, "vg_mda_free"),
        system_id=_text(row, "vg_systemid"),
        lock_type=_text(row, "vg_lock_type"),
    )


@dataclass(frozen=True, slots=True)
class PhysicalVolume:
    """A disk of a volume group; `vg` is empty for one of none, `name` is no path for one that is away."""

    name: str
    uuid: str
    vg: str
    vg_uuid: str
    size: int
    free: int
    attributes: str

    COLUMNS = "pv_name,pv_uuid,vg_name,vg_uuid,pv_size,pv_free,pv_attr"

    @property
    def missing(self) -> bool:
        """Whether the disk is away."""
        return self.attributes[2:3] == "m"


def physical_volume(row: Row) -> PhysicalVolume:
    """Read a row of pvs. Raises BadReport."""
    return PhysicalVolume(
        name=_text(row, "pv_name"),
        uuid=_text(row, "pv_uuid"),
        vg=_text(row, "vg_name"),
        vg_uuid=_text(row, "vg_uuid"),
        size=_number(row, "pv_size"),
        free=_number(row, "pv_free"),
        attributes=_text(row, "pv_attr"),
    )


def dm_uuid(vg_uuid: str, lv_uuid: str) -> str:
    """Return the uuid of a logical volume's device, as the device mapper has it."""
    return f"LVM-{vg_uuid.replace('-', '')}{lv_uuid.replace('-', '')}"


def _text(row: Row, key: str) -> str:
    value: Any = row.get(key)
    if value is None:
        raise BadReport(f"lvm's report has no {key}")
    return str(value)


def _list(row: Row, key: str) -> tuple[str, ...]:
    return tuple(filter(None, _text(row, key).split(",")))


def _number(row: Row, key: str) -> int:
    value = _optional_number(row, key)
    if value is None:
        raise BadReport(f"lvm's report has an empty {key}")
    return value


def _optional_number(row: Row, key: str) -> int | None:
    text = _text(row, key)
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise BadReport(f"lvm's report has {text!r} for {key}, where a whole number must stand") from None


def _percent(row: Row, key: str) -> float | None:
    text = _text(row, key)
    try:
        return float(text) if text else None
    except ValueError:
        raise BadReport(f"lvm's report has {text!r} for {key}, where a number must stand") from None

"""The spec of a SnapshotSchedule as values, or why it cannot be followed."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from csi_driver import __version__
from csi_driver.domain.durations import format_duration, parse_duration
from csi_driver.domain.errors import DriverError, InvalidRequest
from csi_driver.domain.retention import RetentionPolicy
from csi_driver.domain.schedule_times import Cron, Interval, ScheduleTimes, Times, jitter_for
from csi_driver.domain.timestamps import parse_instant
from csi_driver.operator.schedule.naming import schedule_label

LEAST_PERIOD = 60
"""Seconds of the shortest `every`; cron lines have no shorter one. Tests may give the operator another."""

FIELDS = frozenset(
    {
        "selector",
        "claimName",
        "cron",
        "every",
        "timeZone",
        "volumeSnapshotClassName",
        "grouped",
        "volumeGroupSnapshotClassName",
        "suspend",
        "startingDeadline",
        "jitter",
        "deleteWithClaim",
        "maxSnapshotsPerVolume",
        "retention",
        "template",
    }
)
"""Of the spec. What else stands there was asked of another version, and may say what must not be deleted."""

RULES = frozenset({"keepLast", "maxAge", "hourly", "daily", "weekly", "monthly", "yearly"})
"""The same of its retention."""

_RESERVED = re.compile(r"([^/]*\.)?(tidemark\.dev|kubernetes\.io|k8s\.io)/")


class Unacceptable(DriverError):
    """A spec that cannot be followed; `reason` is the condition's."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Spec:
    """What a schedule asks for. `times` says when in one line; `created` is in seconds of the Unix epoch."""

    namespace: str
    name: str
    created: int
    plan: ScheduleTimes
    rules: RetentionPolicy
    times: str
    selector: Mapping[str, Any] | None = None
    claim: str = ""
    snapshot_class: str = ""
    grouped: bool = False
    group_class: str = ""
    suspend: bool = False
    delete_with_claim: bool = False
    cap: int = 256
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The value of the label by which its snapshots are known."""
        return schedule_label(self.namespace, self.name)


def read_spec(schedule: Mapping[str, Any], least_period: int = LEAST_PERIOD) -> Spec:
    """Read the spec; what the schema has checked already is checked again only where harm could come of it.

    Raises Unacceptable.
    """
    spec, meta = schedule.get("spec") or {}, schedule["metadata"]
    _refuse_unknown({f"spec.{key}" for key in spec.keys() - FIELDS})
    _refuse_unknown({f"spec.retention.{key}" for key in (spec.get("retention") or {}).keys() - RULES})
    zone = _zone(spec.get("timeZone") or "UTC")
    times, said = _times(spec, zone, least_period)
    keep = spec.get("retention") or {}
    cap = int(spec.get("maxSnapshotsPerVolume") or 256)
    if int(keep.get("keepLast") or 0) >= cap:
        raise Unacceptable(
            "KeepLastAtCap",
            f"keepLast is {keep['keepLast']} and maxSnapshotsPerVolume {cap}: a new snapshot is made before an old one is "
            "deleted, so keepLast must be below it",
        )
    template = spec.get("template") or {}
    return Spec(
        namespace=meta["namespace"],
        name=meta["name"],
        created=parse_instant(meta.get("creationTimestamp")) or 0,
        plan=ScheduleTimes(
            times, jitter_for(meta.get("uid", ""), _seconds(spec, "jitter") or 0), _seconds(spec, "startingDeadline")
        ),
        rules=RetentionPolicy(
            last=int(keep.get("keepLast") or 0),
            max_age=_seconds(keep, "maxAge") or 0,
            **{rule: int(keep.get(rule) or 0) for rule in ("hourly", "daily", "weekly", "monthly", "yearly")},
            zone=zone,
        ),
        times=said,
        selector=spec.get("selector"),
        claim=spec.get("claimName") or "",
        snapshot_class=spec.get("volumeSnapshotClassName") or "",
        grouped=bool(spec.get("grouped")),
        group_class=spec.get("volumeGroupSnapshotClassName") or "",
        suspend=bool(spec.get("suspend")),
        delete_with_claim=bool(spec.get("deleteWithClaim")),
        cap=cap,
        labels=_free("label", template.get("labels") or {}),
        annotations=_free("annotation", template.get("annotations") or {}),
    )


def _refuse_unknown(fields: Collection[str]) -> None:
    if fields:
        raise Unacceptable(
            "UnknownField",
            f"version {__version__} of the controller does not know {', '.join(sorted(fields))}: nothing is made and nothing "
            "deleted until one leads that does, or that is taken out",
        )


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise Unacceptable(
            "UnknownTimeZone", f"{name!r} is not a time zone of the IANA database: name one like Europe/Berlin, or UTC"
        ) from error


def _times(spec: Mapping[str, Any], zone: ZoneInfo, least_period: int) -> tuple[Times, str]:
    if "every" in spec:
        seconds = _seconds(spec, "every") or 0
        if seconds < least_period:
            raise Unacceptable(
                "TooOften", f"every {spec['every']} is too often: {format_duration(least_period)} is the least"
            )
        return Interval(seconds), f"every {format_duration(seconds)}"
    line = " ".join(str(spec.get("cron") or "").split())
    try:
        return Cron(line, zone), f"{line} {zone.key}"
    except InvalidRequest as error:
        raise Unacceptable("UnreadableCron", str(error)) from error


def _seconds(spec: Mapping[str, Any], key: str) -> int | None:
    text = spec.get(key)
    if not text:
        return None
    try:
        return parse_duration(str(text))
    except InvalidRequest as error:
        raise Unacceptable("UnreadableDuration", f"{key}: {error}") from error


def _free(what: str, given: Mapping[str, str]) -> Mapping[str, str]:
    taken = sorted(key for key in given if _RESERVED.match(key))
    if taken:
        raise Unacceptable(
            "ReservedName", f"the template sets the {what} {taken[0]}: leave those of tidemark.dev and Kubernetes out"
        )
    return given

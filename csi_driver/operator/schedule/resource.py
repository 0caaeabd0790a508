"""A SnapshotSchedule as values: its spec, or why that is invalid, and the part of its status that decisions rest on."""

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
from csi_driver.domain.timestamps import parse_timestamp
from csi_driver.operator.schedule.naming import schedule_label

LEAST_PERIOD = 60
"""Seconds of the shortest `every`; cron lines have no shorter one. Tests may pass a shorter one."""

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
"""Fields of the spec. Any other field belongs to another version, and may say what must not be deleted."""

RULES = frozenset({"keepLast", "maxAge", "hourly", "daily", "weekly", "monthly", "yearly"})
"""Fields of its retention, likewise."""

_RESERVED = re.compile(r"([^/]*\.)?(tidemark\.dev|kubernetes\.io|k8s\.io)/")


class InvalidSpec(DriverError):
    """The spec is invalid; `reason` is that of the condition Ready."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Spec:
    """The spec of a schedule. `created` is in seconds of the Unix epoch; `times_text` describes the times in one line."""

    namespace: str
    name: str
    created: int
    times: ScheduleTimes
    times_text: str
    retention: RetentionPolicy
    selector: Mapping[str, Any] | None = None
    claim_name: str = ""
    snapshot_class: str = ""
    grouped: bool = False
    group_class: str = ""
    suspend: bool = False
    delete_with_claim: bool = False
    max_snapshots: int = 256
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The value of the label on its snapshots."""
        return schedule_label(self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """A run that is not over. `waiting` are PVCs without a snapshot; `creating` are names of snapshots that are not ready.

    `incomplete`: a later time came before every PVC had a snapshot, or a snapshot was deleted before it was ready. The run
    still waits for what is being created, and is no success.
    """

    instant: int
    waiting: tuple[str, ...] = ()
    creating: tuple[str, ...] = ()
    incomplete: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing is left to create or to wait for."""
        return not self.waiting and not self.creating


@dataclass(frozen=True, slots=True)
class StatusState:
    """The part of a status that decisions rest on; times in seconds of the Unix epoch, None if there is none."""

    times: str = ""
    suspended: bool = False
    not_before: int | None = None
    scheduled: int | None = None
    successful: int | None = None
    missed: int | None = None
    run: ActiveRun | None = None


def read_state(status: Mapping[str, Any]) -> StatusState:
    """Read a status; missing and invalid times are None.

    The names of before come first, as long as both are written: a controller of the version before writes those alone, so after one
    has led, the new ones are out of date.
    """
    ready = [c.get("reason") for c in status.get("conditions") or [] if c.get("type") == "Ready"]
    return StatusState(
        times=status.get("times") or "",
        suspended="Suspended" in ready,
        not_before=parse_timestamp(status.get("notBefore")),
        scheduled=parse_timestamp(status.get("lastScheduled") or status.get("lastScheduleTime")),
        successful=parse_timestamp(status.get("lastSuccessful") or status.get("lastSuccessfulTime")),
        missed=parse_timestamp(status.get("lastMissed")),
        run=_read_run(status.get("run") or {}),
    )


def _read_run(run: Mapping[str, Any]) -> ActiveRun | None:
    instant = parse_timestamp(run.get("scheduledFor"))
    if instant is None:
        return None
    creating = run.get("making", run.get("creating"))
    incomplete = run.get("cutShort", run.get("incomplete"))
    return ActiveRun(instant, tuple(run.get("waiting") or ()), tuple(creating or ()), incomplete is True)


def parse_spec(schedule: Mapping[str, Any], least_period: int = LEAST_PERIOD) -> Spec:
    """Read the spec; checks of the schema are repeated only where a mistake does harm. Raises InvalidSpec."""
    spec, meta = schedule.get("spec") or {}, schedule["metadata"]
    _refuse_unknown({f"spec.{key}" for key in spec.keys() - FIELDS})
    _refuse_unknown({f"spec.retention.{key}" for key in (spec.get("retention") or {}).keys() - RULES})
    zone = _zone(spec.get("timeZone") or "UTC")
    times, times_text = _times(spec, zone, least_period)
    keep = spec.get("retention") or {}
    max_snapshots = int(spec.get("maxSnapshotsPerVolume") or 256)
    if int(keep.get("keepLast") or 0) >= max_snapshots:
        raise InvalidSpec(
            "KeepLastAtCap",
            f"keepLast is {keep['keepLast']} and maxSnapshotsPerVolume {max_snapshots}: a new snapshot is created before an old one "
            "is deleted; set keepLast below maxSnapshotsPerVolume",
        )
    template = spec.get("template") or {}
    return Spec(
        namespace=meta["namespace"],
        name=meta["name"],
        created=parse_timestamp(meta.get("creationTimestamp")) or 0,
        times=ScheduleTimes(
            times, jitter_for(meta.get("uid", ""), _seconds(spec, "jitter") or 0), _seconds(spec, "startingDeadline")
        ),
        times_text=times_text,
        retention=RetentionPolicy(
            last=int(keep.get("keepLast") or 0),
            max_age=_seconds(keep, "maxAge") or 0,
            **{rule: int(keep.get(rule) or 0) for rule in ("hourly", "daily", "weekly", "monthly", "yearly")},
            zone=zone,
        ),
        selector=spec.get("selector"),
        claim_name=spec.get("claimName") or "",
        snapshot_class=spec.get("volumeSnapshotClassName") or "",
        grouped=bool(spec.get("grouped")),
        group_class=spec.get("volumeGroupSnapshotClassName") or "",
        suspend=bool(spec.get("suspend")),
        delete_with_claim=bool(spec.get("deleteWithClaim")),
        max_snapshots=max_snapshots,
        labels=_unreserved("label", template.get("labels") or {}),
        annotations=_unreserved("annotation", template.get("annotations") or {}),
    )


def _refuse_unknown(fields: Collection[str]) -> None:
    if fields:
        raise InvalidSpec(
            "UnknownField",
            f"version {__version__} of the controller does not know {', '.join(sorted(fields))}: it creates and deletes nothing; "
            "remove that field, or run a version that knows it",
        )


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise InvalidSpec(
            "UnknownTimeZone", f"{name!r} is not a time zone of the IANA database: name one like Europe/Berlin, or UTC"
        ) from error


def _times(spec: Mapping[str, Any], zone: ZoneInfo, least_period: int) -> tuple[Times, str]:
    if "every" in spec:
        seconds = _seconds(spec, "every") or 0
        if seconds < least_period:
            raise InvalidSpec(
                "TooOften", f"every {spec['every']} is too often: use at least {format_duration(least_period)}"
            )
        return Interval(seconds), f"every {format_duration(seconds)}"
    line = " ".join(str(spec.get("cron") or "").split())
    try:
        return Cron(line, zone), f"{line} {zone.key}"
    except InvalidRequest as error:
        raise InvalidSpec("UnreadableCron", str(error)) from error


def _seconds(spec: Mapping[str, Any], key: str) -> int | None:
    text = spec.get(key)
    if not text:
        return None
    try:
        return parse_duration(str(text))
    except InvalidRequest as error:
        raise InvalidSpec("UnreadableDuration", f"{key}: {error}") from error


def _unreserved(what: str, entries: Mapping[str, str]) -> Mapping[str, str]:
    reserved = sorted(key for key in entries if _RESERVED.match(key))
    if reserved:
        raise InvalidSpec(
            "ReservedName",
            f"the template sets the {what} {reserved[0]}: leave out those of tidemark.dev and Kubernetes",
        )
    return entries

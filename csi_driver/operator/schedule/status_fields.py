"""What a schedule's status remembers, and what of it is still to be believed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csi_driver.domain.timestamps import parse_instant


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """A run that is not over. `waiting` are claims whose snapshot is not made; `making` are names not ready yet.

    `cut_short`: a later time came before all claims were reached, or a snapshot was deleted before it was ready. What is
    being made is waited for, and the run is no success.
    """

    instant: int
    waiting: tuple[str, ...] = ()
    making: tuple[str, ...] = ()
    cut_short: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing is left to do or to wait for."""
        return not self.waiting and not self.making


@dataclass(frozen=True, slots=True)
class StatusState:
    """The part of a status that decisions rest on; instants in seconds of the Unix epoch, None where there is none."""

    times: str = ""
    suspended: bool = False
    not_before: int | None = None
    scheduled: int | None = None
    successful: int | None = None
    missed: int | None = None
    run: ActiveRun | None = None


def read_state(status: Mapping[str, Any]) -> StatusState:
    """Read a status; what is not there, or not readable, is None."""
    ready = [c.get("reason") for c in status.get("conditions") or [] if c.get("type") == "Ready"]
    return StatusState(
        times=status.get("times") or "",
        suspended="Suspended" in ready,
        not_before=parse_instant(status.get("notBefore")),
        scheduled=parse_instant(status.get("lastScheduled")),
        successful=parse_instant(status.get("lastSuccessful")),
        missed=parse_instant(status.get("lastMissed")),
        run=_run(status.get("run") or {}),
    )


def _run(said: Mapping[str, Any]) -> ActiveRun | None:
    instant = parse_instant(said.get("scheduledFor"))
    if instant is None:
        return None
    return ActiveRun(
        instant, tuple(said.get("waiting") or ()), tuple(said.get("making") or ()), said.get("cutShort") is True
    )

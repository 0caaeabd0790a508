"""Placement of a new, empty volume: which agents are asked, in which order, and what is recorded on the PVC."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from csi_driver.domain.errors import OutOfRange, OutOfSpace, Unavailable
from csi_driver.service.discovery import Discovery

Created = TypeVar("Created")


@dataclass(frozen=True, slots=True)
class PvcPlacement:
    """What a PVC says about the node of its volume."""

    selected_owner: str | None = None
    """The owner that the scheduler has selected for the PVC's pod; None if it has selected none, or must select again."""
    wait_for_first_consumer: bool = False
    """Whether the PVC's class leaves the choice to the scheduler. Otherwise binding is immediate, and Placement chooses."""
    chosen_owner: str | None = None
    """The owner that an earlier call for the same volume was about to ask."""
    key: tuple[str, ...] = ()
    """Which PVC it is, and in which version: only for the implementation of PvcPlacements."""


class PvcPlacements(Protocol):
    """The cluster's PVCs, as far as placement reads and writes them."""

    async def find(self, volume: str, labels: Mapping[str, str]) -> PvcPlacement:
        """Return the placement of the PVC for which the volume of that name is made, by the labels of the request.

        It is empty if there is no such PVC. Raises Unavailable if the API does not answer.
        """
        ...

    async def choose(self, placement: PvcPlacement, owner: str) -> PvcPlacement:
        """Record the chosen owner on the PVC, durably, before that agent is asked.

        Raises Unavailable if it cannot be recorded, or if the PVC was changed since it was read.
        """
        ...


class Placement:
    """Chooses the node of one request at a time; keeps nothing between two."""

    def __init__(self, discovery: Discovery, placements: PvcPlacements) -> None:
        self._discovery = discovery
        self._placements = placements

    async def create(
        self,
        volume: str,
        labels: Mapping[str, str],
        preferred: Sequence[str],
        create: Callable[[str], Awaitable[Created]],
    ) -> Created:
        """Create an empty volume at one of the owners, `preferred` in order, by `create(owner)`.

        One name, one volume: if the choice is ours, it is recorded on the PVC before the first call and stays until that agent
        refuses for good. Only OutOfSpace and OutOfRange are final and lead to the next owner; every other error leaves the
        choice, because the volume may have been made. Raises OutOfSpace so that the scheduler selects again, OutOfRange if no
        pool can ever hold the volume, Unavailable to have the same call repeated.
        """
        placement = await self._placements.find(volume, labels)
        selected = placement.selected_owner
        if selected is None and placement.wait_for_first_consumer and preferred:
            # The selection was taken back since the call was made. The caller still has it, and names it first.
            selected = preferred[0]
        if selected is not None:
            return await self._create_at_selected(selected, create)
        refusals: list[OutOfSpace | OutOfRange] = []
        not_ready: list[str] = []
        for owner in self._candidates(placement, list(preferred) or sorted(self._discovery.owners())):
            if owner != placement.chosen_owner or self._discovery.is_decommissioned(owner):
                # This agent was not asked before. Once it is recorded, only its own refusal takes the choice back, so an
                # agent on a node that is known to be away is never recorded.
                if not self._is_ready(owner):
                    not_ready.append(owner)
                    continue
                placement = await self._placements.choose(placement, owner)
            try:
                return await create(owner)
            except (OutOfSpace, OutOfRange) as error:
                refusals.append(error)
        raise _refusal(refusals, not_ready)

    def _candidates(self, placement: PvcPlacement, owners: Sequence[str]) -> list[str]:
        """Return the owners to ask. The one that was recorded comes first, unless its node was decommissioned."""
        chosen = placement.chosen_owner
        if chosen is None or self._discovery.is_decommissioned(chosen):
            return list(owners)
        # Others that have refused in the meantime are asked again: the volume is not there.
        return [chosen, *(owner for owner in owners if owner != chosen)]

    def _is_ready(self, owner: str) -> bool:
        endpoint = self._discovery.endpoint(owner)
        if endpoint is None:
            return not self._discovery.has_synced()
        return endpoint.ready and bool(endpoint.address) and not self._discovery.is_decommissioned(owner)

    async def _create_at_selected(self, owner: str, create: Callable[[str], Awaitable[Created]]) -> Created:
        try:
            return await create(owner)
        except Unavailable as error:
            endpoint = self._discovery.endpoint(owner)
            if self._discovery.has_synced() and (endpoint is None or not endpoint.ready):
                raise OutOfSpace(
                    f"node {owner}, selected for the pod, is not ready: select another ({error})"
                ) from error
            raise


def _refusal(refusals: Sequence[OutOfSpace | OutOfRange], not_ready: Sequence[str]) -> Exception:
    """Put the refusals of all candidates together. Only if none of them can ever hold the volume is that final."""
    if not refusals:
        named = ", ".join(not_ready) or "none is known"
        return Unavailable(f"no node for the volume is ready ({named}): check the nodes and the agents' pods")
    suffix = f"; not ready: {', '.join(not_ready)}" if not_ready else ""
    final = not not_ready and all(isinstance(error, OutOfRange) for error in refusals)
    kind = OutOfRange if final else OutOfSpace
    return kind("no node has enough space for the volume: " + "; ".join(map(str, refusals)) + suffix)

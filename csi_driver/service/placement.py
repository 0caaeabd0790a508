"""Where a new, empty volume goes in a cluster: which agents are asked, in which order, and what is remembered of it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from csi_driver.domain.errors import OutOfRange, OutOfSpace, Unavailable
from csi_driver.service.discovery import Discovery

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Claim:
    """What the cluster has written down about where one volume goes."""

    selected: str | None = None
    """The owner that the scheduler has chosen for the claim's pod; None where it has chosen none, or not yet again."""
    waits: bool = False
    """Whether the claim's class leaves the choice to the scheduler. Otherwise binding is immediate, and ours."""
    placed: str | None = None
    """The owner that an earlier call for the same volume was about to ask."""
    key: tuple[str, ...] = ()
    """For whoever gave this out: which claim it is, and in which version."""


class Claims(Protocol):
    """The cluster's records of claims."""

    async def find(self, volume: str, labels: Mapping[str, str]) -> Claim:
        """The claim for which the volume of that name is made, as it is now, by the labels of the request.

        An empty Claim where there is none. Raises Unavailable where nobody may say.
        """
        ...

    async def place(self, claim: Claim, owner: str) -> Claim:
        """Write an owner down, durably, before that agent is asked.

        Raises Unavailable where that cannot be, or where the claim was changed meanwhile: it is to be found again.
        """
        ...


class NoClaims:
    """Without a cluster's records: every request is of one mind, its own."""

    async def find(self, volume: str, labels: Mapping[str, str]) -> Claim:  # noqa: ARG002
        """See Claims."""
        return Claim()

    async def place(self, claim: Claim, owner: str) -> Claim:
        """See Claims."""
        return replace(claim, placed=owner)


class Placement:
    """Chooses for one request at a time; keeps nothing between two."""

    def __init__(self, discovery: Discovery, claims: Claims) -> None:
        self._discovery = discovery
        self._claims = claims

    async def make(
        self,
        volume: str,
        labels: Mapping[str, str],
        preferred: Sequence[str],
        create: Callable[[str], Awaitable[Made]],
    ) -> Made:
        """Make an empty volume at one of the owners, `preferred` in order, by `create(owner)`.

        One name, one volume: where the choice is ours, the choice is written on the claim before the first call, and is
        kept until that agent's final no. Only OutOfSpace and OutOfRange are final and move on; every other error leaves
        the choice, because the volume may have been made. Raises OutOfSpace so that the scheduler chooses again,
        OutOfRange where no pool could ever hold it, Unavailable to have the same call repeated.
        """
        claim = await self._claims.find(volume, labels)
        selected = claim.selected
        if selected is None and claim.waits and preferred:
            # The choice was taken back since the call was made. Whoever made it still has it, and names it first.
            selected = preferred[0]
        if selected is not None:
            return await self._at_selected(selected, create)
        full: list[OutOfSpace | OutOfRange] = []
        away: list[str] = []
        for owner in self._candidates(claim, list(preferred) or sorted(self._discovery.owners())):
            if owner != claim.placed or self._discovery.forgotten(owner):
                # Nothing was asked of it yet. Once it is written down, only its own no takes it back, so a node that is
                # known to be away is not begun with.
                if not self._alive(owner):
                    away.append(owner)
                    continue
                claim = await self._claims.place(claim, owner)
            try:
                return await create(owner)
            except (OutOfSpace, OutOfRange) as error:
                full.append(error)
        if not full:
            named = ", ".join(away) or "none is known"
            raise Unavailable(
                f"no node that may have the volume is ready ({named}): look at the nodes and the agents' pods"
            )
        waiting = f"; not ready: {', '.join(away)}" if away else ""
        for_ever = not away and all(isinstance(error, OutOfRange) for error in full)
        no = OutOfRange if for_ever else OutOfSpace
        raise no("no node has room for the volume: " + "; ".join(map(str, full)) + waiting)

    def _candidates(self, claim: Claim, owners: Sequence[str]) -> list[str]:
        """The one that was written down comes first, until a person has said that it will not come back."""
        if claim.placed is None or self._discovery.forgotten(claim.placed):
            return list(owners)
        # What was refused there in the meantime begins again from the first: the volume is not there.
        return [claim.placed, *(owner for owner in owners if owner != claim.placed)]

    def _alive(self, owner: str) -> bool:
        place = self._discovery.place(owner)
        if place is None:
            return not self._discovery.known()
        return place.ready and bool(place.address) and not self._discovery.forgotten(owner)

    async def _at_selected(self, owner: str, create: Callable[[str], Awaitable[Made]]) -> Made:
        try:
            return await create(owner)
        except Unavailable as error:
            place = self._discovery.place(owner)
            if self._discovery.known() and (place is None or not place.ready):
                raise OutOfSpace(f"node {owner}, chosen for the pod, is not ready: choose another ({error})") from error
            raise

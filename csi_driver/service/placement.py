"""Where a new, empty volume goes in a cluster: which agents are asked, in which order, and what is remembered of it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from csi_driver.domain.errors import OutOfSpace, Unavailable
from csi_driver.service.discovery import Discovery

Made = TypeVar("Made")


class Claims(Protocol):
    """What the cluster knows of the claim that a volume is made for, by the labels of the request."""

    async def selected(self, labels: Mapping[str, str]) -> str | None:
        """The owner that the scheduler has chosen for the claim's pod; None where binding is immediate."""
        ...

    async def placed(self, labels: Mapping[str, str]) -> str | None:
        """The owner that an earlier call for the same claim wrote down, or None."""
        ...

    async def place(self, labels: Mapping[str, str], owner: str) -> None:
        """Write an owner down, durably, before that agent is asked. Raises Unavailable where that cannot be."""
        ...


class NoClaims:
    """Without a cluster's records: every request is of one mind, its own."""

    async def selected(self, labels: Mapping[str, str]) -> str | None:  # noqa: ARG002
        """See Claims."""
        return None

    async def placed(self, labels: Mapping[str, str]) -> str | None:  # noqa: ARG002
        """See Claims."""
        return None

    async def place(self, labels: Mapping[str, str], owner: str) -> None:
        """See Claims."""


class Placement:
    """Chooses for one request at a time; keeps nothing between two."""

    def __init__(self, discovery: Discovery, claims: Claims) -> None:
        self._discovery = discovery
        self._claims = claims

    async def make(
        self, labels: Mapping[str, str], preferred: Sequence[str], create: Callable[[str], Awaitable[Made]]
    ) -> Made:
        """Make an empty volume at one of the owners, `preferred` in order, by `create(owner)`.

        One name, one volume: where nothing is selected, the choice is written on the claim before the first call, and is
        kept until that agent's final no. Only OutOfSpace is final and moves on; every other error leaves the choice,
        because the volume may have been made. Raises OutOfSpace so that the scheduler chooses again, Unavailable to
        have the same call repeated.
        """
        selected = await self._claims.selected(labels)
        if selected is not None:
            return await self._at_selected(selected, create)
        placed = await self._claims.placed(labels)
        candidates = list(preferred) or sorted(self._discovery.owners())
        if placed is not None:
            # What was refused there in the meantime begins again from the first: the volume is not there.
            candidates = [placed, *(owner for owner in candidates if owner != placed)]
        full: list[str] = []
        for owner in candidates:
            if owner != placed:
                await self._claims.place(labels, owner)
            try:
                return await create(owner)
            except OutOfSpace as error:
                full.append(str(error))
        raise OutOfSpace(
            "no node has room for the volume: " + ("; ".join(full) or "no agent is known; look at the agents' pods")
        )

    async def _at_selected(self, owner: str, create: Callable[[str], Awaitable[Made]]) -> Made:
        try:
            return await create(owner)
        except Unavailable as error:
            place = self._discovery.place(owner)
            if self._discovery.known() and (place is None or not place.ready):
                raise OutOfSpace(f"node {owner}, chosen for the pod, is not ready: choose another ({error})") from error
            raise

"""The order in which anything is made that holds volumes as they are at one moment: a snapshot, a group snapshot, a clone of a volume."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from csi_driver.backends.base import Backend, Draft, Moment, SnapshotTimings, Target
from csi_driver.domain.model import Snapshot, Volume


async def take(backend: Backend, target: Target, sources: Sequence[Volume]) -> tuple[Target, SnapshotTimings]:
    """Make `target` of the sources at one moment, all or none; return it as it was made, and what that cost.

    Writers wait for `quick` alone. What fails leaves nothing: the draft is abandoned, also when the caller is cancelled.
    Raises what the four methods of Backend raise.
    """
    draft = await backend.prepare(target, sources)
    try:
        moment = await backend.quick(draft)
        return await backend.publish(draft, moment), moment.timings
    except BaseException:
        await backend.abandon(draft)
        raise


def filled(draft: Draft[Target], moment: Moment, sizes: Sequence[int]) -> Target:
    """Return the record of a draft with what only its moment tells. `sizes`: in bytes, one for each source.

    A clone has all of it before: its record stays as it is.
    """
    target = draft.target
    if isinstance(target, Volume):
        return target
    if isinstance(target, Snapshot):
        return _taken(target, draft, moment, sizes, 0)
    members = tuple(_taken(member, draft, moment, sizes, index) for index, member in enumerate(target.members))
    return replace(target, members=members, created=moment.at)


def _taken(snapshot: Snapshot, draft: Draft[Any], moment: Moment, sizes: Sequence[int], index: int) -> Snapshot:
    condition = moment.conditions.get(draft.sources[index].id.hash, "")
    return replace(snapshot, size=sizes[index], created=moment.at, condition=condition)

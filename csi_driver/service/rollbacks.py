"""Rollback: a volume takes the content of one of its own snapshots, in place, under a hold that keeps others out."""

import hashlib
from dataclasses import dataclass, replace

from csi_driver.backends.base import SpaceOperation
from csi_driver.domain.errors import AlreadyExists, Busy, InUse, InvalidRequest, Precondition
from csi_driver.domain.ids import name_hash
from csi_driver.domain.model import CompletedRollback, Hold, Snapshot, Volume
from csi_driver.domain.requests import check_name
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.holds import HOLD_SECONDS
from csi_driver.service.pools import Pool
from csi_driver.service.reservations import reserve_space
from csi_driver.service.snapshots import Snapshots

REMEMBERED = 16
"""How many completed rollbacks a volume's record names, so that a retry does not roll newer data back."""


@dataclass(frozen=True, slots=True)
class RollbackRequest:
    """The fields of a Rollback call. `name` makes it safe to repeat; `safety` is a snapshot that the caller took."""

    volume_id: str
    snapshot_id: str
    name: str
    holder: str = ""
    skip_safety: bool = False
    safety: str = ""


class Rollbacks:
    """Serves Hold, Rollback and Release."""

    def __init__(self, context: ServiceDependencies, snapshots: Snapshots) -> None:
        self._context = context
        self._pools = context.pools
        self._snapshots = snapshots

    async def hold(self, volume_id: str, holder: str) -> Hold:
        """Keep a volume out of use for five minutes from now. Raises InUse while it is in use or held by another."""
        check_name(holder, "the holder's name")
        await self._pools.refresh()
        pool, volume = self._pools.volume(volume_id)
        async with self._pools.hold(pool, f"Hold of {volume_id}", [volume.id.hash]):
            pool, volume = self._pools.volume(volume_id)
            self._ensure_not_held_by_other(volume, holder)
            await self._ensure_not_used(pool, volume)
            # Even without a mount here: one in another mount namespace would go on writing under the hold.
            await pool.backend.access.detach(volume)
            unbroken = volume.hold if self._context.holds.current_holder(volume) else None
            now = self._context.now()
            expires = now + HOLD_SECONDS * 1_000_000_000
            hold = replace(unbroken, expires=expires) if unbroken else Hold(holder, expires, now)
            await self._save(pool, replace(volume, hold=hold))
            return hold

    async def release(self, volume_id: str, holder: str) -> None:
        """Release a volume; one that is not held or does not exist is not an error. Raises InUse if another holds it."""
        check_name(holder, "the holder's name")
        place = self._pools.locate(volume_id)
        if place is None:
            return
        pool, digest = place
        async with self._pools.hold(pool, f"Release of {volume_id}", [digest]):
            # Under the lock: a hold that is being made is not in the index yet, and would stay.
            volume = pool.volumes.get(digest)
            if volume is None or volume.hold is None:
                return
            self._ensure_not_held_by_other(volume, holder)
            await self._save(pool, replace(volume, hold=None))

    async def roll_back(self, request: RollbackRequest) -> tuple[CompletedRollback, bool]:
        """Roll a volume back to one of its own snapshots. Returns the rollback, and whether it was completed before."""
        check_name(request.name, "the rollback's name")
        if request.skip_safety and request.safety:
            raise InvalidRequest("the request both names and skips a safety snapshot: choose one")
        if request.safety and not request.holder:
            raise InvalidRequest(
                "a safety snapshot of the caller needs the hold under which it was taken: name the holder"
            )
        await self._pools.refresh()
        pool, volume = self._pools.volume(request.volume_id)
        done = self._completed(volume, request)
        if done is not None:
            return done, True
        locked = self._pools.snapshot(request.snapshot_id)[1].id.hash
        operation = f"Rollback of {request.volume_id}"
        created: list[str] = []
        if not request.skip_safety and not request.safety:
            # An earlier try may have left the safety snapshot: it is deleted and taken again below.
            created.append(name_hash("snapshot", _safety_name(volume, request)))
            if locked in created:
                raise AlreadyExists(
                    f"{request.snapshot_id} is the safety snapshot of an earlier try of rollback {request.name!r}, which a "
                    "new try replaces: use another name to roll back to it"
                )
        async with self._pools.hold(pool, operation, [volume.id.hash], [locked], creating_or_deleting=created):
            found, (pool, volume) = volume, self._pools.volume(request.volume_id)
            # Completed meanwhile, by a call that this one waited for? A second rollback would lose what was written since.
            done = self._completed(volume, request)
            if done is not None:
                return done, True
            # Another volume of the same name has another safety snapshot, which is not locked.
            if volume.uid != found.uid:
                raise Busy(f"{request.volume_id} was deleted and created again during this call: try again")
            snapshot = self._own_snapshot(volume, request.snapshot_id)
            self._check_hold(volume, request.holder)
            async with self._context.holds.extend_hold_while(pool, [volume]):
                return await self._replace_content(pool, volume, snapshot, request), False

    async def _replace_content(
        self, pool: Pool, volume: Volume, snapshot: Snapshot, request: RollbackRequest
    ) -> CompletedRollback:
        await self._ensure_not_used(pool, volume)
        # The old content stays until the new one is complete. The safety snapshot takes space on top of that: it reserves its
        # own, while this reservation stands, so that no snapshot is taken for a rollback that then has no space.
        needed = pool.backend.space_needed(SpaceOperation("rollback", volume=volume))
        async with reserve_space(pool, "a rollback of a thick volume", needed):
            await pool.backend.access.detach(volume)
            safety = await self._safety_snapshot_id(pool, volume, request, needed.bytes)
            rolled = CompletedRollback(request.name, request.snapshot_id, self._context.now(), safety)
            rollbacks = (*volume.rollbacks, rolled)[-REMEMBERED:]
            # The condition was found on the content that is replaced.
            back = replace(volume, format=snapshot.format, rollbacks=rollbacks, condition=None)
            await pool.backend.roll_back(back, snapshot)
            pool.put_volume(back)
            return rolled

    def _completed(self, volume: Volume, request: RollbackRequest) -> CompletedRollback | None:
        for rolled in volume.rollbacks:
            if rolled.name == request.name:
                if rolled.snapshot != request.snapshot_id:
                    raise AlreadyExists(
                        f"rollback {request.name!r} of {volume.id} was completed, to {rolled.snapshot}: use another name"
                    )
                return rolled
        return None

    def _own_snapshot(self, volume: Volume, snapshot_id: str) -> Snapshot:
        snapshot = self._pools.snapshot(snapshot_id)[1]
        if snapshot.source_uid != volume.uid:
            raise InvalidRequest(
                f"{snapshot_id} is a snapshot of {snapshot.source_id}, and a volume is rolled back to its own snapshots only: "
                "create a new volume from it instead"
            )
        return snapshot

    def _check_hold(self, volume: Volume, holder: str) -> None:
        self._ensure_not_held_by_other(volume, holder)
        if holder and self._context.holds.current_holder(volume) != holder:
            raise Precondition(
                f"the hold of {holder!r} on {volume.id} has expired: hold again and take a new safety snapshot"
            )

    def _ensure_not_held_by_other(self, volume: Volume, holder: str) -> None:
        current = self._context.holds.current_holder(volume)
        if current and current != holder:
            raise InUse(f"{volume.id} is held by {current!r}: wait for its release")

    async def _ensure_not_used(self, pool: Pool, volume: Volume) -> None:
        use = await pool.backend.users(volume)
        if use.is_used:
            raise InUse(
                f"{volume.id} is in use at {use.where}: stop the pods or processes that use it, then unpublish and unstage it"
            )

    async def _safety_snapshot_id(self, pool: Pool, volume: Volume, request: RollbackRequest, before: int) -> str:
        if request.skip_safety:
            return ""
        if request.safety:
            self._check_safety(volume, request.safety)
            return request.safety
        name = _safety_name(volume, request)
        for snapshot in pool.snapshots_of(volume.uid):
            # Taken by an earlier try that ended before the rollback. Under one unbroken hold nothing wrote since; otherwise
            # the snapshot may be out of date and is replaced.
            if snapshot.name == name:
                if volume.hold and request.holder and snapshot.created >= volume.hold.since:
                    return str(snapshot.id)
                await pool.backend.delete_snapshot(snapshot)
                pool.drop_snapshot(snapshot.id.hash)
        return str((await self._snapshots.take(pool, volume, name, {}, before)).id)

    def _check_safety(self, volume: Volume, snapshot_id: str) -> None:
        safety = self._own_snapshot(volume, snapshot_id)
        # A snapshot that is older than the hold may miss what was written before the hold.
        if volume.hold and safety.created < volume.hold.since:
            raise Precondition(
                f"safety snapshot {snapshot_id} is older than the hold on {volume.id}: take a new one under this hold"
            )

    async def _save(self, pool: Pool, volume: Volume) -> None:
        await pool.backend.save_volume(volume)
        pool.put_volume(volume)


def _safety_name(volume: Volume, request: RollbackRequest) -> str:
    return "safety-" + hashlib.sha256(f"{volume.uid}\0{request.name}".encode()).hexdigest()[:32]

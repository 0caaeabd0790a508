"""The way back: a volume returns to one of its own snapshots, in place, under a hold that keeps everybody else out."""

import hashlib
from dataclasses import dataclass, replace

from csi_driver.backends.base import SpaceOperation
from csi_driver.domain.errors import AlreadyExists, Busy, InUse, InvalidRequest, Precondition
from csi_driver.domain.ids import name_hash
from csi_driver.domain.model import CompletedRollback, Hold, Snapshot, Volume
from csi_driver.domain.requests import check_name
from csi_driver.service.dependencies import HOLD_SECONDS, ServiceDependencies
from csi_driver.service.pools import Pool
from csi_driver.service.reservations import reserve_space
from csi_driver.service.snapshots import Snapshots

REMEMBERED = 16
"""How many rollbacks a volume remembers by name, so that a retry does not roll newer data away."""


@dataclass(frozen=True, slots=True)
class RollbackRequest:
    """A Rollback as made. `name` makes it safe to repeat; `safety` is a snapshot that the caller already took."""

    volume_id: str
    snapshot_id: str
    name: str
    holder: str = ""
    skip_safety: bool = False
    safety: str = ""


class Rollbacks:
    """Hold, Rollback, Release."""

    def __init__(self, context: ServiceDependencies, snapshots: Snapshots) -> None:
        self._context = context
        self._pools = context.pools
        self._snapshots = snapshots

    async def hold(self, volume_id: str, holder: str) -> Hold:
        """Keep a volume out of use for five minutes, or for five more. Refused while it is in use or held by another."""
        check_name(holder, "the holder's name")
        pool, volume = self._pools.volume(volume_id)
        async with self._pools.locks.hold(f"Hold of {volume_id}", [volume.id.hash]):
            pool, volume = self._pools.volume(volume_id)
            self._refuse_other(volume, holder)
            await self._refuse_used(pool, volume)
            # Also where nothing shows it: a mount in another namespace would go on writing under the hold.
            await pool.backend.access.detach(volume)
            unbroken = volume.hold if self._context.current_holder(volume) else None
            now = self._context.now()
            expires = now + HOLD_SECONDS * 1_000_000_000
            hold = replace(unbroken, expires=expires) if unbroken else Hold(holder, expires, now)
            await self._save(pool, replace(volume, hold=hold))
            return hold

    async def release(self, volume_id: str, holder: str) -> None:
        """Let a volume go; fine where it is not held, or gone. Raises InUse where another holds it."""
        check_name(holder, "the holder's name")
        place = self._pools.locate(volume_id)
        if place is None:
            return
        pool, digest = place
        async with self._pools.locks.hold(f"Release of {volume_id}", [digest]):
            # Not before: a hold that is being made now is not indexed yet, and would stay.
            volume = pool.volumes.get(digest)
            if volume is None or volume.hold is None:
                return
            self._refuse_other(volume, holder)
            await self._save(pool, replace(volume, hold=None))

    async def roll_back(self, request: RollbackRequest) -> tuple[CompletedRollback, bool]:
        """Take a volume back to one of its own snapshots. Returns the rollback, and whether it had been done before."""
        check_name(request.name, "the rollback's name")
        if request.skip_safety and request.safety:
            raise InvalidRequest("a safety snapshot is both named and declined: say one of them")
        if request.safety and not request.holder:
            raise InvalidRequest(
                "a safety snapshot of the caller's needs the hold under which it was made: name the holder"
            )
        pool, volume = self._pools.volume(request.volume_id)
        done = self._done(volume, request)
        if done is not None:
            return done, True
        locked = self._pools.snapshot(request.snapshot_id)[1].id.hash
        doing = f"Rollback of {request.volume_id}"
        made: list[str] = []
        if not request.skip_safety and not request.safety:
            # An earlier try may have left the safety snapshot: it is deleted and made again below.
            made.append(name_hash("snapshot", _safety_name(volume, request)))
            if locked in made:
                raise AlreadyExists(
                    f"{request.snapshot_id} is the safety snapshot of an earlier try of rollback {request.name!r}, which a "
                    "new try replaces: use another name to go back to it"
                )
        async with self._pools.locks.hold(doing, [volume.id.hash], [locked], existence=made):
            was, (pool, volume) = volume, self._pools.volume(request.volume_id)
            # Done meanwhile, by a call that this one waited for? Once more would take away what was written since.
            done = self._done(volume, request)
            if done is not None:
                return done, True
            if (
                volume.uid != was.uid
            ):  # another of the same name: its safety snapshot would be another one, and is not locked
                raise Busy(f"{request.volume_id} was deleted and made again during this call: try again")
            snapshot = self._own(volume, request.snapshot_id)
            self._check_hold(volume, request.holder)
            async with self._context.extend_hold_while(pool, [volume]):
                return await self._exchange(pool, volume, snapshot, request), False

    async def _exchange(
        self, pool: Pool, volume: Volume, snapshot: Snapshot, request: RollbackRequest
    ) -> CompletedRollback:
        await self._refuse_used(pool, volume)
        # The old content stays until the new one is whole. What a safety cut takes comes on top, and is no longer promised
        # but gone once it is made; so it asks for itself, while the room for the exchange is kept, and nothing is cut in vain.
        needed = pool.backend.space_needed(SpaceOperation("rollback", volume=volume))
        async with reserve_space(pool, "a rollback of a thick volume", needed):
            await pool.backend.access.detach(volume)
            safety = await self._safety(pool, volume, request, needed.bytes)
            rolled = CompletedRollback(request.name, request.snapshot_id, self._context.now(), safety)
            rollbacks = (*volume.rollbacks, rolled)[-REMEMBERED:]
            # What a check found is of the content that goes.
            back = replace(volume, format=snapshot.format, rollbacks=rollbacks, condition=None)
            await pool.backend.roll_back(back, snapshot)
            pool.put_volume(back)
            return rolled

    def _done(self, volume: Volume, request: RollbackRequest) -> CompletedRollback | None:
        for rolled in volume.rollbacks:
            if rolled.name == request.name:
                if rolled.snapshot != request.snapshot_id:
                    raise AlreadyExists(
                        f"rollback {request.name!r} of {volume.id} was done, to {rolled.snapshot}: use another name"
                    )
                return rolled
        return None

    def _own(self, volume: Volume, snapshot_id: str) -> Snapshot:
        snapshot = self._pools.snapshot(snapshot_id)[1]
        if snapshot.source_uid != volume.uid:
            raise InvalidRequest(
                f"{snapshot_id} is a snapshot of {snapshot.source_id}, and a rollback goes back to the disk's own only: "
                "create a new volume from it instead"
            )
        return snapshot

    def _check_hold(self, volume: Volume, holder: str) -> None:
        self._refuse_other(volume, holder)
        if holder and self._context.current_holder(volume) != holder:
            raise Precondition(
                f"the hold of {holder!r} on {volume.id} has lapsed: hold again and take a new safety snapshot"
            )

    def _refuse_other(self, volume: Volume, holder: str) -> None:
        current = self._context.current_holder(volume)
        if current and current != holder:
            raise InUse(f"{volume.id} is held by {current!r}: wait for its release")

    async def _refuse_used(self, pool: Pool, volume: Volume) -> None:
        use = await pool.backend.access.use(volume)
        if use.paths:
            raise InUse(
                f"{volume.id} is in use at {', '.join(use.paths)}: stop what uses it, unpublish and unstage it first"
            )

    async def _safety(self, pool: Pool, volume: Volume, request: RollbackRequest, before: int) -> str:
        if request.skip_safety:
            return ""
        if request.safety:
            self._check_safety(volume, request.safety)
            return request.safety
        name = _safety_name(volume, request)
        for made in pool.snapshots_of(volume.uid):
            # Made by an earlier try that ended before the rollback. Only under one unbroken hold did nothing write
            # since; otherwise it may be out of date and is replaced.
            if made.name == name:
                if volume.hold and request.holder and made.created >= volume.hold.since:
                    return str(made.id)
                await pool.backend.delete_snapshot(made)
                pool.drop_snapshot(made.id.hash)
        return str((await self._snapshots.cut(pool, volume, name, {}, before)).id)

    def _check_safety(self, volume: Volume, snapshot_id: str) -> None:
        safety = self._own(volume, snapshot_id)
        # Whatever is older than the hold may miss what was written before it.
        if volume.hold and safety.created < volume.hold.since:
            raise Precondition(
                f"safety snapshot {snapshot_id} is older than the hold on {volume.id}: take a new one under this hold"
            )

    async def _save(self, pool: Pool, volume: Volume) -> None:
        await pool.backend.save_volume(volume)
        pool.put_volume(volume)


def _safety_name(volume: Volume, request: RollbackRequest) -> str:
    return "safety-" + hashlib.sha256(f"{volume.uid}\0{request.name}".encode()).hexdigest()[:32]

"""Snapshots of one volume: taken, listed, deleted. Ready in the first answer; never changed afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from csi_driver.backends.base import SpaceOperation
from csi_driver.backends.snapshots import take
from csi_driver.domain.capacity import human
from csi_driver.domain.errors import AlreadyExists, Damaged, InvalidRequest, OutOfSpace, Precondition
from csi_driver.domain.ids import name_hash
from csi_driver.domain.model import Snapshot, Volume
from csi_driver.domain.paging import page
from csi_driver.domain.requests import check_name, refuse_parameters, split_labels
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.pools import Pool
from csi_driver.service.reservations import reserve_space


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """The fields of a CreateSnapshot call."""

    name: str
    source_id: str
    parameters: Mapping[str, str] = field(default_factory=dict)


class Snapshots:
    """Serves the calls of the CSI controller service about snapshots."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context
        self._pools = context.pools

    async def create(self, request: SnapshotRequest) -> Snapshot:
        """Take a snapshot of a volume, in use or not, or return the one that the same request created."""
        check_name(request.name, "the snapshot's name")
        if not request.source_id:
            raise InvalidRequest("the source volume's id is missing: name the source volume")
        parameters, labels = split_labels(request.parameters, "parameters")
        refuse_parameters(parameters, "snapshots")
        digest = name_hash("snapshot", request.name)
        # Before the lookup: a snapshot that is being deleted must not be returned.
        await self._pools.locks.ensure_not_changing(digest)
        await self._pools.refresh()
        existing = self._existing(digest, request)
        if existing is not None:
            return existing
        pool, volume = self._pools.volume(request.source_id)
        operation = f"CreateSnapshot {request.name!r} of {volume.id}"
        async with self._pools.hold(pool, operation, [volume.id.hash], creating_or_deleting=[digest]):
            # Created meanwhile, by a call that this one waited for?
            existing = self._existing(digest, request)
            if existing is not None:
                return existing
            pool, volume = self._pools.volume(request.source_id)
            async with self._context.holds.extend_hold_while(pool, [volume]):
                return await self.take(pool, volume, request.name, labels)

    async def take(
        self, pool: Pool, volume: Volume, name: str, labels: Mapping[str, str], reserved_before: int = 0
    ) -> Snapshot:
        """Take a snapshot of a volume that the caller has locked exclusively. Raises Precondition, OutOfSpace, Busy.

        `reserved_before`: bytes that the same call has reserved for something else.
        """
        await check_capacity(pool, [volume])
        planned = plan(self._context, pool, volume, name, labels)
        needed = pool.backend.space_needed(SpaceOperation("snapshot", (volume,)))
        async with reserve_space(pool, "a snapshot of a thick volume", needed, own=reserved_before):
            snapshot, report = await take(pool.backend, planned, [volume])
        pool.put_snapshot(snapshot)
        self._context.observer.snapshot_taken(pool.name, report)
        return snapshot

    def granule(self, snapshot: Snapshot) -> int:
        """Return what sizes are multiples of in the snapshot's pool."""
        return self._pools.granule_of(snapshot.id)

    async def delete(self, snapshot_id: str) -> None:
        """Delete a snapshot; an unknown id is not an error. Its clones, and volumes rolled back to it, stay as they are."""
        place = self._pools.locate(snapshot_id)
        if place is None:
            return
        pool, digest = place
        async with self._pools.hold(pool, f"DeleteSnapshot of {snapshot_id}", creating_or_deleting=[digest]):
            # Under the lock: a snapshot that is being created is not in the index yet.
            snapshot = pool.snapshots.get(digest)
            if snapshot is None:
                return
            if snapshot.group:
                group = snapshot.id.pool_ref.object_id(snapshot.group)
                raise InvalidRequest(
                    f"snapshot {snapshot_id} is a member of group {group} and cannot be deleted alone: delete the group"
                )
            await pool.backend.delete_snapshot(snapshot)
            pool.drop_snapshot(digest)

    async def refresh(self) -> None:
        """Bring what is known of shared pools up to date, before it is looked up or listed."""
        await self._pools.refresh()

    def get(self, snapshot_id: str) -> Snapshot:
        """Return one snapshot. Raises NotFound."""
        return self._pools.snapshot(snapshot_id)[1]

    def list(
        self, limit: int = 0, token: str = "", snapshot_id: str = "", source_id: str = ""
    ) -> tuple[list[Snapshot], str]:
        """Return one page of the snapshots that match; an unknown id matches none. Raises BadToken, Unavailable."""
        if limit < 0:
            raise InvalidRequest(f"max_entries {limit} is negative: use 0 for all")
        if snapshot_id:
            found = self._pools.find_snapshot(snapshot_id)
            items = [found[1]] if found else []
        elif source_id:
            place = self._pools.locate(source_id)
            items = list(place[0].snapshots.values()) if place else []
        else:
            items = [s for pool in self._pools.all_serving() for s in pool.snapshots.values()]
        if source_id:
            items = [snapshot for snapshot in items if snapshot.source_id == source_id]
        return page(items, limit, token)

    def _existing(self, digest: str, request: SnapshotRequest) -> Snapshot | None:
        for pool in self._pools.all_for_name_lookup():
            snapshot = pool.snapshots.get(digest)
            if snapshot is None:
                continue
            pool.ensure_available()
            if snapshot.name != request.name:
                raise Damaged(f"{snapshot.id} has the name {snapshot.name!r}, not {request.name!r}: report this")
            if snapshot.source_id != request.source_id:
                raise AlreadyExists(
                    f"snapshot {request.name!r} exists as {snapshot.id}, of volume {snapshot.source_id}, "
                    f"not of {request.source_id}: use another name"
                )
            found = self._pools.find_volume(request.source_id)
            if found is not None and found[1].uid != snapshot.source_uid:
                raise AlreadyExists(
                    f"snapshot {request.name!r} exists as {snapshot.id}, of a deleted volume that had the same name as "
                    f"{request.source_id}: use another name"
                )
            return snapshot
        return None


def plan(
    context: ServiceDependencies, pool: Pool, volume: Volume, name: str, labels: Mapping[str, str], group: str = ""
) -> Snapshot:
    """Return the record of a snapshot to take; the backend fills in its time and size."""
    return Snapshot(
        id=pool.ref.new_snapshot_id(name),
        name=name,
        uid=context.new_uid(),
        created=context.now(),
        size=volume.size,
        source_id=str(volume.id),
        source_uid=volume.uid,
        format=volume.format,
        thick=volume.thick,
        labels=dict(labels),
        group=group,
        requested=volume.requested,
    )


async def check_capacity(pool: Pool, volumes: list[Volume]) -> None:
    """Raise Precondition at the limit of snapshots, OutOfSpace in a pool that is nearly full; both name the numbers."""
    account = await pool.account()
    if account.below_reserve:
        if account.passed_limit is not None:
            raise OutOfSpace(
                f"pool {pool.name} takes no snapshot, since {account.passed_limit}: {pool.remedy(account)}"
            )
        raise OutOfSpace(
            f"pool {pool.name} has {human(account.space.free)} free and keeps {human(account.reserve)} in reserve: delete something "
            "before taking a snapshot"
        )
    traits, kind = pool.backend.traits, pool.backend.identity.kind
    for volume in volumes:
        if volume.thick and not traits.thick_copies:
            raise Precondition(
                f"{volume.id} is a thick volume, of which pool {pool.name} ({kind}) takes no snapshots: use a thin volume (a "
                "StorageClass without provisioning: thick)"
            )
        count = len(pool.snapshots_of(volume.uid))
        if count >= pool.policy.max_snapshots:
            raise Precondition(
                f"volume {volume.id} has {count} snapshots and the limit is {pool.policy.max_snapshots}: delete some first"
            )
        if traits.max_relatives and count >= traits.max_relatives:
            raise Precondition(
                f"volume {volume.id} has {count} snapshots, and no volume of pool {pool.name} ({kind}) can have more than "
                f"{traits.max_relatives}: delete some first"
            )

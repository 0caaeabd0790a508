"""Group snapshots: several volumes of one pool at one moment, all or none; deleted only together."""

from collections.abc import Mapping, Sequence

from csi_driver.backends.base import SpaceOperation
from csi_driver.backends.snapshots import take
from csi_driver.domain.errors import AlreadyExists, Damaged, InvalidRequest, NotFound, Precondition
from csi_driver.domain.ids import member_name, name_hash, parse
from csi_driver.domain.model import GroupSnapshot, Volume
from csi_driver.domain.requests import check_name, refuse_parameters, split_labels
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.pools import Pool
from csi_driver.service.reservations import reserve_space
from csi_driver.service.snapshots import check_capacity, plan

MAX_MEMBERS = 64


class GroupSnapshots:
    """Serves the calls of the CSI group controller service."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context
        self._pools = context.pools

    async def create(self, name: str, source_ids: Sequence[str], parameters: Mapping[str, str]) -> GroupSnapshot:
        """Take snapshots of all volumes at one moment, or return the group that the same request created."""
        check_name(name, "the group snapshot's name")
        if not source_ids:
            raise InvalidRequest("the source volumes' ids are missing: name the volumes of the group")
        if len(source_ids) > MAX_MEMBERS or len(set(source_ids)) != len(source_ids):
            raise InvalidRequest(
                f"a group has 1 to {MAX_MEMBERS} different volumes, the request has {len(source_ids)} ids: name each volume once"
            )
        asked, labels = split_labels(parameters, "parameters")
        refuse_parameters(asked, "group snapshots")
        digest = name_hash("group", name)
        # Before the lookup: a group that is being deleted must not be returned.
        await self._pools.locks.ensure_not_changing(digest)
        await self._pools.refresh()
        existing = self._existing(digest, name, source_ids)
        if existing is not None:
            return existing
        pool, volumes = self._sources(source_ids)
        sources = [v.id.hash for v in volumes]
        created = [digest, *(name_hash("snapshot", member_name(name, str(v.id))) for v in volumes)]
        async with self._pools.hold(pool, f"CreateVolumeGroupSnapshot {name!r}", sources, creating_or_deleting=created):
            # Created meanwhile, by a call that this one waited for?
            existing = self._existing(digest, name, source_ids)
            if existing is not None:
                return existing
            pool, volumes = self._sources(source_ids)
            await check_capacity(pool, volumes)
            planned = GroupSnapshot(
                id=pool.ref.new_group_id(name),
                name=name,
                uid=self._context.new_uid(),
                created=self._context.now(),
                source_ids=tuple(sorted(source_ids)),
                members=tuple(
                    plan(self._context, pool, v, member_name(name, str(v.id)), labels, group=digest) for v in volumes
                ),
                labels=labels,
            )
            needed = pool.backend.space_needed(SpaceOperation("snapshot", tuple(volumes)))
            async with (
                reserve_space(pool, "a group snapshot of thick volumes", needed),
                self._context.holds.extend_hold_while(pool, volumes),
            ):
                group, report = await take(pool.backend, planned, volumes)
            pool.put_group(group)
            self._context.observer.snapshot_taken(pool.name, report)
            return group

    async def delete(self, group_id: str, snapshot_ids: Sequence[str]) -> None:
        """Delete a group and its members at once; an unknown id is not an error. `snapshot_ids`: empty, or all members."""
        place = self._pools.locate(group_id)
        if place is None:
            return
        pool, digest = place
        await self._pools.refresh()
        while not await self._delete_if_same(pool, digest, group_id, snapshot_ids):
            pass

    async def _delete_if_same(self, pool: Pool, digest: str, group_id: str, snapshot_ids: Sequence[str]) -> bool:
        """Delete the group whose members are locked; False if, after the wait for the lock, the index has another one."""
        group = pool.groups.get(digest)
        locked = [digest, *(m.id.hash for m in group.members)] if group else [digest]
        async with self._pools.hold(pool, f"DeleteVolumeGroupSnapshot of {group_id}", creating_or_deleting=locked):
            # Under the lock: a group that is being created is not in the index yet.
            if pool.groups.get(digest) is not group:
                return False
            if group is not None:
                _check_members(group, snapshot_ids)
                await pool.backend.delete_group(group)
                pool.drop_group(digest)
            return True

    async def refresh(self) -> None:
        """Bring what is known of shared pools up to date, before it is looked up or listed."""
        await self._pools.refresh()

    def get(self, group_id: str, snapshot_ids: Sequence[str]) -> GroupSnapshot:
        """Return one group. Raises NotFound, then InvalidRequest if `snapshot_ids` are not its members."""
        found = self._find(group_id)
        if found is None:
            raise NotFound(f"group snapshot {group_id!r} does not exist: `tidemark tree` shows those that do")
        _check_members(found[1], snapshot_ids)
        return found[1]

    def granule(self, group: GroupSnapshot) -> int:
        """Return what sizes are multiples of in the group's pool."""
        return self._pools.granule_of(group.id)

    def _find(self, group_id: str) -> tuple[Pool, GroupSnapshot] | None:
        place = self._pools.locate(group_id)
        group = place[0].groups.get(place[1]) if place else None
        return (place[0], group) if place and group else None

    def _sources(self, source_ids: Sequence[str]) -> tuple[Pool, list[Volume]]:
        owners = sorted({p.owner for p in map(parse, source_ids) if p is not None})
        if len(owners) > 1:
            raise Precondition(
                f"the volumes are on different nodes ({', '.join(owners)}) and cannot be in one group snapshot: "
                "create one group for each node"
            )
        found = [self._pools.volume(source_id) for source_id in sorted(source_ids)]
        names = sorted({pool.name for pool, _ in found})
        if len(names) > 1:
            raise Precondition(
                f"the volumes are in different pools ({', '.join(names)}) and cannot be in one group snapshot: "
                "create one group for each pool"
            )
        return found[0][0], [volume for _, volume in found]

    def _existing(self, digest: str, name: str, source_ids: Sequence[str]) -> GroupSnapshot | None:
        for pool in self._pools.all_for_name_lookup():
            group = pool.groups.get(digest)
            if group is None:
                continue
            pool.ensure_available()
            if group.name != name:
                raise Damaged(f"{group.id} has the name {group.name!r}, not {name!r}: report this")
            if group.source_ids != tuple(sorted(source_ids)):
                raise AlreadyExists(
                    f"group snapshot {name!r} exists as {group.id}, of {', '.join(group.source_ids)}: use another name"
                )
            uids = {m.source_id: m.source_uid for m in group.members}
            for source_id in source_ids:
                found = self._pools.find_volume(source_id)
                if found is not None and found[1].uid != uids[source_id]:
                    raise AlreadyExists(
                        f"group snapshot {name!r} exists as {group.id}, of a deleted volume that had the same name as "
                        f"{source_id}: use another name"
                    )
            return group
        return None


def _check_members(group: GroupSnapshot, snapshot_ids: Sequence[str]) -> None:
    members = {str(m.id) for m in group.members}
    if snapshot_ids and set(snapshot_ids) != members:
        raise InvalidRequest(
            f"group snapshot {group.id} has the members {', '.join(sorted(members))}, not the requested ones: name all or none"
        )

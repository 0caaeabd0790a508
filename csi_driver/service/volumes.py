"""Disks: created empty or from a source, listed, grown, deleted. Every call may be repeated and answers the same."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from csi_driver.backends.base import SpaceNeeded, SpaceOperation
from csi_driver.domain.capacity import human
from csi_driver.domain.errors import AlreadyExists, Damaged, InUse, InvalidRequest, OutOfRange, OutOfSpace
from csi_driver.domain.ids import ObjectId, name_hash
from csi_driver.domain.model import Capability, SizeRange, Snapshot, Volume, VolumeRequest, VolumeUsage
from csi_driver.domain.requests import (
    FILE_SYSTEMS,
    FS_TYPE_LABEL,
    asked_file_system,
    check_capability,
    check_volume_parameters,
    check_volume_request,
    difference,
    split_labels,
)
from csi_driver.domain.sizes import check_range, choose, expanded, least_request, requested, round_up, smallest, within
from csi_driver.service.dependencies import ServiceDependencies, page
from csi_driver.service.formats import check_format, format_of_copy, unmountable
from csi_driver.service.pools import Pool
from csi_driver.service.reservations import reserve_space

Topologies = Sequence[str]
"""Owners that the caller could use; empty where it did not say."""


class Volumes:
    """The controller's half of a volume's life."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context
        self._pools = context.pools

    async def create(self, request: VolumeRequest, topologies: Topologies = ()) -> Volume:
        """Make a volume, or find the one that the same request made. Errors as csi.v1 CreateVolume names them."""
        check_volume_request(request)
        check_range(request.range)
        digest = name_hash("volume", request.name)
        # Before the look-up: a volume that is being deleted is no answer.
        await self._pools.locks.settled(digest)
        existing = self._existing(digest, request)
        if existing is not None:
            return existing
        if topologies and self._pools.owner not in topologies:
            raise OutOfSpace(
                f"node {self._pools.owner} is not among those asked for ({', '.join(topologies)}): choose it"
            )
        found = self._source(request)
        pool = self._place(request, found[0] if found else None)
        source = found[1] if found else None
        # A volume may be mounted and is then frozen while it is copied, so it is held alone; a snapshot is only read.
        exclusive = [source.id.hash] if isinstance(source, Volume) else []
        shared = [source.id.hash] if isinstance(source, Snapshot) else []
        async with self._pools.locks.hold(f"CreateVolume of {request.name!r}", exclusive, shared, existence=[digest]):
            # Made meanwhile, by a call that this one waited for?
            existing = self._existing(digest, request)
            if existing is not None:
                return existing
            source = self._unchanged(source)
            begins_as = await format_of_copy(pool, request, source)
            check_format(request, source, begins_as)
            volume = await self._plan(pool, digest, request, source, begins_as)
            at_work = [source] if isinstance(source, Volume) else []
            # What a thick source is given again counts also where the copy is thin.
            doing = "a copy of a thick volume" if at_work else "a thick volume"
            operation = SpaceOperation("clone" if at_work else "create", tuple(at_work), volume)
            async with (
                reserve_space(pool, doing, pool.backend.space_needed(operation), volume.size),
                self._context.extend_hold_while(pool, at_work),
            ):
                report = await pool.backend.create_volume(volume, source)
            pool.put_volume(volume)
            if isinstance(source, Volume):
                self._context.observer.cut(pool.name, report)
            return volume

    async def delete(self, volume_id: str) -> None:
        """Delete a volume that nobody uses; unknown is fine. Its snapshots and copies stay. Raises InUse."""
        place = self._pools.locate(volume_id)
        if place is None:
            return
        pool, digest = place
        deadline = time.monotonic() + self._pools.locks.patience
        while use := await self._deleted_unless_used(pool, digest, volume_id):
            # What is shown once and no more is staged, and its last pod has gone: a kubelet unstages it now, while the claim
            # is deleted already. A pod's disk is shown twice, and nobody waits for a pod.
            if len(use.places) > 1 or not await self._pools.locks.touched(digest, deadline):
                raise InUse(f"volume {volume_id} is in use at {', '.join(use.paths)}: unpublish and unstage it first")

    async def _deleted_unless_used(self, pool: Pool, digest: str, volume_id: str) -> VolumeUsage | None:
        """Delete a volume, or tell who uses it."""
        async with self._pools.locks.hold(f"DeleteVolume of {volume_id}", existence=[digest]):
            # Not before: what is being made now is not indexed yet, and would be there after all.
            volume = pool.volumes.get(digest)
            if volume is None:
                return None
            self._context.ensure_not_held(volume, "deletion")
            use = await pool.backend.access.use(volume)
            if use.places:
                return use
            await pool.backend.access.detach(volume)
            await pool.backend.delete_volume(volume)
            pool.drop_volume(digest)
            self._context.conditions.note(volume, None)
            return None

    async def expand(self, volume_id: str, wanted: SizeRange) -> Volume:
        """Grow a volume, in use or not. What does not fit is OutOfRange, so that a caller may ask for less."""
        check_range(wanted)
        if not wanted.required and not wanted.limit:
            raise InvalidRequest("the capacity range is missing: say how large the volume is to be")
        pool, volume = self._pools.volume(volume_id)
        async with self._pools.locks.hold(f"ControllerExpandVolume of {volume_id}", [volume.id.hash]):
            pool, volume = self._pools.volume(volume_id)
            self._context.ensure_not_held(volume, "expansion")
            size = expanded(volume.size, wanted)
            growth = size - volume.size
            if growth:
                account = await pool.account()
                room = account.available_thick_later if volume.thick else account.available
                if growth > room:
                    raise OutOfRange(
                        f"pool {pool.name} has room for {room} more bytes, {growth} are needed: ask for less"
                    )
            grown = replace(volume, size=size)
            needed = SpaceNeeded(growth * volume.thick, "what it grows by")
            async with reserve_space(pool, "the growth of a thick volume", needed, growth):
                await pool.backend.expand_volume(grown)
            # Known from here on, whatever becomes of record and device: it is what the next start would find.
            pool.put_volume(grown)
            # Also where the size was right already: a crash may have left an attached device behind its image.
            if (await pool.backend.access.use(grown)).device:
                await pool.backend.access.attach(grown)
            # The record last: until then the larger size counts, since what was asked for of the smaller does not lead to it.
            # Also where the size was right already: a crash may have come before the record.
            asked = wanted.required if wanted.required < size == round_up(wanted.required) else 0
            if asked != volume.requested and (growth or (asked and least_request(volume.requested, size) == size)):
                grown = replace(grown, requested=asked)
                await pool.backend.save_volume(grown)
                pool.put_volume(grown)
            return grown

    def get(self, volume_id: str) -> Volume:
        """One volume. Raises NotFound."""
        return self._pools.volume(volume_id)[1]

    def list(self, limit: int = 0, token: str = "") -> tuple[list[Volume], str]:
        """One page of all volumes, and the next page's token. Raises InvalidRequest, BadToken, Unavailable."""
        if limit < 0:
            raise InvalidRequest(f"max_entries {limit} is negative: use 0 for all")
        return page([v for pool in self._pools.all_serving() for v in pool.volumes.values()], limit, token)

    def validate(self, volume_id: str, capabilities: Sequence[Capability], parameters: Mapping[str, str]) -> str:
        """Why a volume cannot be used so; empty where it can. Raises NotFound, InvalidRequest."""
        if not capabilities:
            raise InvalidRequest("volume capabilities are missing: say which are to be confirmed")
        volume = self.get(volume_id)
        asked, _ = split_labels(parameters, "parameters")
        for key, value in asked.items():
            if volume.request.parameters.get(key) != value:
                return f"the volume was made with {key}={volume.request.parameters.get(key)!r}, not {value!r}"
        for capability in capabilities:
            reason = unsupported(volume, capability)
            if reason:
                return reason
        return ""

    async def capacity(
        self, parameters: Mapping[str, str], capabilities: Sequence[Capability], topology: str | None = None
    ) -> tuple[int, int, int]:
        """Bytes available, largest and smallest volume. 0 for a pool or a topology that is not ours."""
        asked, labels = split_labels(parameters, "parameters")
        check_volume_parameters(asked)
        for capability in capabilities:
            check_capability(capability)
        least = smallest(capabilities, labels.get(FS_TYPE_LABEL, ""))
        name = asked.get("pool", "")
        if topology not in {None, self._pools.owner} or (name and self._pools.known(name) is None):
            return 0, 0, least
        account = await self._pools.named(name).account()
        room = account.available_thick if asked.get("provisioning") == "thick" else account.available
        return room, room, least

    def _existing(self, digest: str, request: VolumeRequest) -> Volume | None:
        for pool in self._pools.all_for_name_lookup():
            volume = pool.volumes.get(digest)
            if volume is None:
                continue
            pool.serving()
            if volume.name != request.name:
                raise Damaged(f"{volume.id} holds the name {volume.name!r}, not {request.name!r}: report this")
            changed = difference(request, volume.request) or self._other_source(request, volume)
            if not changed and (request.range == volume.request.range or within(volume.size, request.range)):
                return volume
            changed = changed or f"its size ({volume.size} bytes, not within {_said(request.range)})"
            raise AlreadyExists(
                f"volume {request.name!r} exists as {volume.id} and differs in {changed}: use another name"
            )
        return None

    def _other_source(self, request: VolumeRequest, volume: Volume) -> str:
        """A source that was deleted and made again under its name has the same id, and is another object all the same."""
        if request.source is None:
            return ""
        find = self._pools.find_snapshot if request.source.kind == "snapshot" else self._pools.find_volume
        found = find(request.source.id)
        if found is None or found[1].uid == volume.made_from:
            return ""
        return f"its source ({request.source.id} was deleted since, and made again)"

    def _source(self, request: VolumeRequest) -> tuple[Pool, Volume | Snapshot] | None:
        if request.source is None:
            return None
        if not request.source.id:
            raise InvalidRequest(f"the id of the source {request.source.kind} is missing: name it")
        if request.source.kind == "snapshot":
            return self._pools.snapshot(request.source.id)
        return self._pools.volume(request.source.id)

    def _place(self, request: VolumeRequest, source_pool: Pool | None) -> Pool:
        name = request.parameters.get("pool", "")
        if source_pool is None:
            return self._pools.named(name)
        if name and name != source_pool.name:
            raise InvalidRequest(
                f"the source lies in pool {source_pool.name}, the class asks for {name}: a copy is made where its source "
                "is; use a class of that pool, or none"
            )
        return source_pool

    def _unchanged(self, source: Volume | Snapshot | None) -> Volume | Snapshot | None:
        """The source as it is now that it is locked: it may have been deleted between look-up and lock."""
        if isinstance(source, Volume):
            return self._pools.volume(str(source.id))[1]
        return self._pools.snapshot(str(source.id))[1] if source is not None else None

    async def _plan(
        self, pool: Pool, digest: str, request: VolumeRequest, source: Volume | Snapshot | None, begins_as: str
    ) -> Volume:
        holds = begins_as if begins_as in FILE_SYSTEMS else ""
        least = smallest(request.capabilities, holds or asked_file_system(request))
        size = choose(request.range, least, source.size if source else 0, source.requested if source else 0)
        # A copy that nobody said a size for may be asked for as its source was.
        asked = request.range.required or (source.requested if source is not None and source.size == size else 0)
        thick = request.parameters.get("provisioning") == "thick"
        account = await pool.account()
        # An empty volume may as well be made elsewhere; a copy waits here for those that have the room now.
        real = account.available_thick if source is None else account.available_thick_later
        room = real if thick else account.available
        if size > account.ceiling:
            raise OutOfRange(f"pool {pool.name} can never hold {size} bytes, at most {account.ceiling}: ask for less")
        if account.below_reserve or size > room:
            raise OutOfSpace(
                f"pool {pool.name} has room for {room} bytes, {size} are needed ({human(account.space.free)} free, "
                f"{human(account.reserve)} kept in reserve, {human(account.committed)} of {human(account.ceiling)} promised): "
                f"use another pool, or {pool.way_out}"
            )
        return Volume(
            id=ObjectId(self._pools.owner, pool.name, digest),
            name=request.name,
            uid=self._context.new_uid(),
            created=self._context.now(),
            size=size,
            request=request,
            format=begins_as,
            thick=thick,
            source_uid=_origin(source),
            made_from=source.uid if source is not None else "",
            requested=requested(asked, size),
        )


def unsupported(volume: Volume, capability: Capability) -> str:
    """Why a volume cannot be used with this capability; empty where it can."""
    try:
        check_capability(capability, made_before=True)
    except InvalidRequest as error:
        return str(error)
    if reason := unmountable(volume, capability):
        return reason
    if capability.access == "mount" and capability.fs_type:
        made_as = volume.format if volume.format in FILE_SYSTEMS else asked_file_system(volume.request)
        if made_as and made_as != capability.fs_type:
            return f"the volume's file system is {made_as}, not {capability.fs_type}"
    return ""


def _origin(source: Volume | Snapshot | None) -> str:
    """The uid of the volume whose blocks the copy shares: a snapshot's own source, or the source volume itself."""
    if source is None:
        return ""
    return source.source_uid if isinstance(source, Snapshot) else source.uid


def _said(wanted: SizeRange) -> str:
    return f"{wanted.required or 'any'} to {wanted.limit or 'any'}"

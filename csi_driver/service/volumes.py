"""Volumes: created empty or from a source, listed, expanded, deleted. A repeated call answers the same."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from csi_driver.backends.base import SpaceNeeded, SpaceOperation
from csi_driver.backends.snapshots import take
from csi_driver.domain.capacity import human
from csi_driver.domain.errors import AlreadyExists, Damaged, InUse, InvalidRequest, OutOfRange, OutOfSpace, Precondition
from csi_driver.domain.ids import name_hash
from csi_driver.domain.model import Capability, SizeRange, Snapshot, Volume, VolumeRequest, VolumeUsage
from csi_driver.domain.paging import page
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
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.formats import check_format, clone_format, unmountable
from csi_driver.service.pools import Pool
from csi_driver.service.reservations import reserve_space

Topologies = Sequence[str]
"""Owners that the caller accepts; empty if it accepts any."""


class Volumes:
    """Serves the calls of the CSI controller service about volumes."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context
        self._pools = context.pools

    async def create(self, request: VolumeRequest, topologies: Topologies = ()) -> Volume:
        """Create a volume, or return the one that the same request created. Raises what csi.v1 lists for CreateVolume."""
        check_volume_request(request)
        check_range(request.range)
        digest = name_hash("volume", request.name)
        # Before the lookup: a volume that is being deleted must not be returned.
        await self._pools.locks.ensure_not_changing(digest)
        await self._pools.refresh()
        existing = self._existing(digest, request)
        if existing is not None:
            return existing
        everywhere = self._pools.is_shared(request.parameters.get("pool", ""))
        if topologies and self._pools.owner not in topologies and not everywhere:
            raise OutOfSpace(
                f"node {self._pools.owner} is not in the requested topology ({', '.join(topologies)}): request this node"
            )
        source_pool, source = self._find_source(request)
        pool = self._choose_pool(request, source_pool)
        # A mounted volume is frozen while it is cloned, so its lock is exclusive; a snapshot is only read.
        exclusive = [source.id.hash] if isinstance(source, Volume) else []
        shared = [source.id.hash] if isinstance(source, Snapshot) else []
        async with self._pools.hold(
            pool, f"CreateVolume of {request.name!r}", exclusive, shared, creating_or_deleting=[digest]
        ):
            # Created meanwhile, by a call that this one waited for?
            existing = self._existing(digest, request)
            if existing is not None:
                return existing
            source = self._reload(source)
            begins_as = await clone_format(pool, request, source)
            check_format(request, source, begins_as)
            volume = await self._plan(pool, request, source, begins_as)
            frozen = [source] if isinstance(source, Volume) else []
            # A thick source is allocated again after the clone, so reserve space for it even when the clone is thin.
            doing = "a clone of a thick volume" if frozen else "a thick volume"
            operation = SpaceOperation("clone" if frozen else "create", tuple(frozen), volume)
            async with (
                reserve_space(pool, doing, pool.backend.space_needed(operation), volume.size),
                self._context.holds.extend_hold_while(pool, frozen),
            ):
                if isinstance(source, Volume):
                    _, timings = await take(pool.backend, volume, [source])
                    self._context.observer.snapshot_taken(pool.name, timings)
                else:
                    await pool.backend.create_volume(volume, source)
            pool.put_volume(volume)
            return volume

    async def delete(self, volume_id: str) -> None:
        """Delete a volume that is not in use; an unknown id is not an error. Its snapshots and clones stay. Raises InUse."""
        place = self._pools.locate(volume_id)
        if place is None:
            return
        pool, digest = place
        deadline = time.monotonic() + self._pools.locks.patience
        while use := await self._delete_unless_used(pool, digest, volume_id):
            # One mount means staged and not published: the last pod has ended, and the kubelet unstages the volume now, while
            # its PVC is deleted already. A volume of a running pod has two mounts, and this call does not wait for pods.
            waits = len(use.places) <= 1 and not use.nodes
            if not waits or not await self._pools.locks.wait_released(digest, deadline):
                raise InUse(f"volume {volume_id} is in use at {use.where}: unpublish and unstage it first")

    async def _delete_unless_used(self, pool: Pool, digest: str, volume_id: str) -> VolumeUsage | None:
        """Delete the volume, or return its usage if it is in use."""
        async with self._pools.hold(pool, f"DeleteVolume of {volume_id}", creating_or_deleting=[digest]):
            # Under the lock: a volume that is being created is not in the index yet.
            volume = pool.volumes.get(digest)
            if volume is None:
                return None
            self._context.holds.ensure_not_held(volume, "deletion")
            use = await pool.backend.users(volume)
            if use.is_used:
                return use
            await pool.backend.access.detach(volume)
            await pool.backend.delete_volume(volume)
            pool.drop_volume(digest)
            self._context.conditions.note(volume, None)
            return None

    async def expand(self, volume_id: str, size_range: SizeRange) -> Volume:
        """Grow a volume, in use or not. Raises OutOfRange for a size that does not fit, so that a caller may request less."""
        check_range(size_range)
        if not size_range.required and not size_range.limit:
            raise InvalidRequest("the capacity range is missing: request a size")
        await self._pools.refresh()
        pool, volume = self._pools.volume(volume_id)
        async with self._pools.hold(pool, f"ControllerExpandVolume of {volume_id}", [volume.id.hash]):
            pool, volume = self._pools.volume(volume_id)
            self._context.holds.ensure_not_held(volume, "expansion")
            size = expanded(volume.size, size_range, pool.granule)
            growth = size - volume.size
            if growth:
                account = await pool.account()
                available = account.available_thick_later if volume.thick else account.available
                if growth > available:
                    passed = account.passed_limit
                    raise OutOfRange(
                        f"pool {pool.name} can reserve {available} more bytes, {growth} are needed: request less"
                        if passed is None
                        else f"pool {pool.name} grows no volume, since {passed}: {pool.remedy(account)}"
                    )
            grown = replace(volume, size=size)
            needed = SpaceNeeded(growth * volume.thick, "what it grows by")
            async with reserve_space(pool, "the growth of a thick volume", needed, growth):
                await pool.backend.expand_volume(grown)
            # In the index before record and device are changed: the next start would find this size.
            pool.put_volume(grown)
            # Even if the size was right already: after a crash an attached device may be smaller than its image.
            if (await pool.backend.access.use(grown)).device:
                await pool.backend.access.attach(grown)
            # The record last: until then the larger size counts, since the size requested before does not lead to it.
            # Even if the size was right already: a crash may have come before the record.
            rounded = round_up(size_range.required, pool.granule)
            asked = size_range.required if size_range.required < size == rounded else 0
            before = least_request(volume.requested, size, pool.granule)
            if asked != volume.requested and (growth or (asked and before == size)):
                grown = replace(grown, requested=asked)
                await pool.backend.save_volume(grown)
                pool.put_volume(grown)
            return grown

    async def refresh(self) -> None:
        """Bring what is known of shared pools up to date, before it is looked up or listed."""
        await self._pools.refresh()

    def get(self, volume_id: str) -> Volume:
        """Return one volume. Raises NotFound."""
        return self._pools.volume(volume_id)[1]

    def list(self, limit: int = 0, token: str = "") -> tuple[list[Volume], str]:
        """Return one page of all volumes, and the next page's token. Raises InvalidRequest, BadToken, Unavailable."""
        if limit < 0:
            raise InvalidRequest(f"max_entries {limit} is negative: use 0 for all")
        return page([v for pool in self._pools.all_serving() for v in pool.volumes.values()], limit, token)

    def validate(self, volume_id: str, capabilities: Sequence[Capability], parameters: Mapping[str, str]) -> str:
        """Return why a volume cannot be used in these ways; empty if it can. Raises NotFound, InvalidRequest."""
        if not capabilities:
            raise InvalidRequest("volume capabilities are missing: name those to confirm")
        volume = self.get(volume_id)
        asked, _ = split_labels(parameters, "parameters")
        for key, value in asked.items():
            if volume.request.parameters.get(key) != value:
                return f"the volume was created with {key}={volume.request.parameters.get(key)!r}, not {value!r}"
        for capability in capabilities:
            reason = unsupported(volume, capability)
            if reason:
                return reason
        return ""

    async def capacity(
        self, parameters: Mapping[str, str], capabilities: Sequence[Capability], topology: str | None = None
    ) -> tuple[int, int, int]:
        """Return available bytes, the largest and the smallest size of a volume. 0 for a pool or topology of other nodes."""
        asked, labels = split_labels(parameters, "parameters")
        check_volume_parameters(asked)
        for capability in capabilities:
            check_capability(capability)
        least = smallest(capabilities, labels.get(FS_TYPE_LABEL, ""))
        name = asked.get("pool", "")
        elsewhere = topology not in {None, self._pools.owner} and not self._pools.is_shared(name)
        if elsewhere or (name and self._pools.known(name) is None):
            return 0, 0, least
        pool = self._pools.named(name)
        thick = asked.get("provisioning") == "thick"
        least = round_up(least, pool.granule)
        if thick and not pool.backend.traits.thick:
            return 0, 0, least
        account = await pool.account()
        available = account.available_thick if thick else account.available
        return available, available // pool.granule * pool.granule, least

    def _existing(self, digest: str, request: VolumeRequest) -> Volume | None:
        for pool in self._pools.all_for_name_lookup():
            volume = pool.volumes.get(digest)
            if volume is None:
                continue
            pool.ensure_available()
            if volume.name != request.name:
                raise Damaged(f"{volume.id} has the name {volume.name!r}, not {request.name!r}: report this")
            changed = difference(request, volume.request) or self._other_source(request, volume)
            if not changed and (request.range == volume.request.range or within(volume.size, request.range)):
                return volume
            changed = changed or f"its size ({volume.size} bytes, not within {_describe_range(request.range)})"
            raise AlreadyExists(
                f"volume {request.name!r} exists as {volume.id} and differs in {changed}: use another name"
            )
        return None

    def _other_source(self, request: VolumeRequest, volume: Volume) -> str:
        """Return how the source differs: one that was deleted and created again under its name has the same id and another uid."""
        if request.source is None:
            return ""
        find = self._pools.find_snapshot if request.source.kind == "snapshot" else self._pools.find_volume
        found = find(request.source.id)
        if found is None or found[1].uid == volume.made_from:
            return ""
        return f"its source ({request.source.id} was deleted and created again since)"

    def _find_source(self, request: VolumeRequest) -> tuple[Pool, Volume | Snapshot] | tuple[None, None]:
        if request.source is None:
            return None, None
        if not request.source.id:
            raise InvalidRequest(f"the id of the source {request.source.kind} is missing: name it")
        if request.source.kind == "snapshot":
            return self._pools.snapshot(request.source.id)
        return self._pools.volume(request.source.id)

    def _choose_pool(self, request: VolumeRequest, source_pool: Pool | None) -> Pool:
        name = request.parameters.get("pool", "")
        if source_pool is None:
            return self._pools.named(name)
        if name and name != source_pool.name:
            raise InvalidRequest(
                f"the source is in pool {source_pool.name}, the StorageClass names pool {name}: a clone is created in the pool "
                "of its source; use a StorageClass of that pool, or one that names none"
            )
        return source_pool

    def _reload(self, source: Volume | Snapshot | None) -> Volume | Snapshot | None:
        """Return the source as it is under the lock: it may have been deleted between look-up and lock."""
        if isinstance(source, Volume):
            return self._pools.volume(str(source.id))[1]
        return self._pools.snapshot(str(source.id))[1] if source is not None else None

    async def _plan(
        self, pool: Pool, request: VolumeRequest, source: Volume | Snapshot | None, begins_as: str
    ) -> Volume:
        holds = begins_as if begins_as in FILE_SYSTEMS else ""
        least = smallest(request.capabilities, holds or asked_file_system(request))
        source_size, source_request = (source.size, source.requested) if source is not None else (0, 0)
        size = choose(request.range, least, source_size, source_request, pool.granule)
        # A clone of no requested size takes over the requested size of its source.
        asked = request.range.required or (source.requested if source is not None and source.size == size else 0)
        thick = request.parameters.get("provisioning") == "thick"
        _ensure_provisioning(pool, thick, source)
        account = await pool.account()
        # An empty volume may as well be created elsewhere; a clone waits here until work under way has returned its space.
        free = account.available_thick if source is None else account.available_thick_later
        available = free if thick else account.available
        if size > account.ceiling:
            raise OutOfRange(f"pool {pool.name} can never hold {size} bytes, at most {account.ceiling}: request less")
        if account.below_reserve or size > available:
            raise OutOfSpace(
                f"pool {pool.name} can reserve {available} bytes, {size} are needed ({account.state}, "
                f"{human(account.committed)} of {human(account.ceiling)} reserved): use another pool, or {pool.remedy(account)}"
            )
        return Volume(
            id=pool.ref.new_volume_id(request.name),
            name=request.name,
            uid=self._context.new_uid(),
            created=self._context.now(),
            size=size,
            request=request,
            format=begins_as,
            thick=thick,
            source_uid=_origin(source),
            made_from=source.uid if source is not None else "",
            requested=requested(asked, size, pool.granule),
        )


def _ensure_provisioning(pool: Pool, thick: bool, source: Volume | Snapshot | None) -> None:
    """Raise InvalidRequest where the pool's technology serves no thick volumes; Precondition where it cannot copy them."""
    traits = pool.backend.traits
    if thick and not traits.thick:
        raise InvalidRequest(
            f"pool {pool.name} ({pool.backend.identity.kind}) serves no thick volumes, since it cannot set their space aside: use a "
            "StorageClass without provisioning: thick, or one of another pool"
        )
    if traits.thick_copies or source is None:
        return
    if source.thick:
        raise Precondition(
            f"{source.id} is a thick volume, which pool {pool.name} ({pool.backend.identity.kind}) cannot copy: copy its data at "
            "the level of files, or use a thin volume"
        )
    if thick:
        raise Precondition(
            f"a thick volume of pool {pool.name} ({pool.backend.identity.kind}) cannot be a copy of {source.id}, only empty: use a "
            "StorageClass without provisioning: thick"
        )


def unsupported(volume: Volume, capability: Capability) -> str:
    """Return why a volume cannot be used with this capability; empty if it can."""
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
    """Return the uid of the volume whose blocks the clone shares: the source volume, or the volume that a snapshot is of."""
    if source is None:
        return ""
    return source.source_uid if isinstance(source, Snapshot) else source.uid


def _describe_range(size_range: SizeRange) -> str:
    return f"{size_range.required or 'any'} to {size_range.limit or 'any'}"

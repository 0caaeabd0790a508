"""Snapshots, group snapshots and clones of a reflink pool: images in a draft that share the blocks of volumes' images."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csi_driver.backends.base import Draft, Moment, Target
from csi_driver.backends.freeze_session import MountedVolume
from csi_driver.backends.reflink import image_space, pool_reader
from csi_driver.backends.reflink.layout import IMAGE, Layout
from csi_driver.backends.snapshots import filled
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume
from csi_driver.domain.records import dump_group, dump_snapshot, dump_volume
from csi_driver.host.block.device import BlockDevice
from csi_driver.host.fs import extents, files, mountinfo

_COUNT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ImageDraft:
    """A draft's directory, and its images by the hashes of the volumes whose blocks they share."""

    path: Path
    images: dict[str, Path]


class ImageClones:
    """Makes drafts of clones, fills them (the SnapshotTechnology of the pool) and shows them.

    `image`: the file that holds a volume's bytes.
    """

    suspends = False

    def __init__(
        self, layout: Layout, image: Callable[[Volume], Path], in_thread: Callable[..., Awaitable[Any]]
    ) -> None:
        self._layout = layout
        self._image = image
        self._in_thread = in_thread

    async def prepare(self, target: Target, sources: Sequence[Volume]) -> Draft[Target]:
        """Make a directory with an empty image for each source, in a thread: a disk that hangs must not hold the event loop up."""
        path = self._layout.draft_path()
        names = [IMAGE]
        if isinstance(target, GroupSnapshot):
            names = [pool_reader.member_image(Path(), member.id.hash).name for member in target.members]
        images = {source.id.hash: path / name for source, name in zip(sources, names, strict=True)}
        draft = Draft(target, tuple(sources), ImageDraft(path, images))
        try:
            await self._in_thread(self._layout.create_draft, path, *names)
        except BaseException:
            await self.abandon(draft)
            raise
        return draft

    async def abandon(self, draft: Draft[Any]) -> None:
        """Remove the directory."""
        await self._in_thread(self._layout.remove_draft, draft.place.path)

    async def publish(self, draft: Draft[Target], moment: Moment) -> Target:
        """Give thick sources blocks of their own again, and show the draft by one rename."""
        await self._unshare_thick(draft.sources)
        shown: Target = await self._in_thread(self._publish, draft, moment)
        return shown

    async def take_idle(self, draft: Draft[Any], sources: Sequence[Volume]) -> None:
        """See SnapshotTechnology."""
        await self._in_thread(_clone_all, [(self._image(source), self._target(draft, source)) for source in sources])

    def action(self, draft: Draft[Any], sources: Sequence[Volume]) -> Mapping[str, Any]:
        """See SnapshotTechnology."""
        pairs = [(self._image(source), self._target(draft, source)) for source in sources]
        return {"kind": "clone_files", "files": [{"source": str(a), "target": str(b)} for a, b in pairs]}

    async def member(self, volume: Volume, device: BlockDevice, mount: mountinfo.Mount | None) -> MountedVolume:
        """See SnapshotTechnology."""
        assert mount is not None, "nothing but a mounted volume is stopped here"
        status = await self._in_thread(self._image(volume).stat)
        return MountedVolume(volume, device, mount.point, (status.st_dev, status.st_ino))

    async def explain(self, volume: Volume) -> str:
        """See SnapshotTechnology."""
        # Counting waits for a clone that runs: of one that cannot be killed nothing is known, and nobody waits for it.
        counting = asyncio.ensure_future(self._in_thread(_extent_count, self._image(volume)))
        await asyncio.wait({counting}, timeout=_COUNT_SECONDS)
        known = counting.done() and not counting.exception()
        return f"has {counting.result() if known else 'an unknown number of'} extents"

    @staticmethod
    def _target(draft: Draft[Any], source: Volume) -> Path:
        place: ImageDraft = draft.place
        return place.images[source.id.hash]

    async def _unshare_thick(self, sources: Sequence[Volume]) -> None:
        """Give thick volumes of which a snapshot was taken blocks of their own again, so that overwriting them cannot fail.

        Outside the freeze, in steps between which writers go on. Raises OSError ENOSPC; if the snapshot fails, nothing is shared.
        """
        for source in sources:
            if source.thick:
                await self._in_thread(image_space.own_blocks, self._image(source), source.size)

    def _publish(self, draft: Draft[Target], moment: Moment) -> Target:
        path = draft.place.path
        images = [self._target(draft, source) for source in draft.sources]
        if isinstance(draft.target, Volume):
            with images[0].open("r+b") as file:
                image_space.take_size(file.fileno(), draft.target)
            self._layout.publish(path, dump_volume(draft.target), self._layout.volumes / draft.target.id.hash)
            return draft.target
        made = filled(draft, moment, [image_space.seal(image) for image in images])
        if isinstance(made, Snapshot):
            self._layout.publish(path, dump_snapshot(made), self._layout.snapshots / made.id.hash)
        else:
            self._layout.publish(path, dump_group(made), self._layout.groups / made.id.hash)
        return made


def _clone_all(clones: Sequence[tuple[Path, Path]]) -> None:
    for source_path, target_path in clones:
        with source_path.open("rb") as source, target_path.open("r+b") as target:
            files.reflink(source.fileno(), target.fileno())


def _extent_count(image: Path) -> int:
    with image.open("rb") as file:
        return extents.extent_count(file.fileno())

"""A pool for a node without a disk to spare: an image file with XFS in it. Made once, found again, never formatted twice."""

import os
import secrets

from csi_driver.backends.jobs import translate
from csi_driver.domain.errors import Precondition
from csi_driver.host.children import Children, JobFailed, JobStuck

_MAKE_SECONDS = 600.0
"""A full allocation is quick on most file systems, and a write of every byte on some."""
_MOUNT_SECONDS = 120.0
_CHECK_SECONDS = 15.0


async def prepare(
    children: Children, path: str, size: int, sparse: bool, point: str, in_container: bool = False
) -> None:
    """Have the image at `path` mounted at `point`; made first, with `size` bytes, where there is no such file.

    `in_container`: both must lie on mounts of the host. Raises Precondition: what lies there is not a pool's XFS, or
    damaged, or there is no room for it.
    """
    if not os.path.isdir(os.path.dirname(path)):
        raise Precondition(
            f"--pool-image {path}: its directory does not exist: create it, or mount the disk that holds it"
        )
    try:
        if in_container:
            await children.run("check_pool_place", _CHECK_SECONDS, path=path, point=point)
        if not os.path.lexists(path):
            await children.run(
                "make_pool_image", _MAKE_SECONDS, path=path, size=size, sparse=sparse, token=secrets.token_hex(8)
            )
        await children.run("mount_pool_image", _MOUNT_SECONDS, path=path, point=point)
    except JobFailed as error:
        raise Precondition(
            f"--pool-image {path} cannot be used ({translate(error)}): it was not formatted or changed"
        ) from error
    except JobStuck as error:
        raise Precondition(f"--pool-image {path} does not answer ({error}): look at the node's kernel log") from error

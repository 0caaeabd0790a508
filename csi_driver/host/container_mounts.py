"""Where a container may keep a pool: on mounts of its host. All else is lost with the container or the pod."""

import os

from csi_driver.host.fs import mountinfo

_LAYERS = ("overlay", "aufs", "fuse.fuse-overlayfs")
_MEMORY = ("tmpfs", "ramfs")
_EMPTY_DIR = "/volumes/kubernetes.io~empty-dir/"
"""In the path of every emptyDir below the kubelet's directory; the kubelet chose these words for good."""


def non_persistent_reason(path: str | os.PathLike[str]) -> str:
    """Return why data at `path` would be lost with this container or its pod, and what to do; empty if it would not.

    If `path` does not exist, its directory counts. Raises OSError.
    """
    mount = mountinfo.holding(_existing(path))
    if mount.fs_type in _LAYERS or mount.point == "/":
        cause = "is in the container's own layer, which is deleted with the container"
    elif mount.fs_type in _MEMORY:
        cause = "is in memory, which is lost with the pod or the node's power"
    elif _EMPTY_DIR in mount.root + "/":
        cause = "is in an emptyDir, which is deleted with the pod"
    else:
        return ""
    return f"{os.fspath(path)} {cause}; mount a directory of the host there (hostPath)"


def not_propagated_reason(path: str | os.PathLike[str]) -> str:
    """Return why no pod would see a mount at `path`, and what to do; empty if pods would see it. Raises OSError."""
    mount = mountinfo.holding(_existing(path))
    if mount.shared:
        return ""
    return (
        f"{os.fspath(path)} is in {mount.point}, which is not shared with the host, so pods do not see mounts there; "
        "mount that directory into this container with mountPropagation Bidirectional"
    )


def _existing(path: str | os.PathLike[str]) -> str:
    directory = os.path.abspath(path)
    while not os.path.lexists(directory):
        directory = os.path.dirname(directory)
    return directory

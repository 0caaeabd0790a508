"""What a container may keep a pool in: mounts of its host. Everything else goes with the container or the pod."""

import os

from csi_driver.host.fs import mountinfo

_LAYERS = ("overlay", "aufs", "fuse.fuse-overlayfs")
_MEMORY = ("tmpfs", "ramfs")
_EMPTY_DIR = "/volumes/kubernetes.io~empty-dir/"
"""In the path of every emptyDir below the kubelet's directory; the kubelet chose these words for good."""


def non_persistent_reason(path: str | os.PathLike[str]) -> str:
    """Why what is written at `path` would go with this container or its pod, and what to do; empty: it would not.

    `path` may be missing: then its directory counts. Raises OSError.
    """
    mount = mountinfo.holding(_existing(path))
    if mount.fs_type in _LAYERS or mount.point == "/":
        what = "lies in the container's own layer, which goes with the container"
    elif mount.fs_type in _MEMORY:
        what = "lies in memory, which goes with the pod or the node's power"
    elif _EMPTY_DIR in mount.root + "/":
        what = "is an emptyDir, which goes with the pod"
    else:
        return ""
    return f"{os.fspath(path)} {what}: mount a directory of the host there (hostPath)"


def not_propagated_reason(path: str | os.PathLike[str]) -> str:
    """Why what is mounted at `path` would be seen by no pod, and what to do; empty: it would be seen. Raises OSError."""
    mount = mountinfo.holding(_existing(path))
    if mount.shared:
        return ""
    return (
        f"{os.fspath(path)} lies in {mount.point}, which is not shared with the host: nobody else sees what is mounted "
        "there; mount that directory into this container with mountPropagation Bidirectional"
    )


def _existing(path: str | os.PathLike[str]) -> str:
    found = os.path.abspath(path)
    while not os.path.lexists(found):
        found = os.path.dirname(found)
    return found

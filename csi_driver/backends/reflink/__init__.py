"""The default pool: a directory on XFS, images that share blocks by reflink, loop devices to show them."""

from csi_driver.backends.reflink.backend import ReflinkBackend

__all__ = ["ReflinkBackend"]

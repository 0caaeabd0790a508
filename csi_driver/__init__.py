"""Tidemark: elastic disks, copy-on-write snapshots and rollback for Kubernetes."""

__version__ = "0.1.0"
DRIVER_NAME = "csi.tidemark.dev"

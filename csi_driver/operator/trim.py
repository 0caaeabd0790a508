"""Which metadata an informer's cache keeps of an object: the rest would be most of the memory."""

from csi_driver.kube.client import Object

_METADATA = ("name", "namespace", "uid", "resourceVersion")


def trim_metadata(obj: Object) -> Object:
    """Return what identifies an object and its version."""
    return {key: obj["metadata"][key] for key in _METADATA if key in obj["metadata"]}

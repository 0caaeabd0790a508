"""What of a request may be logged: which objects it is about, never what is in them.

Secrets are told by the protocol's own mark (csi_secret). Maps are left out as a whole, since class parameters, contexts
and labels may hold anything, and so are capabilities, whose mount flags may hold secrets by the specification.
"""

from functools import cache

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from csi_driver._pb import csi_pb2
from csi_driver.rpc.errors import printable

MAX_VALUE_BYTES = 256
MAX_LIST = 8

_ENTERED = frozenset(
    {
        "csi.v1.CapacityRange",
        "csi.v1.VolumeContentSource",
        "csi.v1.VolumeContentSource.SnapshotSource",
        "csi.v1.VolumeContentSource.VolumeSource",
    }
)
"""Messages that are looked into: they hold ids and sizes alone."""

_SCALARS = frozenset(
    {
        FieldDescriptor.TYPE_STRING,
        FieldDescriptor.TYPE_BOOL,
        FieldDescriptor.TYPE_INT32,
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_ENUM,
    }
)


@cache
def is_secret(field: FieldDescriptor) -> bool:
    """Whether the protocol marks the field as a secret."""
    return bool(field.GetOptions().Extensions[csi_pb2.csi_secret])


def describe(message: Message) -> dict[str, object]:
    """The loggable fields of a request: ids, names, paths, sizes and switches."""
    fields: dict[str, object] = {}
    for field, value in message.ListFields():
        if is_secret(field):
            continue
        if field.message_type is not None:
            if field.message_type.full_name in _ENTERED and not field.is_repeated:
                fields |= describe(value)
        elif field.type not in _SCALARS:
            continue
        elif field.is_repeated:
            fields[field.name] = [_plain(item) for item in value[:MAX_LIST]]
            if len(value) > MAX_LIST:
                fields[f"{field.name}_count"] = len(value)
        else:
            fields[field.name] = _plain(value)
    return fields


def _plain(value: object) -> object:
    return printable(value, MAX_VALUE_BYTES) if isinstance(value, str) else value

"""A volume's condition in the words of csi.v1: as 1.13 has them, and as clients that were built on 1.12 or older read them."""

from csi_driver._pb import csi_pb2
from csi_driver.domain.model import VolumeCondition

VOLUME_CONDITION = csi_pb2.NodeServiceCapability.RPC.FromString(b"\x08\x04").type
"""The number of a capability that 1.13 has taken out of use, and kubelets up to 1.36 look for."""

_CONDITION = 2
"""The field of NodeGetVolumeStatsResponse that was the volume's condition: {bool abnormal = 1; string message = 2}."""

_STATUS = {
    "ReadOnlyAfterError": csi_pb2.DEGRADED,
    "HasErrors": csi_pb2.DEGRADED,
    "ShutDown": csi_pb2.INACCESSIBLE,
    "Damaged": csi_pb2.INACCESSIBLE,
}
_LONGEST = 900
"""Bytes of a message: it is copied into events."""


def health(volume_id: str, condition: VolumeCondition | None) -> csi_pb2.VolumeHealth:
    """The health of a volume; without an entry it is well."""
    entries = []
    if condition is not None:
        entry = csi_pb2.VolumeHealth.VolumeHealthEntry
        entries.append(entry(status=_STATUS[condition.kind], reason=condition.kind, message=condition.text))
    return csi_pb2.VolumeHealth(volume_id=volume_id, health_statuses=entries)


def with_condition(
    answer: csi_pb2.NodeGetVolumeStatsResponse, condition: VolumeCondition | None
) -> csi_pb2.NodeGetVolumeStatsResponse:
    """The answer with the field that 1.13 has taken out of use: to whoever does not know it, it is not there.

    Written as bytes, since the messages are those of 1.13. Until 1.12 it had to be set wherever a condition is told at all.
    """
    text = (condition.text if condition is not None else "no trouble is known").encode()[:_LONGEST]
    message = b"\x08" + bytes([condition is not None]) + _bytes_field(2, text.decode(errors="ignore").encode())
    answer.MergeFromString(_bytes_field(_CONDITION, message))
    return answer


def _bytes_field(number: int, value: bytes) -> bytes:
    """A field of bytes, text or a message, as protobuf writes it."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])

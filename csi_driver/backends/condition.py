"""What is wrong with a mounted file system, by what the kernel says of it, and how a call is refused for it."""

from collections.abc import Collection

from csi_driver.domain.errors import Precondition
from csi_driver.domain.model import Volume, VolumeCondition
from csi_driver.host.fs import condition


def of_ext4(name: str, options: Collection[str]) -> VolumeCondition | None:
    """The condition of the ext4 mounted from the block device `name`, with mountinfo's options of the file system.

    Starts no process and does not wait.
    """
    count = condition.errors_of_ext4(name)
    if "shutdown" in options:
        return VolumeCondition("ShutDown", "its ext4 was shut down", stopped=True)
    if "emergency_ro" in options or (count and "ro" in options):
        return VolumeCondition("ReadOnlyAfterError", "its ext4 met an error and takes no more writes", stopped=True)
    if count:
        return VolumeCondition("HasErrors", f"its ext4 has met errors ({count} by its own count)", stopped=False)
    return None


def of_shut_down(fs_type: str) -> VolumeCondition:
    """The condition of a file system that refuses an open as one that was shut down."""
    return VolumeCondition("ShutDown", f"its {fs_type} shut itself down after an error", stopped=True)


def refusal(volume: Volume, condition: VolumeCondition, doing: str) -> Precondition:
    """Why `doing` is refused while a file system is in trouble, and the way out."""
    return Precondition(
        f"{doing} of {volume.id} is refused, since {condition.text}: end every pod on this node that uses it (scale its workload "
        "to 0) until it is unstaged; the next stage mends it. What is on it now can be kept by a snapshot before"
    )

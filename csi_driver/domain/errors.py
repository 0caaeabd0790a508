"""Why a request was refused. Each message says what was refused, why, and what to do next.

Nothing here knows gRPC: rpc/errors.py holds the one table from these classes to status codes.
"""

BEING_CHECKED = "is being checked before it is mounted"
"""In the message of a Busy that the same call, made again, will find ended sooner or later."""


class DriverError(Exception):
    """Base of every refusal that a caller is meant to read."""


class InvalidRequest(DriverError):
    """The request can never be served as it is: a field is missing, malformed or unsupported."""


class NotFound(DriverError):
    """The object does not exist in a pool that was looked into."""


class AlreadyExists(DriverError):
    """The name is taken by an object that was made by a different request."""


class Busy(DriverError):
    """Another operation on the same object is running: the same call may succeed later."""


class TooSlow(Busy):
    """What was begun was given up in order, or goes on elsewhere: nothing is broken, and nothing of it was needed before."""


class BadToken(DriverError):
    """A page token that this driver did not give out."""


class Precondition(DriverError):
    """The object is in a state that forbids the operation until somebody changes that state."""


class InUse(Precondition):
    """The volume is staged, published or held; the message names by whom."""


class NotMountable(Precondition):
    """The file system on the volume contradicts itself, and the kernel does not mount it."""


class OutOfSpace(DriverError):
    """The pool cannot hold it now; another topology, or the same one later, may."""


class OutOfRange(DriverError):
    """The size can never be served: too small, too large, or contradicting itself."""


class Unavailable(DriverError):
    """The owner or the pool is not served here now: nobody may say whether the object exists."""


class OtherVersion(Unavailable):
    """The agent is of a version that does not have the call: nothing was done, and it succeeds once both are of one version."""


class Unsupported(DriverError):
    """The operation exists in the protocol, but not for this pool."""


class Damaged(DriverError):
    """The pool contradicts itself: a record does not belong where it lies. Never served, never repaired silently."""

"""Answers of the Kubernetes API that a caller treats apart from those of domain.errors."""

from csi_driver.domain.errors import DriverError


class Conflict(DriverError):
    """The object was changed by somebody else since it was read: read it again, and decide again."""


class ResourceVersionExpired(DriverError):
    """The version to watch or to list from is older than what the API remembers: list again."""


class ApiRejected(DriverError):
    """The API will not have it: no right, a failed validation, a quota. `status` is the HTTP status.

    The same request is refused again until somebody changes something.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

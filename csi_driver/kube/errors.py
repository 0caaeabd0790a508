"""Errors of the Kubernetes API that callers handle separately from those of domain.errors."""

from csi_driver.domain.errors import DriverError


class Conflict(DriverError):
    """The object was changed since it was read: read it again, and plan again."""


class ResourceVersionExpired(DriverError):
    """The version to watch or to list from is older than the API's history: list again."""


class ApiRejected(DriverError):
    """The API rejected the request: no right, a failed validation, a quota. `status` is the HTTP status.

    The same request is rejected again until somebody changes something.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

"""The error that a maintainer reads."""


class ReleaseError(Exception):
    """A release cannot be made as asked; the message says why, and what to do."""

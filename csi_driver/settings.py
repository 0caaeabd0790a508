"""What the settings of the agent and of the controller share."""

DEFAULT_ENDPOINT = "unix:///run/tidemark/csi.sock"
"""Under /run: a socket that survived a reboot would point to nobody."""


class BadSetting(ValueError):
    """A setting cannot be meant as it is; the message says which one and what to write instead."""

"""What the settings of agent and controller share."""

DEFAULT_ENDPOINT = "unix:///run/tidemark/csi.sock"
"""Under /run: a socket that survived a reboot would have no server."""


class BadSetting(ValueError):
    """Invalid setting; the message names it and says what to use instead."""

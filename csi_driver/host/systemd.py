"""Tells systemd how the agent is: the protocol of sd_notify(3), one datagram to the socket that a unit names."""

import os
import socket
from collections.abc import Mapping

VARIABLE = "NOTIFY_SOCKET"
"""Set by systemd for a unit of Type=notify. A name that begins with `@` is in the abstract namespace."""


def notify(state: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send a state such as `READY=1`, and return whether somebody takes it. Does not wait, and raises nothing.

    systemd does not answer, and an agent must not fail or hang because of whoever started it.
    """
    name = environment.get(VARIABLE, "")
    if not name.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), socket.MSG_DONTWAIT, "\0" + name[1:] if name[0] == "@" else name)
        except OSError:
            return False
    return True

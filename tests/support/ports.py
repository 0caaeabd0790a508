"""Ports for programs that are to know theirs before they start."""

import os
import re
import socket

_FIRST, _EACH, _WORKERS = 20_000, 250, 40
"""Below what Linux gives to connections and to whoever asks for port 0 (from 32768), and below Kubernetes' node ports."""

_next = os.getpid() % _EACH
"""Where to look first: two runs at once, whose workers have the same names, seldom begin at the same place."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now, and that nobody else takes before it is used.

    A port that the kernel chose is free again once it is closed, and the next who asks may get it. So each worker of
    `pytest -n` has a range of its own, and goes round in it.
    """
    global _next
    number = re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or _WORKERS - 1
    first = _FIRST + int(number) % _WORKERS * _EACH
    for _ in range(_EACH):
        _next = (_next + 1) % _EACH
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", first + _next))
            except OSError:
                continue
            return first + _next
    raise AssertionError(f"no port is free from {first} to {first + _EACH - 1}")

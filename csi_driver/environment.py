"""What the environment may change of what a daemon does: its options, and nothing that was meant for others.

A pod gets variables that nobody meant for this driver: the proxy of the whole cluster, a debugging setting, an image's own.
Measured: with `https_proxy` a controller reached no agent, since gRPC sent its calls to the proxy; with `HTTPS_PROXY` and a
`NO_PROXY` of CIDRs, which Python does not know, each call to the Kubernetes API went there too.

Libraries read most of these when they are loaded, Python its own before anything of ours runs. So agent, controller and the
check that the chart makes before an uninstallation begin again without them. No channel and no session of ours reads a proxy from the environment in any case, the command line's
neither. Every variable has its line in docs/reference/environment.md.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

_PREFIXES = (
    "GRPC_",  # resolver, polling, ciphers, trust, tracing: read by gRPC's core
    "SSL",  # SSL_CERT_FILE and SSL_CERT_DIR replace the authorities, SSLKEYLOGFILE writes every session's keys to a file
    "OPENSSL_",  # another configuration, engines, modules
    "PYTHON",  # warnings as errors, -O, -i, another allocator, another time zone database
    "AIOHTTP_",
    "PROMETHEUS_",  # PROMETHEUS_MULTIPROC_DIR keeps the figures in files, and /metrics is empty
    "PROTOCOL_BUFFERS_",
    "LC_",
)
_NAMES = frozenset(("LANG", "LANGUAGE", "NETRC", "TZ", "TZDIR", "prometheus_multiproc_dir"))
_KEPT = frozenset(
    (
        "GRPC_TRACE",
        "GRPC_VERBOSITY",  # these two only say more
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONHOME",
        "PYTHONPATH",  # where the program itself lies
        "PYTHONSAFEPATH",
        "PYTHONUNBUFFERED",
    )
)
_UNICODE = frozenset(("C", "POSIX", "C.UTF-8", "C.utf8", "UTF-8"))
"""Locales with which Python's text is UTF-8 all the same; without any it sets LC_CTYPE to one of these by itself."""


def is_ambient(name: str, value: str = "") -> bool:
    """Whether a variable would change what a daemon does though it is no option of ours, nor of the system it runs on."""
    if name.startswith("TIDEMARK_") or name in _KEPT or (name.startswith(("LC_", "LANG")) and value in _UNICODE):
        return False
    return _is_proxy(name) or name in _NAMES or name.startswith(_PREFIXES)


def _is_proxy(name: str) -> bool:
    return name.lower().endswith("_proxy")


def without_ambient(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a daemon is to see."""
    return {name: value for name, value in environment.items() if not is_ambient(name, value)}


def begin_again(arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Replace this process by Python with these arguments, and with what `environment` has that is not ambient; the same pid."""
    # -P: the current directory is no place to load a daemon's modules from.
    os.execve(sys.executable, [sys.executable, "-P", *arguments], without_ambient(environment))  # noqa: S606


def forget(prefix: str) -> None:
    """Take the ambient variables with this prefix from this process, before a library that reads them is loaded."""
    for name in [name for name in os.environ if name.startswith(prefix) and is_ambient(name)]:
        del os.environ[name]


@contextmanager
def without_proxies() -> Iterator[None]:
    """Within, this process has no proxy in its environment: for a library that reads them whatever it is told.

    No other thread and no program that is started meanwhile sees them either, so it is for the one request alone.
    """
    hidden = {name: value for name, value in os.environ.items() if _is_proxy(name) and is_ambient(name)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)

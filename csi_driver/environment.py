"""Which variables of the environment a daemon sees: its own options, and none that were set for others.

A pod gets variables that are not for this driver: the proxy of the whole cluster, a debugging setting, an image's own.
Measured: with `https_proxy` a controller reached no agent, since gRPC sent its calls to the proxy; with `HTTPS_PROXY` and a
`NO_PROXY` of CIDRs, which Python does not know, each call to the Kubernetes API went there too.

Libraries read most of these when they are loaded, Python its own before any of this code runs. So the agent, the controller
and the chart's uninstall check restart themselves without them. No channel or session of this driver reads a proxy from the
environment, nor does the command line. docs/reference/environment.md lists every variable.
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
    "PROMETHEUS_",  # PROMETHEUS_MULTIPROC_DIR keeps the metrics in files, and /metrics is empty
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
        "PYTHONPATH",  # where the program itself is
        "PYTHONSAFEPATH",
        "PYTHONUNBUFFERED",
    )
)
_UNICODE = frozenset(("C", "POSIX", "C.UTF-8", "C.utf8", "UTF-8"))
"""Locales with which Python's text is UTF-8; without any, it sets LC_CTYPE to one of these itself."""


def is_ambient(name: str, value: str = "") -> bool:
    """Return whether a variable would change a daemon without being an option of it, or of the system it runs on."""
    if name.startswith("TIDEMARK_") or name in _KEPT or (name.startswith(("LC_", "LANG")) and value in _UNICODE):
        return False
    return _is_proxy(name) or name in _NAMES or name.startswith(_PREFIXES)


def _is_proxy(name: str) -> bool:
    return name.lower().endswith("_proxy")


def without_ambient(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a daemon may see."""
    return {name: value for name, value in environment.items() if not is_ambient(name, value)}


def restart_without_ambient(arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Replace this process by Python with these arguments and the variables that are not ambient; the pid stays."""
    # -P: a daemon must not load modules from the current directory.
    os.execve(sys.executable, [sys.executable, "-P", *arguments], without_ambient(environment))  # noqa: S606


def remove_ambient(prefix: str) -> None:
    """Remove the ambient variables with this prefix from this process, before a library that reads them is loaded."""
    for name in [name for name in os.environ if name.startswith(prefix) and is_ambient(name)]:
        del os.environ[name]


@contextmanager
def without_proxies() -> Iterator[None]:
    """Hide the proxies in the environment of this process, for a library that always reads them.

    Other threads, and programs that are started meanwhile, do not see them either: use it for one request only.
    """
    hidden = {name: value for name, value in os.environ.items() if _is_proxy(name) and is_ambient(name)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)

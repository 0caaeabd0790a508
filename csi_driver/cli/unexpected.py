"""What a person reads of an error that no command expects: one line, with what to do next. A traceback only on request."""

import os

VARIABLE = "TIDEMARK_TRACEBACK"
"""Set to anything: the traceback is printed as well."""

_CLUSTER = frozenset(("aiohttp", "cronsim", "cryptography", "kubernetes", "tzdata"))
"""Modules of the extra `controller`, which an agent and the commands for one machine do without."""


def explain(error: Exception, with_traceback: bool = False) -> str:
    """Return the line; of a fault with the traceback before it, if that is asked for here or by TIDEMARK_TRACEBACK."""
    line = _missing_module(error)
    if line:
        return line
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        line = f"{place}{error.strerror}"
        advice = f"{VARIABLE}=1 shows which step failed"
    else:
        line = f"this is a fault of tidemark: {type(error).__name__}: {' '.join(str(error).split())}"
        advice = f"run it again with {VARIABLE}=1, and report what that prints"
    if with_traceback or os.environ.get(VARIABLE):
        import traceback

        return "".join(traceback.format_exception(error)) + f"tidemark: {line}"
    return f"{line}: {advice}"


def missing(module: str) -> str:
    """Return what to do about a module of the extra `controller` that is not installed."""
    return (
        f"this command works in a cluster, and needs Python packages that are not installed here ({module}): install them "
        "with `pip install '.[controller]'` in Tidemark's source directory, by the pip of the environment that this "
        "command is in"
    )


def _missing_module(error: Exception) -> str:
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return missing(name) if name in _CLUSTER else ""

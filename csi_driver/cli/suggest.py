"""Did you mean: the names that are nearest to a mistyped one."""

from collections.abc import Iterable

from csi_driver.cli.failure import Failure
from csi_driver.cli.output.escape import in_a_sentence


def suggestion(text: str, candidates: Iterable[str]) -> str:
    """Return ` (did you mean db?)` with the nearest candidates, or an empty text if none is near."""
    from difflib import get_close_matches

    near = get_close_matches(text, list(candidates), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(map(in_a_sentence, dict.fromkeys(near)))}?)" if near else ""


def not_found(kind: str, text: str, names: Iterable[str]) -> Failure:
    """Return what to raise where nothing of a kind has this name: the nearest names, and the command that lists all."""
    return Failure(f"no {kind} is called {text!r}{suggestion(text, names)}: `tidemark {kind} list` lists them")

"""Text from names and labels, made safe for a terminal and for a shell."""

import shlex


def escape(text: str) -> str:
    r"""Return the text on one line: control, direction and other invisible characters are written as \x1b, \n, \u202e.

    A name may have been given through CSI by anybody, and a terminal obeys the sequences that it prints.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def in_a_sentence(text: str) -> str:
    """Return a name for a sentence: in quotes if it has spaces, so that its reader sees where it ends."""
    return f"'{text}'" if " " in text else text


def as_argument(text: str) -> str | None:
    """Return what to type in a shell for this text; None if it cannot be typed, or would be taken for an option."""
    if not text or not text.isprintable() or text.startswith("-"):
        return None
    return shlex.quote(text)

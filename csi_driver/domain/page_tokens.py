"""Tokens of lists: the last id given. They hold no state, so they outlive a restart and objects that come and go."""

from csi_driver.domain.errors import BadToken
from csi_driver.domain.ids import ObjectId, parse

_AFTER = "after="


def token_after(last: object) -> str:
    """The token of the page that begins after an id."""
    return f"{_AFTER}{last}"


def read_token(token: str) -> ObjectId:
    """The id that a token names. Raises BadToken for what this driver did not give out."""
    last = parse(token.removeprefix(_AFTER)) if token.startswith(_AFTER) else None
    if last is None:
        raise BadToken(f"page token {token!r} was not given out by this driver: start again without one")
    return last

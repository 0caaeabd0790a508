"""Pages of long lists. The token of a page names the last id before it, so pages stay right while objects come and go."""

from typing import TypeVar

from csi_driver.domain.model import Snapshot, Volume
from csi_driver.domain.page_tokens import read_token, token_after

Item = TypeVar("Item", Volume, Snapshot)


def page(items: list[Item], limit: int, token: str) -> tuple[list[Item], str]:
    """Return one page in the order of ids, and the token of the next page (empty at the end).

    `limit` 0 means no limit. Raises BadToken.
    """
    ordered = sorted(items, key=lambda item: str(item.id))
    if token:
        last = read_token(token)
        ordered = [item for item in ordered if str(item.id) > str(last)]
    if not limit or len(ordered) <= limit:
        return ordered, ""
    return ordered[:limit], token_after(ordered[limit - 1].id)

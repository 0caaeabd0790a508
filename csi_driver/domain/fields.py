"""One JSON object of a record: what is taken from it is known here, and what is left was written by another version.

That is kept with the object and written again, so that no driver takes away what a newer one noted. A key that came later
than the first records is read with `absent`, and means then what such a record meant.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

from csi_driver.domain.errors import Damaged

_Value = TypeVar("_Value")
_Choice = TypeVar("_Choice", bound=str)

_LIST: type[list[Any]] = list
_OBJECT: type[dict[str, Any]] = dict
_NAMES: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
_SHOWN = 60
"""Characters of a value in a message: it is there to be recognised."""


class Fields:
    """Takes keys by name and type; `what` is the object in words. Raises Damaged, naming both, for anything else.

    Without `absent` the key must be there.
    """

    def __init__(self, raw: Any, what: str) -> None:
        self._what = what
        if type(raw) is not dict:
            raise Damaged(f"{what} is {_shown(raw)}, where an object must stand")
        self._left: dict[str, Any] = dict(raw)

    @property
    def unknown(self) -> dict[str, Any]:
        """What was not taken, to be kept as it is."""
        return self._left

    def text(self, key: str, absent: str | None = None) -> str:
        """A text."""
        return self._take(key, str, absent)

    def number(self, key: str, absent: int | None = None) -> int:
        """A whole number."""
        return self._take(key, int, absent)

    def flag(self, key: str, absent: bool | None = None) -> bool:
        """True or false."""
        return self._take(key, bool, absent)

    def one_of(self, key: str, choices: Iterable[_Choice]) -> _Choice:
        """One of these texts; a version that writes another one raises the schema for it."""
        found, known = self.text(key), list(choices)
        for choice in known:
            if choice == found:
                return choice
        raise Damaged(f"{self._what}: {key} is {_shown(found)}, and this driver knows {', '.join(known)}")

    def texts(self, key: str, absent: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of texts."""
        found = self._take(key, _LIST, None if absent is None else list(absent))
        return tuple(self._checked(f"an entry of {key}", entry, str) for entry in found)

    def table(self, key: str, absent: dict[str, str] | None = None) -> dict[str, str]:
        """An object whose values are texts; its keys are the user's, so all of them are known."""
        found = self._take(key, _OBJECT, None if absent is None else dict(absent))
        return {name: self._checked(f"{key}.{name}", value, str) for name, value in found.items()}

    def part(self, key: str) -> "Fields":
        """An object inside this one."""
        return Fields(self._take(key, _OBJECT, None), f"{self._what}, {key}")

    def part_or_none(self, key: str, *, may_lack: bool = False) -> "Fields | None":
        """An object inside this one, or None where null stands, or where the key may lack and does."""
        if key in self._left and self._left[key] is None:
            del self._left[key]
            return None
        return None if may_lack and key not in self._left else self.part(key)

    def parts(self, key: str, *, may_lack: bool = False) -> list["Fields"]:
        """Objects in a list; none where the key may lack and does."""
        found = self._take(key, _LIST, [] if may_lack else None)
        return [Fields(entry, f"{self._what}, {key}") for entry in found]

    def _take(self, key: str, kind: type[_Value], absent: _Value | None) -> _Value:
        if key not in self._left:
            if absent is None:
                raise Damaged(f"{self._what}: {key} is missing")
            return absent
        return self._checked(key, self._left.pop(key), kind)

    def _checked(self, key: str, value: Any, kind: type[_Value]) -> _Value:
        # Exactly of that type: to isinstance, true is a number.
        if type(value) is not kind:
            raise Damaged(f"{self._what}: {key} is {_shown(value)}, where {_NAMES[kind]} must stand")
        found: _Value = value
        return found


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."

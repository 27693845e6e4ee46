"""JSON as artifacts hold it: one way to write a value, and reading that believes nothing."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any, NoReturn, TypeVar

__all__ = ["JsonError", "ObjectReader", "canonical_json", "parse_json", "shortened"]

_MAX_ITEMS = 100_000  #: of a list
_T = TypeVar("_T")


class JsonError(ValueError):
    """A JSON text or a field of it is not what it must be; the message names the place."""


def canonical_json(value: Any) -> bytes:
    """The one way `value` is written: keys sorted, UTF-8, no NaN, a newline at the end.

    >>> print(canonical_json({"b": 1, "a": None}).decode())
    {
     "a": null,
     "b": 1
    }
    <BLANKLINE>
    """
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def parse_json(data: bytes) -> Any:
    """Value of a JSON text.

    Raises:
        JsonError: it is none, nests too deep, holds NaN or an infinity, or a key twice.
    """

    def constant(name: str) -> NoReturn:
        raise JsonError(f"`{name}` is no number")

    def number(text: str) -> float:
        value = float(text)
        if not isfinite(value):
            raise JsonError(f"`{text}` is out of range")
        return value

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise JsonError(f"the key `{shortened(twice)}` stands twice in one object")
        return found

    try:
        text = data.decode()
        value = json.loads(
            text, parse_constant=constant, parse_float=number, object_pairs_hook=pairs
        )
        if "\\u" in text:  # half a surrogate pair: a string that cannot be written
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except JsonError:
        raise
    except RecursionError:
        raise JsonError("it nests too deep") from None
    except ValueError as error:
        raise JsonError(f"it is no JSON: {error}") from None


def shortened(value: Any) -> str:
    """A value for a message: at most 60 characters of it, and none that a terminal would obey.

    >>> shortened("a" * 100) == "a" * 57 + "..."
    True
    """
    text = value if isinstance(value, str) else json.dumps(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _is_finite(value: Any) -> bool:
    """Whether a value is a number, and a whole one not beyond all floats."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


class ObjectReader:
    """One JSON object, read field by field; each method takes one and raises if it is not as told.

    Raises:
        JsonError: naming the place, in every method.
    """

    def __init__(self, value: Any, where: str) -> None:
        """`where` is the path of the object in the text, empty at the top."""
        if not isinstance(value, dict):
            raise JsonError(f"`{where}` is no object" if where else "it is no object")
        self.where, self._left = where, dict(value)

    def path(self, key: str) -> str:
        """Where a field stands, for messages."""
        return f"{self.where}.{key}" if self.where else key

    def fail(self, key: str, expected: str) -> NoReturn:
        """Say that a field is not what it must be."""
        raise JsonError(f"`{self.path(key)}` must be {expected}")

    def __contains__(self, key: str) -> bool:
        """Whether a field is there and has not been read."""
        return key in self._left

    def take(self, key: str) -> Any:
        """A field of any type."""
        if key not in self._left:
            raise JsonError(f"`{self.path(key)}` is missing")
        return self._left.pop(key)

    def text(self, key: str, pattern: re.Pattern[str] | None = None, most: int = 10_000) -> str:
        """A string that matches `pattern` as a whole, of at most `most` characters."""
        value = self.take(key)
        if not isinstance(value, str) or len(value) > most:
            self.fail(key, f"a string of at most {most} characters")
        if pattern and not pattern.fullmatch(value):
            self.fail(key, f"a string that matches {pattern.pattern}")
        return value

    def whole(self, key: str, most: int, least: int = 0) -> int:
        """A whole number in a range."""
        value = self.take(key)
        # bool is a subclass of int, and JSON's true is no count.
        if type(value) is not int or not least <= value <= most:
            self.fail(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value = self.take(key)
        if not _is_finite(value):
            self.fail(key, "a number")
        return float(value)

    def maybe(self, key: str, read: Callable[[str], _T]) -> _T | None:
        """None where the field is null, otherwise what `read` makes of it."""
        if key in self._left and self._left[key] is None:
            self._left.pop(key)
            return None
        return read(key)

    def object(self, key: str) -> ObjectReader:
        """An object, to be read in turn."""
        return ObjectReader(self.take(key), self.path(key))

    def mapping(self, key: str) -> dict[str, Any]:
        """An object whose fields are not known beforehand."""
        value = self.take(key)
        if not isinstance(value, dict):
            self.fail(key, "an object")
        return value

    def items(self, key: str, most: int = _MAX_ITEMS) -> list[Any]:
        """A list of at most `most` items."""
        value = self.take(key)
        if not isinstance(value, list) or len(value) > most:
            self.fail(key, f"a list of at most {most} items")
        return value

    def objects(self, key: str, most: int = _MAX_ITEMS) -> Iterator[ObjectReader]:
        """A list of objects, to be read in turn."""
        for index, value in enumerate(self.items(key, most)):
            yield ObjectReader(value, f"{self.path(key)}[{index}]")

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        found = self.items(key)
        if not all(isinstance(value, str) and len(value) <= 10_000 for value in found):
            self.fail(key, "a list of strings")
        return tuple(found)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        found = self.items(key)
        if not all(map(_is_finite, found)):
            self.fail(key, "a list of numbers")
        return tuple(map(float, found))

    def done(self) -> None:
        """Nothing but the fields taken may be there."""
        if self._left:
            raise JsonError(f"`{self.path(min(self._left))}` is no field of this format")

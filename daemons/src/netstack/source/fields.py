"""Reading an object field by field: every refusal names the object, the field's path and the reason.

reader = Fields(ref, data, "spec")
port = reader.integer("port", low=1, high=65535)
reader.close(ignore={"externalName"})        # anything not read and not ignored is an unknown field
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from netstack.core.address import Prefix, pack
from netstack.core.errors import BadObject
from netstack.core.ref import Ref

T = TypeVar("T")


class Fields:
    """One mapping of an object, and which of its fields were read."""

    def __init__(self, ref: Ref, data: Any, path: str) -> None:
        self.ref = ref
        self.path = path
        self._read: set[str] = set()
        if data is None:
            data = {}
        if not isinstance(data, Mapping):
            raise BadObject(ref, path, f"must be a mapping, not {_show(data)}")
        self.data: Mapping[str, Any] = data

    def __contains__(self, name: str) -> bool:
        """Whether the field is present and not null."""
        return self.data.get(name) is not None

    def fail(self, name: str, reason: str) -> NoReturn:
        raise BadObject(self.ref, self.at(name), reason)

    def at(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def raw(self, name: str) -> Any:
        self._read.add(name)
        return self.data.get(name)

    def string(self, name: str, default: str | None = None, *, choices: tuple[str, ...] = ()) -> str:
        """A string; required unless there is a default."""
        value = self._typed(name, str, "a string", default)
        if choices and value not in choices:
            self.fail(name, f"must be one of {', '.join(choices)}, not {value!r}")
        return str(value)

    def integer(self, name: str, default: int | None = None, *, low: int, high: int) -> int:
        value = self._typed(name, int, "a whole number", default)
        if not low <= value <= high:
            self.fail(name, f"must be from {low} to {high}, not {value}")
        return int(value)

    def boolean(self, name: str, default: bool) -> bool:
        return bool(self._typed(name, bool, "true or false", default))

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty when absent."""
        return tuple(self._each(name, str, "a string"))

    def mapping(self, name: str) -> dict[str, str]:
        """A mapping of strings (labels, annotations); empty when absent."""
        value = self.raw(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.fail(name, f"must be a mapping, not {_show(value)}")
        for key, item in value.items():
            if not isinstance(key, str) or not isinstance(item, str):
                self.fail(f"{name}.{key}", f"must be a string, not {_show(item)}")
        return dict(value)

    def child(self, name: str) -> Fields:
        """A nested mapping; an empty one when absent."""
        return Fields(self.ref, self.raw(name), self.at(name))

    def children(self, name: str) -> Iterator[Fields]:
        """Each mapping of a list of mappings; none when absent. One that says nothing (a dash and no more) is not an
        empty one, which as a peer would be everybody."""
        for index, item in enumerate(self._list(name)):
            if item is None:
                self.fail(f"{name}[{index}]", "must be a mapping, not nothing")
            yield Fields(self.ref, item, f"{self.at(name)}[{index}]")

    def address(self, name: str) -> bytes:
        return self._parsed(name, self.string(name), pack)

    def addresses(self, name: str) -> tuple[bytes, ...]:
        """A list of addresses; empty when absent."""
        return tuple(self._parsed(f"{name}[{i}]", text, pack) for i, text in enumerate(self.strings(name)))

    def prefix(self, name: str) -> Prefix:
        return self._parsed(name, self.string(name), Prefix.parse)

    def prefixes(self, name: str) -> tuple[Prefix, ...]:
        """A list of prefixes; empty when absent."""
        return tuple(self._parsed(f"{name}[{i}]", text, Prefix.parse) for i, text in enumerate(self.strings(name)))

    def close(self, *, ignore: frozenset[str] = frozenset()) -> None:
        """Refuse what was neither read nor is known to be of no concern here."""
        for name in self.data:
            if name not in self._read and name not in ignore:
                self.fail(str(name), "unknown field")

    def _typed(self, name: str, kind: type, words: str, default: Any) -> Any:
        value = self.raw(name)
        if value is None:
            if default is None:
                self.fail(name, "is required")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.fail(name, f"must be {words}, not {_show(value)}")
        return value

    def _parsed(self, name: str, text: str, parse: Callable[[str], T]) -> T:
        try:
            return parse(text)
        except ValueError as error:
            self.fail(name, str(error))

    def _list(self, name: str) -> list[Any]:
        value = self.raw(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self.fail(name, f"must be a list, not {_show(value)}")
        return value

    def _each(self, name: str, kind: type, words: str) -> Iterator[Any]:
        for index, item in enumerate(self._list(name)):
            if not isinstance(item, kind):
                self.fail(f"{name}[{index}]", f"must be {words}, not {_show(item)}")
            yield item


def _show(value: object) -> str:
    return "nothing" if value is None else f"the {type(value).__name__} {str(value)[:60]!r}"

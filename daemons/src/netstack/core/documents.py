"""YAML text -> documents, as the API server takes them: a date is text; a key that a mapping has twice is refused, for
of the first nobody would hear again; and so is what JSON cannot hold. All functions raise yaml.YAMLError with the
reason and, where it is one place, its line."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"


def load(text: str) -> Any:
    """The only document; None if the text has none."""
    return _held_by_json(yaml.load(text, Loader=_Loader))  # noqa: S506 - a safe loader


def load_all(text: str) -> list[Any]:
    """Every document that is not empty."""
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            return [_load_json(text)]
    return [_held_by_json(document) for document in yaml.load_all(text, Loader=_Loader) if document is not None]


def _load_json(text: str) -> Any:
    """JSON, which is read a hundred times as fast as other YAML; and which has two escapes for one character beyond the
    first 65,536, of which YAML knows nothing. ValueError if it is no JSON, or means something only as YAML."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands twice")
        return found

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    found = json.loads(text, object_pairs_hook=unique, parse_constant=no_number)
    if "\\u" in text:
        json.dumps(found, ensure_ascii=False).encode()  # fails for half a character
    return found


def _held_by_json(document: Any) -> Any:
    """Not so are bytes, sets, keys that are no text or number, what contains itself, and what is no number."""
    try:
        json.dumps(document, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise yaml.constructor.ConstructorError(None, None, f"a document that JSON cannot hold: {error}") from error
    return document


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # without libyaml: slower
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Called for every mapping; more than once for those that are merged into others, whose keys may then recur."""
        if not hasattr(node, "flat"):
            node.flat = True  # type: ignore[attr-defined]
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE):
                if key.value in seen:
                    said = f"the key {key.value!r} stands in one mapping twice"
                    raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
                seen.add(key.value)
        super().flatten_mapping(node)


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_scalar)


def same_text(one: Any, other: Any) -> bool:
    """Whether two documents say the same to every reader. `==` would take 1 for true and 8.0 for 8."""
    return one is other or repr(one) == repr(other)

"""Strict settings: a YAML file becomes a frozen dataclass, or a BadConfig that names the field.

Supported field types: bool, int, float, str, T | None, list[T] / tuple[T, ...], dict[str, T], nested dataclasses.
Nothing is coerced but int -> float: `"yes"` is no boolean and `1` is no string.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from netstack.core import documents
from netstack.core.errors import BadConfig

T = TypeVar("T")


def load(cls: type[T], path: Path | str) -> T:
    """Read `path` into `cls`. BadConfig names the field, or the line where the YAML breaks; OSError passes."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        data = documents.load(text)
    except yaml.YAMLError as error:
        raise BadConfig(str(path), f"is not YAML: {' '.join(str(error).split())}") from error
    return parse(cls, {} if data is None else data)


def parse(cls: type[T], data: object, field: str = "") -> T:
    """`data` (plain YAML values) as an instance of the dataclass `cls`."""
    if not isinstance(data, Mapping):
        raise BadConfig(field or "(file)", f"must be a mapping, not {_name(data)}")
    hints = get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise BadConfig(_join(field, str(key)), f"unknown field; known are {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    for name, spec in known.items():
        if name in data:
            values[name] = _value(hints[name], data[name], _join(field, name))
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise BadConfig(_join(field, name), "is required")
    try:
        return cls(**values)
    except ValueError as error:  # a dataclass checks its own ranges in __post_init__
        raise BadConfig(field or "(file)", str(error)) from error


def checked(field: str, text: str, read: Callable[[str], object]) -> None:
    """For a `__post_init__`: ValueError that names the field if `read` refuses its text."""
    try:
        read(text)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def _value(hint: Any, value: object, field: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (inner,) = [arg for arg in args if arg is not type(None)]
        return _value(inner, value, field)
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise BadConfig(field, f"must be a list, not {_name(value)}")
        return origin(_value(args[0], item, f"{field}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise BadConfig(field, f"must be a mapping, not {_name(value)}")
        return {str(key): _value(args[1], item, _join(field, str(key))) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return parse(typing.cast(type, hint), value, field)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise BadConfig(field, f"must be a {hint.__name__}, not {_name(value)}")
    return value


def _join(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name


def _name(value: object) -> str:
    return "nothing" if value is None else f"the {type(value).__name__} {value!r}"

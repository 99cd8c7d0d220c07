"""All objects at one moment, by kind: what a compiler works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast

from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.source.models import Object

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Broken:
    """An object, or a whole file, that could not be taken. `kept`: an earlier good version stays in force."""

    file: str
    error: BadObject
    kept: bool

    def __str__(self) -> str:
        return f"{self.file}: {self.error} ({'the last good version stays in force' if self.kept else 'not in force'})"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Immutable. `broken` explains every object that is not as its author wrote it last."""

    objects: Mapping[Ref, Object] = field(default_factory=dict)
    broken: tuple[Broken, ...] = ()
    _of_model: dict[type, tuple[Object, ...]] = field(init=False, default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        found: dict[type, list[Object]] = {}
        for ref in sorted(self.objects):
            found.setdefault(type(self.objects[ref]), []).append(self.objects[ref])
        self._of_model.update((model, tuple(objects)) for model, objects in found.items())

    def all(self, model: type[M]) -> tuple[M, ...]:
        """Every object of one model, in the order of their names."""
        return cast("tuple[M, ...]", self._of_model.get(model, ()))

    def get(self, model: type[M], kind: str, namespace: str, name: str) -> M | None:
        obj = self.objects.get(Ref(kind, namespace, name))
        return obj if isinstance(obj, model) else None

"""All objects at one moment, by kind: what a compiler works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.source.models import Object

M = TypeVar("M")


def _name(item: tuple[Ref, object]) -> tuple[str, str, str]:
    """The order of references, many times faster than by comparing these."""
    ref = item[0]
    return ref.kind, ref.namespace, ref.name


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

    def all(self, model: type[M]) -> tuple[M, ...]:
        """Every object of one model, in the order of their names."""
        found = ((ref, obj) for ref, obj in self.objects.items() if isinstance(obj, model))
        return tuple(obj for _, obj in sorted(found, key=_name))

    def get(self, model: type[M], kind: str, namespace: str, name: str) -> M | None:
        obj = self.objects.get(Ref(kind, namespace, name))
        return obj if isinstance(obj, model) else None

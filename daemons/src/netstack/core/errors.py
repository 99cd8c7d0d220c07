"""The errors that name their author's mistake. What is wrong with the world keeps its own exception type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from netstack.core.ref import Ref

SHOWN = (600, 200)
"""Characters of a field or a reason that are shown from its beginning and up to its end: an object may hold a megabyte,
and what is said of it goes to logs, statuses and Events."""


class BadObject(Exception):
    """An object is wrong. Its last good version stays in force; the text is shown where its author looks."""

    def __init__(self, ref: Ref, field: str, reason: str) -> None:
        field, reason = _shortened(field), _shortened(reason)
        super().__init__(f"{ref}: {field}: {reason}")
        self.ref = ref
        self.field = field
        self.reason = reason

    def __eq__(self, other: object) -> bool:
        """The same complaint about the same object, so that what is said once need not be said again."""
        return isinstance(other, BadObject) and self.args == other.args

    def __hash__(self) -> int:
        return hash(self.args)


def _shortened(text: str) -> str:
    first, last = SHOWN
    return text if len(text) <= first + last else f"{text[:first]} ... {text[-last:]}"


@contextmanager
def refused(ref: Ref) -> Iterator[None]:
    """A reader that meets what nobody thought of refuses the object: whoever may write one must not stop the daemon."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise BadObject(ref, "(content)", f"cannot be read: {type(error).__name__}: {error}") from error


class BadConfig(Exception):
    """A daemon's configuration file is wrong at one field."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason

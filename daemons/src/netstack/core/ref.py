"""Names of objects and of the rules in them: every decision can be traced back to one."""

from __future__ import annotations

from typing import NamedTuple


class Ref(NamedTuple):
    """A Kubernetes object by kind, namespace ("" if cluster-scoped) and name.

    A tuple, because every table of objects has it for a key: it hashes and sorts three times as fast as a dataclass.
    """

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"

    @property
    def key(self) -> str:
        """`namespace/name`, or the bare name of a cluster-scoped object."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class RuleRef(NamedTuple):
    """One rule of an object by its field path, such as `spec.egress[0]`."""

    ref: Ref
    field: str

    def __str__(self) -> str:
        return f"{self.ref}: {self.field}"

"""Label selectors (meta/v1 LabelSelector): matchLabels and matchExpressions, all of which must hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from netstack.source.fields import Fields

OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


@dataclass(frozen=True, slots=True, order=True)
class Requirement:
    """One condition on one label key."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":  # a missing key satisfies NotIn, as in Kubernetes
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case _:
                return self.key not in labels


@dataclass(frozen=True, slots=True, order=True)
class LabelSelector:
    """No requirement selects everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.holds(labels) for requirement in self.requirements)

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> LabelSelector:
        """The selector that demands exactly these labels (Service.spec.selector)."""
        return cls(tuple(Requirement(key, "In", (value,)) for key, value in sorted(labels.items())))

    @classmethod
    def parse(cls, fields: Fields) -> LabelSelector:
        """From `{matchLabels, matchExpressions}`; BadObject names what is wrong."""
        requirements = list(cls.of(fields.mapping("matchLabels")).requirements)
        for expression in fields.children("matchExpressions"):
            operator = expression.string("operator", choices=OPERATORS)
            values = expression.strings("values")
            if (operator in ("In", "NotIn")) != bool(values):
                expression.fail("values", f"must {'not ' if values else ''}be given with operator {operator}")
            requirements.append(Requirement(expression.string("key"), operator, tuple(sorted(values))))
            expression.close()
        fields.close()
        return cls(tuple(sorted(requirements)))

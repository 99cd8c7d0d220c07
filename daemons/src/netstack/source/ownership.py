"""Which fields of which status are whose, and what has to change for them to say what is wanted. Pure.

Every (kind, field) and every condition type has one daemon that writes it; all nodes' daemons want the same text,
because they compute it from the same objects. So nothing is contested: a field of another owner is never in a patch,
and a condition that says what it should keeps the time at which somebody first wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Owned:
    """The top-level fields and the condition types of a kind's status that are ours."""

    fields: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()


OWNED = {
    "Service": Owned(("loadBalancer",), ("Allocated", "Announced")),
    "Ingress": Owned(("loadBalancer",)),  # networking.k8s.io/v1 has no conditions there
    "CiliumNetworkPolicy": Owned(conditions=("Valid",)),
    "CiliumClusterwideNetworkPolicy": Owned(conditions=("Valid",)),
    "IPAddressPool": Owned(("assignedIPv4", "assignedIPv6", "availableIPv4", "availableIPv6"), ("Valid",)),
    "ServiceL2Status": Owned(("node", "serviceName", "serviceNamespace", "interfaces")),
}
"""A kind that is not here (NetworkPolicy) has no status in the API; `netstack status` shows it."""


def patch(kind: str, current: Status, wanted: Status) -> dict[str, Any]:
    """The merge patch (RFC 7386) that makes `current` say what is wanted; {} if it does already."""
    owned = OWNED[kind]
    changes: dict[str, Any] = {
        name: wanted.get(name) for name in owned.fields if essence(current.get(name)) != essence(wanted.get(name))
    }
    if owned.conditions:
        had = list(current.get("conditions") or ())
        foreign = [item for item in had if item.get("type") not in owned.conditions]
        mine = [_settled(item, had) for item in wanted.get("conditions") or () if item["type"] in owned.conditions]
        if _by_type([*foreign, *mine]) != _by_type(had):
            changes["conditions"] = [*foreign, *mine] or None
    return changes


def ours(kind: str, current: Status) -> bool:
    """Whether a status bears a condition of ours."""
    return any(item.get("type") in OWNED[kind].conditions for item in current.get("conditions") or ())


def essence(value: Any) -> Any:
    """The value without what is empty, which the API server may drop, keep or add as it likes."""
    if isinstance(value, Mapping):
        kept = {name: inner for name, item in value.items() if (inner := essence(item)) is not None}
        return kept or None
    if isinstance(value, list | tuple):
        return [essence(item) for item in value] or None
    return value if value not in ("", None) else None


def _settled(wanted: Status, had: Iterable[Status]) -> Status:
    """A condition, with the time of its present form if it says the same."""
    for item in had:
        if item.get("type") == wanted["type"] and _said(item) == _said(wanted) and item.get("lastTransitionTime"):
            return {**wanted, "lastTransitionTime": item["lastTransitionTime"]}
    return wanted


def _said(condition: Status) -> dict[str, Any]:
    return {name: condition.get(name) or "" for name in ("type", "status", "reason", "message")}


def _by_type(conditions: Iterable[Status]) -> dict[str, Any]:
    return {item.get("type", ""): _said(item) | {"at": item.get("lastTransitionTime")} for item in conditions}

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.source.events import Budget, Fault, again, event, faults, refusal

NOW = datetime(2026, 1, 1, 12, 0, 0, 250, tzinfo=UTC)
POLICY = Ref("NetworkPolicy", "home", "deny")
FAULT = Fault(POLICY, "Valid", "Refused", "spec.egress[0].ports[0].port: no such port")


def condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def told(fault: Fault = FAULT, uid: str = "u1", node: str = "n1") -> dict[str, Any]:
    return event(fault, uid, node, NOW)


def test_conditions_that_are_false_are_faults() -> None:
    status = {"conditions": [condition("Valid", "False", "Refused", FAULT.message), condition("Announced", "True")]}
    assert faults(POLICY, status) == (FAULT,)
    assert faults(POLICY, {}) == faults(POLICY, {"conditions": None}) == ()
    assert faults(POLICY, {"conditions": [condition("Valid", "False")]})[0].reason == "Valid"


def test_what_is_in_force_but_not_on_every_pod_is_a_fault() -> None:
    status = {"conditions": [condition("Valid", "True", "NotEnforced", "not on pods a/b"), condition("Valid", "True")]}
    assert [(fault.reason, fault.message) for fault in faults(POLICY, status)] == [("NotEnforced", "not on pods a/b")]


def test_what_cannot_be_taken_is_a_fault_with_its_field() -> None:
    fault = refusal(BadObject(POLICY, "spec.egress[0]", "is no list"))
    assert (fault.condition, fault.reason) == (FAULT.condition, FAULT.reason)
    assert fault.message == "NetworkPolicy home/deny: spec.egress[0]: is no list"


def test_an_event_names_its_object_so_that_describe_finds_it() -> None:
    made = told()
    assert made["regarding"] == {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": "home", "name": "deny", "uid": "u1",
    }  # fmt: skip
    assert (made["type"], made["reason"], made["action"], made["note"]) == (
        "Warning", "Refused", "Valid", FAULT.message,
    )  # fmt: skip
    assert made["metadata"]["namespace"] == "home" and made["metadata"]["name"].startswith("deny.")
    assert made["eventTime"] == "2026-01-01T12:00:00.000250Z"


def test_events_of_what_has_no_namespace_are_in_default() -> None:
    made = told(replace(FAULT, ref=Ref("CiliumClusterwideNetworkPolicy", "", "all")))
    assert made["metadata"]["namespace"] == "default" and "namespace" not in made["regarding"]


def test_every_node_gives_an_event_the_same_name_and_every_fault_another() -> None:
    name = told()["metadata"]["name"]
    assert told(node="n2")["metadata"]["name"] == name
    others = [told(uid="u2"), told(replace(FAULT, message="else")), told(replace(FAULT, reason="Else"))]
    assert name not in [other["metadata"]["name"] for other in others]


def test_long_names_and_notes_are_cut() -> None:
    made = told(replace(FAULT, ref=Ref("NetworkPolicy", "home", "a" * 199 + "." + "b" * 53), message="\u00e4" * 600))
    assert len(made["metadata"]["name"]) <= 253 and ".." not in made["metadata"]["name"]
    assert len(made["note"].encode()) == 1024


def test_what_lasts_is_one_more_of_a_series_after_a_while() -> None:
    held = told() | {"metadata": {"resourceVersion": "7"}}
    assert again(held, NOW + timedelta(minutes=14)) is None
    first = again(held, NOW + timedelta(minutes=30))
    assert first == {
        "metadata": {"resourceVersion": "7"}, "series": {"count": 2, "lastObservedTime": "2026-01-01T12:30:00.000250Z"},
    }  # fmt: skip
    assert again(held | first, NOW + timedelta(minutes=44)) is None
    second = again(held | first, NOW + timedelta(minutes=60))
    assert second is not None and second["series"]["count"] == 3


def test_a_budget_allows_a_burst_and_then_one_at_a_time() -> None:
    budget = Budget(burst=3, every_s=10, left=3, at=100.0)
    assert [budget.take(100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 10.0]
    assert budget.take(104.0) == 6.0 and budget.take(110.0) == 0.0
    assert [budget.take(1000.0) for _ in range(4)] == [0.0, 0.0, 0.0, 10.0]

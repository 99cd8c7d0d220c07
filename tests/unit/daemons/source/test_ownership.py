from typing import Any

from netstack.source.ownership import essence, ours, patch


def condition(kind: str, status: str, at: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": kind, "message": message, "lastTransitionTime": at}


def test_nothing_is_patched_when_only_the_time_differs() -> None:
    current = {"loadBalancer": {"ingress": [{"ip": "10.0.0.5"}]}, "conditions": [condition("Allocated", "True", "1")]}
    wanted = {"loadBalancer": {"ingress": [{"ip": "10.0.0.5"}]}, "conditions": [condition("Allocated", "True", "2")]}
    assert patch("Service", current, wanted) == {}


def test_conditions_of_others_stay_and_a_true_one_keeps_its_time() -> None:
    current = {"conditions": [condition("Theirs", "True", "0"), condition("Allocated", "True", "1")]}
    wanted = {"conditions": [condition("Allocated", "True", "2"), condition("Announced", "False", "2")]}
    assert patch("Service", current, wanted) == {
        "conditions": [
            condition("Theirs", "True", "0"),
            condition("Allocated", "True", "1"),
            condition("Announced", "False", "2"),
        ]
    }


def test_what_is_no_longer_wanted_goes_and_what_is_empty_is_nothing() -> None:
    current = {"loadBalancer": {"ingress": [{"ip": "10.0.0.5"}]}, "conditions": [condition("Allocated", "True", "1")]}
    assert patch("Service", current, {}) == {"loadBalancer": None, "conditions": None}
    assert patch("Service", {"loadBalancer": {}}, {"loadBalancer": {"ingress": []}}) == {}
    assert patch("IPAddressPool", {}, {"assignedIPv4": 0}) == {"assignedIPv4": 0}
    assert essence({"a": [], "b": {"c": ""}}) is None


def test_fields_and_conditions_that_are_not_ours_are_never_in_a_patch() -> None:
    wanted = {"loadBalancer": {"ingress": [{"ip": "10.0.0.5"}]}, "conditions": [condition("Accepted", "True", "1")]}
    assert patch("Ingress", {"other": 1}, wanted) == {"loadBalancer": {"ingress": [{"ip": "10.0.0.5"}]}}


def test_an_earlier_process_is_known_by_its_conditions() -> None:
    assert ours("Service", {"conditions": [condition("Allocated", "True", "1")]})
    assert not ours("Service", {"conditions": [condition("Theirs", "True", "1")]})
    assert not ours("Ingress", {"loadBalancer": {}})

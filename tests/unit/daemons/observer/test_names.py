"""Numbers keep their names when what they stood for is gone."""

from __future__ import annotations

from typing import Any

import pytest

from netstack.kernel import layout
from netstack.observer.names import DNS_LIFE_S, REMEMBERED, Endpoint, Names, kind


def told(*numbers: int, rules: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    endpoints = [
        {
            "id": n,
            "ifindex": 100 + n,
            "pod": f"one/p{n}",
            "address": f"10.0.0.{n}",
            "policies": ["P"],
            "on_trial": [],
            "denies": {},
        }
        for n in numbers
    ]
    return {"revision": "1.1", "endpoints": endpoints, "rules": rules or {}, "pods": {}, "nodes": {}} | more


def test_an_endpoint_and_a_rule_are_remembered_when_they_are_gone() -> None:
    names = Names()
    names.learn(told(1, 2, rules={"7": "CiliumNetworkPolicy one/p: spec.egress[0]"}))
    names.learn(told(2))
    assert names.endpoints[1] == Endpoint("one/p1", "10.0.0.1", ("P",))
    assert names.rule(7) == "CiliumNetworkPolicy one/p: spec.egress[0]"
    assert (names.rule(8), names.rule(0)) == ("rule 8", "")
    assert (names.endpoint_at(101), names.endpoint_at(102)) == (0, 2), "a device's number is given again"


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first() -> None:
    names = Names()
    for number in range(1, REMEMBERED + 3):
        names.learn(told(number))
    assert len(names.endpoints) == REMEMBERED + 1
    assert 1 not in names.endpoints and REMEMBERED + 2 in names.endpoints


def test_addresses_are_those_of_now() -> None:
    names = Names()
    names.learn(told(pods={"10.0.0.9": "one/old"}, nodes={"192.168.86.21": "n1"}))
    names.learn(told(pods={"10.0.0.9": "one/new"}, nodes={"192.168.86.21": "n1"}))
    assert (names.pod("10.0.0.9"), names.node("192.168.86.21"), names.pod("10.0.0.1")) == ("one/new", "n1", "")


def test_dns_is_asked_once_in_a_while_and_not_about_the_cluster() -> None:
    names = Names()
    names.learn(told(pods={"10.0.0.9": "one/a"}))
    asked = names.unknown(["10.0.0.9", "192.0.2.1", "192.0.2.2", "192.0.2.1"], now=0)
    assert asked == ["192.0.2.1", "192.0.2.2"]
    told_of = {"address": "192.0.2.1"}
    names.learn_dns(
        asked, [told_of | {"endpoint": 2, "names": ["b.x.", "a.x."]}, told_of | {"endpoint": 1, "names": ["b.x."]}], 0
    )
    assert (names.dns("192.0.2.1"), names.dns("192.0.2.2")) == (("a.x", "b.x"), ())
    assert [names.learned(endpoint, "192.0.2.1") for endpoint in (0, 1, 2)] == [(), ("b.x",), ("a.x", "b.x")]
    assert names.learned(1, "192.0.2.2") == names.learned(1, "192.0.2.3") == ()
    assert names.unknown(asked, now=DNS_LIFE_S - 1) == []
    assert names.unknown(asked, now=DNS_LIFE_S + 1) == asked


@pytest.mark.parametrize(
    ("identity", "wanted"),
    [
        (layout.IDENTITY_ANY, "world"),
        (layout.IDENTITY_WORLD, "world"),
        (layout.IDENTITY_HOST, "host"),
        (layout.IDENTITY_NODES, "remote-node"),
        (3 << 24, "unmanaged"),
        ((1 << 30) + 5, "pod"),
        ((2 << 30) + 5, "world"),
    ],
)
def test_numbers_have_the_entities_names(identity: int, wanted: str) -> None:
    assert kind(identity) == wanted

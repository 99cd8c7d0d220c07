"""Events as people read them, and which of them they want."""

from __future__ import annotations

from typing import Any

import pytest

from netstack.cli.observe import line
from netstack.core.address import ANY, pack
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l
from netstack.observer.flows import Filter, named
from netstack.observer.names import Names

POD, PEER, WORLD = "10.244.1.3", "10.244.2.3", "192.0.2.1"
POLICY, RULE = "CiliumNetworkPolicy shop/p", "CiliumNetworkPolicy shop/p: spec.egress[0]"
OTHER = "NetworkPolicy shop/ingress-alone"
LEARNED = [
    {"endpoint": 11, "address": WORLD, "names": ["api.x.io."]},
    {"endpoint": 12, "address": WORLD, "names": ["other.x.io."]},
]
BOOT = 1_800_000_000.0


@pytest.fixture
def names() -> Names:
    made = Names()
    denies = {"ingress": [OTHER], "egress": [POLICY, "T"]}
    policies = {"policies": [POLICY, OTHER], "on_trial": ["T"], "denies": denies}
    endpoint = {"id": 11, "ifindex": 5, "pod": "shop/cart-1", "address": POD, **policies}
    pods = {POD: "shop/cart-1", PEER: "db/main"}
    nodes = {"192.168.86.21": "n1"}
    made.learn({"revision": "1", "endpoints": [endpoint], "rules": {"7": RULE}, "pods": pods, "nodes": nodes})
    made.learn_dns([WORLD], LEARNED, 0)
    return made


def event(**fields: Any) -> l.Event:
    values = {
        "at": 5_000_000_000,
        "source": pack(POD),
        "destination": pack(WORLD),
        "source_port": 4000,
        "port": 443,
        "protocol": 6,
        "verdict": Verdict.FORWARDED,
        "direction": l.DIRECTION_EGRESS,
        "endpoint": 11,
        "peer": l.IDENTITY_WORLD,
        "rule": 7,
        "ifindex": 5,
    }
    return l.Event(**(values | fields))


def flow(names: Names, **fields: Any) -> dict[str, Any]:
    return named(event(**fields), names, BOOT)


def test_an_allowed_flow_names_pod_peer_and_rule(names: Names) -> None:
    assert flow(names) == {
        "time": BOOT + 5,
        "verdict": "FORWARDED",
        "reason": "forwarded",
        "direction": "egress",
        "endpoint": 11,
        "pod": "shop/cart-1",
        "source": {"address": POD, "port": 4000, "pod": "shop/cart-1", "node": "", "names": []},
        "destination": {"address": WORLD, "port": 443, "pod": "", "node": "", "names": ["api.x.io", "other.x.io"]},
        "learned": ["api.x.io"],
        "identity": l.IDENTITY_WORLD,
        "entity": "world",
        "protocol": "TCP",
        "rule": RULE,
        "policies": [],
        "repeats": 0,
    }


def test_where_no_rule_allows_the_policies_that_deny_in_this_direction_are_named(names: Names) -> None:
    assert flow(names, verdict=Verdict.DEFAULT_DENY, rule=0)["policies"] == [POLICY]
    denied = flow(names, verdict=Verdict.DEFAULT_DENY, rule=0, direction=l.DIRECTION_INGRESS, source=pack(PEER),
                  destination=pack(POD), peer=(1 << 30) + 5)  # fmt: skip
    assert (denied["policies"], denied["entity"]) == ([OTHER], "pod")
    assert (denied["source"]["pod"], denied["destination"]["pod"]) == ("db/main", "shop/cart-1")


def test_what_policies_on_trial_would_deny_names_those(names: Names) -> None:
    assert flow(names, verdict=Verdict.AUDITED, rule=0)["policies"] == ["T"]
    assert flow(names, verdict=Verdict.AUDITED, rule=7)["rule"] == RULE


def test_a_frame_without_ip_header_is_told_by_its_device(names: Names) -> None:
    dropped = flow(names, verdict=Verdict.UNSUPPORTED, source=ANY, destination=ANY, source_port=0, port=0, protocol=0,
                   direction=0, endpoint=0, rule=0)  # fmt: skip
    assert (dropped["pod"], dropped["endpoint"], dropped["protocol"]) == ("shop/cart-1", 11, "")
    assert dropped["source"]["address"] == ""


def test_a_pod_that_is_gone_keeps_its_name(names: Names) -> None:
    names.learn({"revision": "2", "endpoints": [], "rules": {}, "pods": {POD: "shop/next"}, "nodes": {}})
    assert flow(names)["source"]["pod"] == "shop/cart-1"


@pytest.mark.parametrize(
    ("filter_", "matches"),
    [
        ({}, True),
        ({"pod": ["shop/cart"]}, True),
        ({"pod": ["shop/"]}, True),
        ({"pod": ["cart"]}, False),
        ({"from_pod": ["shop/cart-1"]}, True),
        ({"to_pod": ["shop/cart-1"]}, False),
        ({"namespace": ["shop"]}, True),
        ({"namespace": ["sho"]}, False),
        ({"namespace": ["db", "shop"]}, True),
        ({"ip": ["192.0.2.0/24"]}, True),
        ({"ip": ["192.0.3.0/24"]}, False),
        ({"name": ["*.x.io"]}, True),
        ({"name": ["API.x.io"]}, True),
        ({"name": ["x.io"]}, False),
        ({"port": [443]}, True),
        ({"port": [80]}, False),
        ({"protocol": ["tcp"]}, True),
        ({"verdict": ["allowed"]}, True),
        ({"verdict": ["dropped"]}, False),
        ({"verdict": ["forwarded"]}, True),
        ({"verdict": ["dropped", "allowed"], "port": [443]}, True),
        ({"verdict": ["allowed"], "port": [80]}, False),
    ],
)
def test_filters(names: Names, filter_: dict[str, Any], matches: bool) -> None:
    assert Filter.parse(filter_).matches(flow(names)) is matches


def test_a_verdict_of_another_release_hides_no_other(names: Names) -> None:
    newer = flow(names, verdict=250)
    assert (newer["verdict"], newer["reason"]) == ("VERDICT_250", "of another release's programs")
    assert Filter.parse({"verdict": ["dropped"]}).matches(newer) and "  VERDICT_250  " in line(newer)


def test_filters_of_verdicts(names: Names) -> None:
    denied, audited = flow(names, verdict=Verdict.DEFAULT_DENY), flow(names, verdict=Verdict.AUDITED)
    assert [Filter.parse({"verdict": ["dropped"]}).matches(one) for one in (denied, audited)] == [True, False]
    assert [Filter.parse({"verdict": ["audited"]}).matches(one) for one in (denied, audited)] == [False, True]
    assert Filter.parse({"verdict": ["default_deny"]}).matches(denied)


@pytest.mark.parametrize(
    ("filter_", "error"),
    [
        ({"pods": ["a"]}, "filter pods: unknown; known are from_pod, ip, name"),
        ({"pod": "a"}, "filter pod: must be a list of str"),
        ({"port": ["443"]}, "filter port: must be a list of int"),
        ({"ip": ["10.0.0"]}, "filter ip: '10.0.0' does not appear to be"),
        ({"verdict": ["denied"]}, "filter verdict: 'denied' is none of allowed, dropped, audited, FORWARDED"),
    ],
)
def test_a_wrong_filter_is_refused_by_name(filter_: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Filter.parse(filter_)

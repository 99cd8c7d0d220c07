"""What is written to status, and what `status` answers."""

from __future__ import annotations

import json
from typing import Any

from instruments.announcer_objects import advertisement, pool, service
from instruments.lan import KEY
from netstack.announcer.advertise import advertise
from netstack.announcer.allocate import allocate
from netstack.announcer.apply import Gateway, Segment
from netstack.announcer.elect import Election
from netstack.announcer.events import Lost, Owned
from netstack.announcer.gratuitous import Gratuitous
from netstack.announcer.publish import event_view, l2_statuses, segment_view, statuses, summary
from netstack.announcer.settings import Timing
from netstack.core.address import pack
from netstack.core.ref import Ref

HOME = pool("first-pool", "192.168.86.5-192.168.86.19")
VIP = pack("192.168.86.5")


def decided(*services: Any, pools: tuple[Any, ...] = (HOME,), announced: bool = True) -> Any:
    allocation = allocate(pools, services, {})
    return allocation, advertise(allocation, [advertisement()] if announced else [], services, [], [], ["n1"])


def said(*services: Any, **options: Any) -> dict[str, dict[str, Any]]:
    found = statuses(*decided(*services, **options), lambda ref, kind, text: "2026-01-01T00:00:00Z")
    return {str(ref): status for ref, status in found.items()}


def condition(kind: str, status: str, reason: str, message: str) -> dict[str, str]:
    return {
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip


def test_an_assigned_service_and_its_pool() -> None:
    assert said(service("a")) == {
        "Service default/a": {
            "loadBalancer": {"ingress": [{"ip": "192.168.86.5", "ipMode": "VIP"}]},
            "conditions": [
                condition("Allocated", "True", "Allocated", "from IPAddressPool first-pool"),
                condition("Announced", "True", "Announced", ""),
            ],
        },
        "IPAddressPool metallb-system/first-pool": {
            "assignedIPv4": 1, "assignedIPv6": 0, "availableIPv4": 14, "availableIPv6": 0
        },
    }  # fmt: skip


def test_a_pools_counts_fit_the_schema_of_its_kind() -> None:
    huge = said(pools=(pool("huge", "fd00::/64"),))["IPAddressPool metallb-system/huge"]
    assert (huge["availableIPv6"], huge["availableIPv4"]) == (2**63 - 1, 0)
    none = pool("none", "10.0.0.0/32", avoidBuggyIPs=True)
    status = said(service("a", loadBalancerIP="10.0.0.0"), pools=(none,))["IPAddressPool metallb-system/none"]
    assert (status["assignedIPv4"], status["availableIPv4"]) == (1, 0)


def test_a_refused_service_has_no_address_and_a_reason() -> None:
    assert said(service("a", loadBalancerIP="10.9.9.9"))["Service default/a"] == {
        "loadBalancer": {"ingress": []},
        "conditions": [
            condition("Allocated", "False", "Refused", "spec.loadBalancerIP: 10.9.9.9 is in no IPAddressPool")
        ],
    }


def test_a_service_that_nobody_announces_says_why() -> None:
    conditions = said(service("a"), announced=False)["Service default/a"]["conditions"]
    reason = "no L2Advertisement selects IPAddressPool metallb-system/first-pool"
    assert conditions[1] == condition("Announced", "False", "NoNode", reason)


def test_a_refused_pool_says_which_other_stands_in_its_way() -> None:
    status = said(pools=(HOME, pool("second", "192.168.86.19-192.168.86.30")))["IPAddressPool metallb-system/second"]
    assert status["conditions"][0]["message"].startswith("spec.addresses[0]: 192.168.86.19-192.168.86.30 overlaps")


def test_service_l2_status_names_node_and_interfaces() -> None:
    _, announcements = decided(service("a", namespace="web"))
    found = l2_statuses("n1", {"eth0": {VIP}, "eth1": set()}, announcements)
    assert found == {
        Ref("ServiceL2Status", "web", "l2-n1-a"): {
            "node": "n1", "serviceName": "a", "serviceNamespace": "web", "interfaces": [{"name": "eth0"}]
        }
    }  # fmt: skip
    assert l2_statuses("n1", {"eth0": set()}, announcements) == {}


class Wire:
    interface, index, mac = "eth0", 2, bytes(6)

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def test_a_segments_view_is_plain_json_with_owner_reason_and_ages() -> None:
    election = Election("n1", [], KEY, 5, Timing(), witness=False, now=0.0)
    segment = Segment(Wire(), Wire(), election, Gratuitous(0.0), None, lambda *_: None)  # type: ignore[arg-type]
    segment.want({VIP: frozenset(["n1"]), pack("192.168.86.6"): frozenset()}, 0.0)
    segment.tick(1.3)
    view = json.loads(json.dumps(segment_view(segment, 1.4)))
    assert view["addresses"] == {
        "192.168.86.5": {
            "owner": "n1", "stage": "owner", "term": 1, "since_s": 0.1, "why": "nobody held it", "answers_for_s": 0.25
        },
        "192.168.86.6": {"owner": None},
    }  # fmt: skip
    assert view["history"] == [
        {"age_s": 0.1, "event": "owned", "address": "192.168.86.5", "term": 1, "why": "nobody held it"}
    ]
    assert (view["peers"], view["gateway_seen"], view["dark_max_s"]) == ({}, None, None)


def test_the_summary_names_the_interface_where_the_gateway_is_not_heard() -> None:
    gateway = Gateway(pack("192.168.86.1"), pack("192.168.86.2"))
    views = []
    for witness in (True, False):
        election = Election("n1", [], KEY, 5, Timing(), witness=witness, now=0.0)
        segment = Segment(Wire(), Wire(), election, Gratuitous(0.0), gateway, lambda *_: None)  # type: ignore[arg-type]
        segment.want({VIP: frozenset(["n1"])}, 0.0)
        segment.tick(1.3)
        views.append(segment_view(segment, 1.4))
    said = "2 addresses, 1 answered for by this node"
    assert summary(views[:1], 2) == f"{said}; the gateway does not answer at eth0, so it is no witness"
    assert summary(views[1:], 2) == said


def test_events_say_how_long_the_owner_was_silent() -> None:
    assert event_view(Owned(VIP, 3, "n2 was silent for 0.402 s", 0.4031))["silent_s"] == 0.403
    assert event_view(Lost(VIP, 3, "handed over to n2")) == {
        "event": "lost", "address": "192.168.86.5", "term": 3, "why": "handed over to n2"
    }  # fmt: skip

"""Allocation: MetalLB's rules (its allocator and controller tests, IP-01 to IP-08 of our list), and every reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruments.announcer_objects import pool, service
from netstack.announcer.allocate import Allocation, allocate
from netstack.core.address import unpack
from netstack.source.models import IPAddressPool, Service

HOME = pool("first-pool", "192.168.86.5-192.168.86.19")
IPS = "metallb.io/loadBalancerIPs"
OLD_IPS = "metallb.universe.tf/loadBalancerIPs"
KEY = "metallb.io/allow-shared-ip"
POOL = "metallb.io/address-pool"


def given_out(result: Allocation) -> dict[str, str]:
    return {ref.name: ",".join(map(unpack, assigned.addresses)) for ref, assigned in result.assigned.items()}


def run(pools: list[IPAddressPool], *services: Service, **options: Any) -> dict[str, str]:
    """Allocate; the free property: once the result is everyone's status, allocating again changes nothing."""
    result = allocate(pools, services, {}, **options)
    settled = [carrying(item, result) for item in services]
    again = allocate(pools, settled, {}, **options)
    assert given_out(again) == given_out(result)
    shuffled = allocate(pools[::-1], services[::-1], {}, **options)
    assert words(shuffled) == words(result)
    return words(result)


def words(result: Allocation) -> dict[str, str]:
    return given_out(result) | {ref.name: str(error) for ref, error in result.refused.items()}


def carrying(item: Service, result: Allocation) -> Service:
    assigned = result.assigned.get(item.meta.ref)
    return dataclasses.replace(item, load_balancer_ips=assigned.addresses if assigned else ())


def test_the_first_free_address_in_the_order_of_names() -> None:
    assert run([HOME], service("b"), service("a")) == {"a": "192.168.86.5", "b": "192.168.86.6"}


@pytest.mark.parametrize(
    "wish",
    [
        {"annotations": {IPS: "192.168.86.18"}},
        {"annotations": {OLD_IPS: " 192.168.86.18 "}},
        {"loadBalancerIP": "192.168.86.18"},
    ],
)
def test_an_address_asked_for_by_each_of_the_three_ways(wish: dict[str, Any]) -> None:
    assert run([HOME], service("a"), service("ingress", **wish)) == {"a": "192.168.86.5", "ingress": "192.168.86.18"}


def test_who_names_an_address_comes_before_who_takes_any() -> None:
    assert run([HOME], service("a"), service("b", loadBalancerIP="192.168.86.5")) == {
        "a": "192.168.86.6", "b": "192.168.86.5"
    }  # fmt: skip


def test_who_has_an_address_keeps_it_before_all_others() -> None:
    assert run(
        [HOME], service("a", loadBalancerIP="192.168.86.9"), service("b", has=("192.168.86.9",)), service("c")
    ) == {
        "a": "Service default/a: spec.loadBalancerIP: 192.168.86.9 is held by Service default/b, "
        "and the two do not name one key in allow-shared-ip",
        "b": "192.168.86.9",
        "c": "192.168.86.5",
    }


def test_a_released_address_goes_to_the_one_that_waits() -> None:
    one = pool("one", "10.0.0.1/32")
    assert run([one], service("a", has=("10.0.0.1",)), service("b")) == {
        "a": "10.0.0.1", "b": "Service default/b: spec.type: no free IPv4 address in one"
    }  # fmt: skip
    assert run([one], service("a", type="ClusterIP"), service("b")) == {"b": "10.0.0.1"}


def test_a_refused_wish_does_not_take_away_what_the_service_has() -> None:
    holder = service("a", has=("192.168.86.18",))
    result = allocate([HOME], [holder, service("b", has=("192.168.86.7",), loadBalancerIP="192.168.86.18")], {})
    assert given_out(result) == {"a": "192.168.86.18", "b": "192.168.86.7"}
    assert "192.168.86.18 is held by Service default/a" in str(next(iter(result.refused.values())))
    result = allocate([HOME], [service("b", has=("192.168.86.7",), annotations={IPS: "nonsense"})], {})
    assert given_out(result) == {"b": "192.168.86.7"}


def test_a_wish_that_fails_because_of_a_later_service_leaves_what_the_service_has() -> None:
    held = "is held by Service default/{}, and the two do not name one key in allow-shared-ip"
    assert run(
        [HOME], service("a", has=("192.168.86.5",), loadBalancerIP="192.168.86.6"), service("b", has=("192.168.86.6",))
    ) == {
        "a": f"Service default/a: spec.loadBalancerIP: 192.168.86.6 {held.format('b')}", "b": "192.168.86.6"
    }  # fmt: skip
    both = [service(name, has=(f"192.168.86.{n}",), loadBalancerIP="192.168.86.7") for name, n in (("a", 5), ("b", 6))]
    assert given_out(allocate([HOME], both, {})) == {"a": "192.168.86.7", "b": "192.168.86.6"}
    swap = [
        service(name, has=(f"192.168.86.{has}",), loadBalancerIP=f"192.168.86.{wish}")
        for name, has, wish in (("a", 5, 6), ("b", 6, 5))
    ]
    assert run([HOME], *swap) == {"a": "192.168.86.6", "b": "192.168.86.5"}


def test_a_pool_that_is_not_to_be_had_leaves_the_address_of_another() -> None:
    item = service("a", has=("192.168.86.7",), annotations={POOL: "misspelled"})
    assert given_out(allocate([HOME], [item], {})) == {"a": "192.168.86.7"}
    assert run([HOME, pool("misspelled", "10.0.0.1/32")], item) == {"a": "10.0.0.1"}


def test_a_granted_wish_moves_the_service() -> None:
    assert run([HOME], service("a", has=("192.168.86.7",), loadBalancerIP="192.168.86.18")) == {"a": "192.168.86.18"}


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"annotations": {IPS: "10.0.0.300"}}, f"metadata.annotations.{IPS}: '10.0.0.300' is not an IP address"),
        ({"annotations": {OLD_IPS: "10.9.9.9"}}, f"metadata.annotations.{OLD_IPS}: 10.9.9.9 is in no IPAddressPool"),
        (
            {"annotations": {IPS: "192.168.86.5,192.168.86.6"}},
            f"metadata.annotations.{IPS}: 192.168.86.5,192.168.86.6 asks for two addresses of one family",
        ),
        (
            {"annotations": {IPS: "192.168.86.5"}, "loadBalancerIP": "192.168.86.6"},
            f"spec.loadBalancerIP: must not be set together with metadata.annotations.{IPS}",
        ),
        (
            {"annotations": {IPS: "192.168.86.5", OLD_IPS: "192.168.86.6"}},
            f"metadata.annotations.{IPS}: says something else than {OLD_IPS}",
        ),
        ({"annotations": {POOL: "no"}}, f"metadata.annotations.{POOL}: there is no IPAddressPool no in force"),
        (
            {"annotations": {POOL: "foreign"}},
            f"metadata.annotations.{POOL}: IPAddressPool metallb-system/foreign does not serve it: "
            "spec.serviceAllocation",
        ),
        (
            {"annotations": {POOL: "first-pool", IPS: "10.7.0.1"}},
            f"metadata.annotations.{IPS}: 10.7.0.1 is of pool manual, but the service asks for pool first-pool",
        ),
        (
            {"loadBalancerIP": "10.8.0.1"},
            "spec.loadBalancerIP: IPAddressPool metallb-system/foreign does not serve it: spec.serviceAllocation",
        ),
        (
            {"annotations": {IPS: "192.168.86.5,fd00::1"}},
            f"metadata.annotations.{IPS}: its two addresses are of different pools",
        ),
        ({"ipFamilies": ["IPv6"], "annotations": {POOL: "first-pool"}},
         f"metadata.annotations.{POOL}: no free IPv6 address in first-pool"),
    ],
)  # fmt: skip
def test_refusals_name_object_field_and_obstacle(wish: dict[str, Any], reason: str) -> None:
    pools = [
        HOME,
        pool("manual", "10.7.0.0/29", "fd00::/120", autoAssign=False),
        pool("foreign", "10.8.0.0/29", serviceAllocation={"namespaces": ["other"]}),
    ]
    assert run(pools, service("a", **wish)) == {"a": f"Service default/a: {reason}"}


def test_without_any_pool_the_reason_says_so() -> None:
    assert run([], service("a")) == {
        "a": "Service default/a: spec.type: no IPAddressPool gives addresses to this service by itself"
    }


def test_a_manual_pool_serves_those_that_name_it() -> None:
    manual = pool("manual", "10.7.0.0/29", autoAssign=False)
    assert run([manual], service("a", annotations={POOL: "manual"})) == {"a": "10.7.0.0"}
    assert run([pool("manual", "10.7.0.0/29", autoAssign=False, avoidBuggyIPs=True)],
               service("a", annotations={POOL: "manual"})) == {"a": "10.7.0.1"}  # fmt: skip


def test_another_class_is_left_alone() -> None:
    foreign = service("a", loadBalancerClass="example.com/x", has=("192.168.86.5",))
    assert run([HOME], foreign, service("b")) == {"b": "192.168.86.5"}
    assert run([HOME], foreign, service("b"), load_balancer_class="example.com/x") == {"a": "192.168.86.5"}


# ---- pools change ----


def test_an_address_is_kept_while_some_pool_covers_it_and_replaced_otherwise() -> None:
    held = service("a", has=("192.168.86.7",))
    assert run([pool("renamed", "192.168.86.0/28")], held) == {"a": "192.168.86.7"}
    assert run([pool("moved", "10.0.0.1-10.0.0.9")], held) == {"a": "10.0.0.1"}
    assert "a" not in given_out(allocate([], [held], {}))


def test_the_later_of_two_overlapping_pools_is_refused_and_nothing_moves() -> None:
    held = service("a", has=("192.168.86.7",))
    result = allocate([HOME, pool("a-pool", "192.168.86.15-192.168.86.30")], [held], {})
    assert given_out(result) == {"a": "192.168.86.7"}
    assert [item.meta.name for item in result.pools] == ["first-pool"]
    assert "overlaps" in str(result.refused_pools[0])


def test_usage_is_counted_by_address_not_by_service() -> None:
    shared: Mapping[str, str] = {KEY: "web"}
    result = allocate([HOME], [service("a", annotations=shared), service("b", annotations=shared, ports=(443,))], {})
    assert (result.used(HOME, True), result.used(HOME, False)) == (1, 0)


# ---- sharing ----


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ({}, {"ports": (443,)}, "10.0.0.1"),
        ({}, {"ports": (80,)}, "10.0.0.1 is held by Service default/a, which has TCP port 80 too"),
        ({}, {"ports": (443,), "annotations": {KEY: "other"}},
         "10.0.0.1 is held by Service default/a, and the two do not name one key in allow-shared-ip"),
        ({"externalTrafficPolicy": "Local", "selector": {"app": "x"}},
         {"ports": (443,), "externalTrafficPolicy": "Local", "selector": {"app": "x"}}, "10.0.0.1"),
        ({"externalTrafficPolicy": "Local", "selector": {"app": "x"}}, {"ports": (443,), "selector": {"app": "x"}},
         "10.0.0.1 is held by Service default/a, and with externalTrafficPolicy Local both need one selector"),
    ],
)  # fmt: skip
def test_sharing_one_address(first: dict[str, Any], second: dict[str, Any], outcome: str) -> None:
    wishes = {"annotations": {KEY: "web"}, "loadBalancerIP": "10.0.0.1"}
    found = run([pool("one", "10.0.0.1/32")], service("a", **{**wishes, **first}), service("b", **{**wishes, **second}))
    assert found["a"] == "10.0.0.1"
    assert found["b"].endswith(outcome)


def test_services_with_one_key_share_without_naming_the_address() -> None:
    both = {"annotations": {"metallb.universe.tf/allow-shared-ip": "k"}}
    assert run([HOME], service("a", **both), service("b", ports=(443,), **both), service("c", **both)) == {
        "a": "192.168.86.5", "b": "192.168.86.5", "c": "192.168.86.6"
    }  # fmt: skip


# ---- two families ----

DUAL = pool("dual", "10.0.0.1-10.0.0.3", "fd00::1-fd00::3")
SIX = {"ipFamilies": ["IPv6"]}
BOTH = {"ipFamilies": ["IPv4", "IPv6"]}


@pytest.mark.parametrize(
    ("pools", "spec", "outcome"),
    [
        ([DUAL], SIX, "fd00::1"),
        ([DUAL], {}, "10.0.0.1"),
        ([DUAL], {**BOTH, "ipFamilyPolicy": "RequireDualStack"}, "10.0.0.1,fd00::1"),
        ([DUAL], {**SIX, "ipFamilyPolicy": "PreferDualStack"}, "fd00::1,10.0.0.1"),
        ([HOME], {"ipFamilyPolicy": "PreferDualStack"}, "192.168.86.5"),
        ([HOME, DUAL], {"ipFamilyPolicy": "PreferDualStack"}, "10.0.0.1,fd00::1"),
        ([HOME], {**SIX, "ipFamilyPolicy": "PreferDualStack"}, "192.168.86.5"),
        ([HOME], {"ipFamilyPolicy": "RequireDualStack"},
         "Service default/a: spec.type: no free IPv4 and IPv6 address in first-pool"),
        ([DUAL], {"ipFamilyPolicy": "PreferDualStack", "has": ("10.0.0.2",)}, "10.0.0.2,fd00::1"),
        ([DUAL], {"ipFamilyPolicy": "RequireDualStack", "has": ("10.0.0.2",)}, "10.0.0.2,fd00::1"),
        ([HOME], {"ipFamilyPolicy": "PreferDualStack", "has": ("192.168.86.7",)}, "192.168.86.7"),
        # in a cluster of one family nothing would answer at an address of the other
        ([DUAL], {"ipFamilyPolicy": "PreferDualStack", "clusterIPs": ["10.96.0.9"]}, "10.0.0.1"),
        ([DUAL], {"ipFamilyPolicy": "PreferDualStack", "clusterIPs": ["fd96::9"]}, "fd00::1"),
        ([DUAL], {"ipFamilyPolicy": "PreferDualStack", "clusterIPs": ["10.96.0.9", "fd96::9"]}, "10.0.0.1,fd00::1"),
        ([DUAL], {"ipFamilyPolicy": "PreferDualStack", "clusterIPs": ["10.96.0.9"], "has": ("10.0.0.2", "fd00::1")},
         "10.0.0.2"),
        ([DUAL], {"clusterIPs": ["10.96.0.9"], "loadBalancerIP": "fd00::2"},
         "Service default/a: spec.loadBalancerIP: fd00::2 is of another family than spec.clusterIPs"),
        ([DUAL], {"clusterIPs": ["10.96.0.9", "fd96::9"], "loadBalancerIP": "fd00::2"}, "fd00::2"),
    ],
)  # fmt: skip
def test_two_families(pools: list[IPAddressPool], spec: dict[str, Any], outcome: str) -> None:
    assert run(pools, service("a", **spec)) == {"a": outcome}


@pytest.mark.parametrize(
    ("spec", "has", "outcome"),
    [
        ({**BOTH, "ipFamilyPolicy": "RequireDualStack"}, ("10.0.0.2",), "10.0.0.2"),
        ({**BOTH, "ipFamilyPolicy": "PreferDualStack"}, ("10.0.0.2",), "10.0.0.2"),
        ({**BOTH, "ipFamilyPolicy": "PreferDualStack"}, ("10.0.0.1",), "10.0.0.1"),
        ({"ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}, ("10.0.0.2", "fd00::2"), "10.0.0.2"),
    ],
)
def test_a_second_family_that_is_not_to_be_had_or_not_wanted_moves_nothing(
    spec: dict[str, Any], has: tuple[str, ...], outcome: str
) -> None:
    dual = pool("dual", "10.0.0.1-10.0.0.3", "fd00::1-fd00::2")
    sixes = [service(f"six{n}", has=(f"fd00::{n}",), **SIX) for n in (1, 2) if f"fd00::{n}" not in has]
    older = service("a", annotations={POOL: "dual"})
    result = allocate([pool("another", "10.9.0.0/29"), dual], [older, *sixes, service("b", has=has, **spec)], {})
    assert given_out(result)["b"] == outcome


# ---- any objects ----

texts = st.sampled_from(["", "192.168.86.5", "192.168.86.6", "192.168.86.18", "10.0.0.1"])
some_services = st.lists(
    st.builds(
        lambda name, wish, has, key, port: service(
            name, loadBalancerIP=wish, has=(has,) if has else (), annotations={KEY: key} if key else {}, ports=(port,)
        ),
        st.sampled_from("abcdefgh"), texts, texts, st.sampled_from(["", "k", "l"]), st.sampled_from([80, 443]),
    ),
    unique_by=lambda item: item.meta.name, max_size=8,
)  # fmt: skip


@given(some_services)
def test_any_services_end_settled_and_no_two_collide(services: list[Service]) -> None:
    pools = [pool("tiny", "192.168.86.5-192.168.86.7")]
    run(pools, *services)
    result = allocate(pools, services, {})
    by_ref = {item.meta.ref: item for item in services}
    taken = [
        (address, port.port, by_ref[ref].meta.annotations.get(KEY, str(ref)))
        for ref, assigned in result.assigned.items()
        for address in assigned.addresses
        for port in by_ref[ref].ports
    ]
    assert len({(address, port) for address, port, _ in taken}) == len(taken)
    assert len({(address, key) for address, _, key in taken}) == len({address for address, _, _ in taken})
    assert {*result.assigned, *result.refused} == set(by_ref)

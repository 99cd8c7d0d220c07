"""Who may announce: MetalLB's L2-03, L2-05, L2-06, L2-11, L2-12, L2-14 of our list, as data."""

from __future__ import annotations

from typing import Any

import pytest

from instruments.announcer_objects import advertisement, endpoints, node, pool, service
from netstack.announcer.advertise import Announcements, advertise
from netstack.announcer.allocate import allocate
from netstack.core.address import pack
from netstack.source.models import L2Advertisement, Node, Service

HOME = pool("first-pool", "192.168.86.5-192.168.86.19", labels={"lan": "home"})
MEMBERS = ["n1", "n2", "n3"]
FIRST = pack("192.168.86.5")
KEY = {"metallb.io/allow-shared-ip": "k"}


def run(
    ads: list[L2Advertisement], *services: Service, nodes: list[Node] | None = None, **options: Any
) -> Announcements:
    allocation = allocate([HOME], services, {})
    slices = options.pop("slices", [])
    return advertise(allocation, ads, services, slices, nodes or [], MEMBERS, **options)


def announcers(result: Announcements, interface: str = "eth0") -> list[str]:
    return sorted(result.eligible(interface).get(FIRST, ()))


def reason(result: Announcements) -> str:
    (text,) = result.silent.values()
    return text


def test_a_pool_without_advertisement_is_not_announced() -> None:
    result = run([advertisement(ipAddressPools=["other"])], service("a"))
    assert result.addresses == {}
    assert reason(result) == "no L2Advertisement selects IPAddressPool metallb-system/first-pool"


@pytest.mark.parametrize(
    "spec",
    [{}, {"ipAddressPools": ["first-pool"]}, {"ipAddressPoolSelectors": [{"matchLabels": {"lan": "home"}}]}],
)
def test_an_advertisement_selects_pools_by_name_by_label_or_all(spec: dict[str, Any]) -> None:
    assert announcers(run([advertisement(**spec)], service("a"))) == MEMBERS


def test_nodes_are_selected_by_any_of_the_selectors() -> None:
    nodes = [node("n1", zone="a"), node("n2", zone="b"), node("n3")]
    selectors = [{"matchLabels": {"zone": "a"}}, {"matchLabels": {"zone": "b"}}]
    assert announcers(run([advertisement(nodeSelectors=selectors)], service("a"), nodes=nodes)) == ["n1", "n2"]
    none = run([advertisement(nodeSelectors=[{"matchLabels": {"zone": "c"}}])], service("a"), nodes=nodes)
    assert reason(none) == "no node fit to announce is selected by L2Advertisement kubelab"


def test_unfit_nodes_announce_nothing() -> None:
    nodes = [
        node("n1", unavailable=True),
        node("n2", **{"node.kubernetes.io__exclude-from-external-load-balancers": ""}),
    ]
    assert announcers(run([advertisement()], service("a"), nodes=nodes)) == ["n3"]
    assert announcers(run([advertisement()], service("a"), nodes=nodes, ignore_exclude_label=True)) == ["n2", "n3"]


def test_interfaces_add_up_and_an_advertisement_without_any_means_all() -> None:
    ads = [advertisement("a", interfaces=["eth1"]), advertisement("b", interfaces=["eth2"])]
    result = run(ads, service("a"))
    assert [announcers(result, name) for name in ("eth0", "eth1", "eth2")] == [[], MEMBERS, MEMBERS]
    assert announcers(run([*ads, advertisement("c")], service("a"))) == MEMBERS


def test_services_are_selected_by_label() -> None:
    ads = [advertisement(serviceSelectors=[{"matchLabels": {"app": "ha"}}, {"matchLabels": {"app": "x"}}])]
    assert announcers(run(ads, service("a", labels={"app": "ha"}))) == MEMBERS
    assert reason(run(ads, service("a"))) == "spec.serviceSelectors of L2Advertisement kubelab do not select it"
    shared = run(ads, service("a", labels={"app": "ha"}, annotations=KEY))
    assert (
        reason(shared)
        == "spec.serviceSelectors of L2Advertisement kubelab do not go with the annotation allow-shared-ip"
    )


def test_local_traffic_policy_needs_a_ready_endpoint_on_the_node() -> None:
    local = service("a", externalTrafficPolicy="Local")
    assert announcers(run([advertisement()], local, slices=[endpoints("a", "n2")])) == ["n2"]
    for slices in ([], [endpoints("b", "n2")], [endpoints("a", "n2", ready=False)]):
        silent = run([advertisement()], local, slices=slices)
        assert reason(silent) == (
            "spec.externalTrafficPolicy is Local and no node that may announce it has a ready endpoint"
        )


def test_a_cluster_service_without_endpoints_stays_announced() -> None:
    assert announcers(run([advertisement()], service("a"))) == MEMBERS


def test_services_that_share_an_address_are_announced_from_common_nodes_only() -> None:
    nodes = [node("n1", zone="a"), node("n2", zone="b"), node("n3")]
    both = [service("a", annotations=KEY), service("b", annotations=KEY, ports=(443,))]
    result = run([advertisement(nodeSelectors=[{"matchLabels": {"zone": "a"}}])], *both, nodes=nodes)
    assert announcers(result) == ["n1"]
    assert [ref.name for ref in result.addresses[FIRST].services] == ["a", "b"]


def test_sharers_without_a_common_node_are_silent_with_both_names() -> None:
    local: dict[str, Any] = {"externalTrafficPolicy": "Local", "annotations": KEY}
    result = run(
        [advertisement()],
        service("a", **local),
        service("b", ports=(443,), **local),
        slices=[endpoints("a", "n1"), endpoints("b", "n2")],
    )
    assert announcers(result) == []
    assert set(result.silent.values()) == {
        "Service default/a and Service default/b share the address, but no node may announce both"
    }

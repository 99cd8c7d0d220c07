"""What the rig's services are, without a kernel."""

from __future__ import annotations

from ipaddress import IPv4Address

from bench.rig import ADDRESSES, CLUSTER_IPS, HALF, services, sizes, snapshot
from bench.vip import keepalived_conf
from netstack.source.models import EndpointSlice, Service


def test_half_of_the_addresses_is_routed_to_each_server() -> None:
    made = services(10000, "tcp")
    assert len({one.cluster_ip for one in made} | {one.address for one in made}) == 20000
    for base, name in ((CLUSTER_IPS, "cluster_ip"), (ADDRESSES, "address")):
        offsets = [int(IPv4Address(getattr(one, name))) - int(base) for one in made]
        assert sum(offset < HALF for offset in offsets) == 5000
        assert min(offsets) >= 0 and max(offsets) < 2 * HALF


def test_the_maps_are_enlarged_only_when_they_must() -> None:
    assert sizes(10) == sizes(1000) == sizes(10000) == {}
    assert sizes(100_000) == {"services": 1 << 20, "slots": 1 << 23}


def test_the_compiler_gets_what_the_api_server_would_send() -> None:
    found = snapshot(services(3, "udp"))
    assert [service.ports[0].protocol for service in found.all(Service)] == ["UDP"] * 3
    assert all(len(one.endpoints) == 2 for one in found.all(EndpointSlice))


def test_keepalived_has_one_order_of_succession_for_both_addresses() -> None:
    first, second = keepalived_conf(1, "n1"), keepalived_conf(2, "n2")
    assert first.count("priority 99") == second.count("priority 98") == 2
    assert "advert_int 0.1\n" in first and "advert_int 1\n" in first

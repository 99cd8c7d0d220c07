"""Links, routes, rules and neighbours in namespaces; ip(8) says whether they are what they should be."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from pyroute2 import IPRoute

from bpf.namespaces import Namespace, ip
from netstack.core.address import Prefix, pack, unpack
from netstack.kernel.netlink import HERE, PROTOCOL, UNREACHABLE, Link, Netlink, Route, Rule

pytestmark = pytest.mark.root
POD, GATEWAY = pack("10.244.1.3"), pack("169.254.1.1")


@pytest.fixture
def ends() -> Iterator[tuple[Namespace, Namespace]]:
    near, far = Namespace(), Namespace()
    try:
        yield near, far
    finally:
        near.close()
        far.close()


def opened(namespace: Namespace) -> Netlink:
    with namespace.entered():
        return Netlink()


def test_a_veth_and_its_neighbours(ends: tuple[Namespace, Namespace]) -> None:
    near, far = ends
    with opened(near) as node, opened(far) as pod:
        descriptor = os.open(far.path, os.O_RDONLY)
        node.create_veth("nst0", "eth0", descriptor, 1450)
        with pytest.raises(FileExistsError):
            node.create_veth("nst0", "eth1", descriptor, 1450)
        os.close(descriptor)
        here, there = node.link("nst0"), pod.link("eth0")
        assert here is not None and there is not None
        assert (here.mtu, here.kind, here.up, here.peer) == (1450, "veth", False, there.index)
        assert {link.name for link in node.links()} == {"lo", "nst0"}
        for namespace, link in ((near, here), (far, there)):  # else udev gives it another MAC (NET_ADDR_SET)
            assert link.mac[0] & 3 == 2
            assigned = f"/sys/class/net/{link.name}/addr_assign_type"
            assert ip("netns", "exec", namespace.name, "cat", assigned).strip() == "3"
        for _ in range(2):  # each may be repeated
            pod.put_address(there.index, POD)
            node.put_neighbour(here.index, POD, there.mac)
            node.set_up(here.index)
            pod.set_up(there.index)
        assert pod.addresses(there.index)[0] == POD
        assert near.ip("neigh", "show", "dev", "nst0").split()[:4] == [
            "10.244.1.3",
            "lladdr",
            there.mac.hex(":"),
            "PERMANENT",
        ]
        assert node.delete_link("nst0")
        assert not node.delete_link("nst0")
        assert pod.link("eth0") is None


def test_a_device_that_goes_while_it_is_being_deleted_is_gone(ends: tuple[Namespace, Namespace]) -> None:
    """As a pod's does when its namespace ends."""
    near, _ = ends

    class Slow(Netlink):
        def link(self, name: str) -> Link | None:
            found = super().link(name)
            near.ip("link", "del", name)
            return found

    near.ip("link", "add", "nst0", "type", "veth", "peer", "name", "nst1")
    with near.entered(), Slow() as node:
        assert not node.delete_link("nst0")


def test_what_lies_behind_a_pair(ends: tuple[Namespace, Namespace]) -> None:
    near, far = ends
    near.link("old0", "eth0", far)
    far.ip("address", "add", "10.244.1.3/24", "dev", "eth0")
    far.ip("address", "add", "fd00::3/64", "dev", "eth0", "nodad")
    far.ip("address", "add", "192.0.2.1/32", "dev", "lo")
    near.ip("link", "add", "one", "type", "veth", "peer", "name", "two")
    near.ip("address", "add", "10.244.1.3/24", "dev", "two")
    with opened(near) as node:
        link, one = node.link("old0"), node.link("one")
        assert link is not None and one is not None
        behind = set(node.addresses_behind(link))
        assert {POD, pack("fd00::3")} <= behind and pack("192.0.2.1") not in behind
        assert node.addresses_behind(one) == [], "its other end is here"
        assert node.addresses_behind(replace(link, namespace=4711)) == []
        assert link.alias == ""
        for text in ("a" * 300, ""):
            node.set_alias(link.index, text)
            again = node.link("old0")
            assert again is not None and again.alias == text[:255]


def test_routes_are_read_back_as_they_were_put(ends: tuple[Namespace, Namespace]) -> None:
    near, far = ends
    near.link("nst0", "eth0", far)
    far.ip("link", "set", "eth0", "up")
    near.ip("link", "set", "nst0", "up")
    with opened(near) as node:
        device, loopback = node.link("nst0"), node.link("lo")
        assert device is not None and loopback is not None
        wanted = {
            Route(Prefix(POD, 128), device.index),
            Route(Prefix.parse("0.0.0.0/0"), device.index, GATEWAY, onlink=True),
            Route(Prefix.parse("0.0.0.0/0"), loopback.index, table=1053, kind=HERE),
            Route(Prefix.parse("10.244.0.0/16"), kind=UNREACHABLE),
            Route(Prefix.parse("fd00:1::/64"), device.index),
        }
        for route in sorted(wanted) * 2:
            node.put_route(route)
        near.ip("route", "add", "192.0.2.0/24", "dev", "nst0")
        assert node.routes() == wanted, "and nothing of anybody else's"
        assert "unreachable 10.244.0.0/16 proto 78" in near.ip("route")
        assert "local default dev lo proto 78" in near.ip("route", "show", "table", "1053")
        for route in wanted:
            assert node.delete_route(route)
            assert not node.delete_route(route)


def test_what_the_kernel_takes_for_this_host(ends: tuple[Namespace, Namespace]) -> None:
    near, _ = ends
    near.ip("link", "add", "one", "type", "veth", "peer", "name", "two")
    for device in ("lo", "one", "two"):
        near.ip("link", "set", device, "up")
    near.ip("address", "add", "192.0.2.1/24", "dev", "one")
    near.ip("address", "add", "2001:db8::1/64", "dev", "one", "nodad")
    near.ip("address", "add", "198.51.100.1/32", "dev", "lo")
    with opened(near) as netlink:
        taken = {unpack(address) for address in netlink.taken()}
    assert {"192.0.2.1", "192.0.2.255", "198.51.100.1", "2001:db8::1"} <= taken
    assert not any(address.startswith(("127.", "fe80:", "ff")) or address == "::1" for address in taken)


def test_the_networks_of_a_device(ends: tuple[Namespace, Namespace]) -> None:
    near, _ = ends
    near.ip("link", "add", "one", "type", "veth", "peer", "name", "two")
    for device, net in (("one", 1), ("two", 2)):
        near.ip("link", "set", device, "up")
        near.ip("address", "add", f"192.0.{net}.1/24", "dev", device)
        near.ip("address", "add", f"2001:db8:{net}::1/64", "dev", device, "nodad")
    near.ip("route", "add", "default", "via", "192.0.1.254")
    near.ip("route", "add", "198.51.100.0/24", "via", "192.0.1.254")
    near.ip("route", "add", "203.0.113.0/24", "dev", "one", "proto", "static")
    near.ip("route", "add", "unreachable", "10.0.0.0/8")
    with opened(near) as netlink:
        link = netlink.link("one")
        assert link is not None
        networks = netlink.networks(link.index)
    assert sorted(map(str, networks)) == ["192.0.1.0/24", "2001:db8:1::/64", "203.0.113.0/24"]


@pytest.mark.parametrize(("v6", "family"), [(False, "-4"), (True, "-6")])
def test_rules(ends: tuple[Namespace, Namespace], v6: bool, family: str) -> None:
    near, _ = ends
    rule = Rule(1053, 0x53000000, 0xFF000000, 1053, v6)
    with opened(near) as node:
        near.ip(family, "rule", "add", "fwmark", "1", "lookup", "100")
        assert node.put_rule(rule)
        assert not node.put_rule(rule)
        assert node.rules() == {rule}
        assert "1053:\tfrom all fwmark 0x53000000/0xff000000 lookup 1053" in near.ip(family, "rule")
        assert node.delete_rule(rule)
        assert not node.delete_rule(rule)
        assert "fwmark 0x1 lookup 100" in near.ip(family, "rule")


def test_a_refusal_is_an_os_error_with_the_kernels_number(ends: tuple[Namespace, Namespace]) -> None:
    with opened(ends[0]) as node, pytest.raises(OSError, match="No such device"):
        node.set_up(4711)


def test_pyroute2_reads_what_we_wrote(ends: tuple[Namespace, Namespace]) -> None:
    near, far = ends
    near.link("nst0", "eth0", far)
    with opened(near) as node:
        device = node.link("nst0")
        assert device is not None
        node.put_route(Route(Prefix(POD, 128), device.index))
        node.put_rule(Rule(mark=0x53000000, mask=0xFF000000, table=1053, priority=100))
    with near.entered(), IPRoute() as other:
        (route,) = [r for r in other.get_routes(family=socket.AF_INET) if r.get("proto") == PROTOCOL]
        assert (route.get("dst"), route["dst_len"], route.get("oif")) == ("10.244.1.3", 32, device.index)
        (rule,) = [r for r in other.get_rules(family=socket.AF_INET) if r.get("fwmark")]
        assert (rule.get("fwmark"), rule.get("fwmask"), rule.get("table")) == (0x53000000, 0xFF000000, 1053)

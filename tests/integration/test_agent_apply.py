"""Tables and routes into a real kernel and back."""

from __future__ import annotations

import errno
import itertools
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bpf.namespaces import Namespace
from instruments.board import wait_for
from instruments.cluster import Cluster, check_between, check_torn
from netstack.agent.apply import Kernel, routes_of, sync_neighbours, sync_routes, sync_rules
from netstack.agent.desired import Memory
from netstack.agent.order import NAMES, Tables, plan
from netstack.agent.routes import PROXY_ROUTE_V6
from netstack.core.address import Prefix, pack
from netstack.kernel import layout
from netstack.kernel.bpf import BpfError, Map
from netstack.kernel.flows import FlowTables
from netstack.kernel.loader import LoaderSettings
from netstack.kernel.netlink import Netlink, Route

pytestmark = pytest.mark.root
SETTINGS = LoaderSettings(sizes=dict.fromkeys((*NAMES, "flows"), 64) | {"slots": 1024, "config": 1, "conntrack": 8})
FLOWS = SETTINGS.definition("flows")


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    """The agent's maps, pinned."""
    mount = tmp_path / "bpf"
    mount.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(mount)], check=True)
    try:
        (mount / "maps").mkdir()
        for name in (*NAMES, "conntrack"):
            with SETTINGS.create(name) as made:
                made.pin(mount / "maps" / name)
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_what_is_written_is_read_back_and_the_second_time_nothing_is_written(pins: Path) -> None:
    cluster = Cluster()
    cluster.pod("one/a", {"app": "a"})
    cluster.service("one/web", ["10.244.1.3", "10.244.2.3/n2"], clusterIP="10.96.0.1")
    spec = {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 80}]}]}
    metadata = {"name": "p", "namespace": "one"}
    cluster.put({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
    cluster.compile()
    kernel = Kernel(pins, FLOWS)
    empty = kernel.read()
    assert all(not empty[name].entries for name in NAMES)
    kernel.write(plan(empty, cluster.before.tables))
    assert sum(kernel.writes.values()) > 80
    again = Kernel(pins, FLOWS)
    found = again.read()
    assert {name: dict(found[name].entries) for name in NAMES} == {
        name: dict(cluster.table(name).entries) for name in NAMES
    }
    assert plan(found, cluster.before.tables) == []
    cluster.delete_pod("one/a")
    cluster.remove("Service", "one/web")
    cluster.remove("NetworkPolicy", "one/p")
    cluster.compile()
    again.write(plan(found, cluster.before.tables))
    assert {name: dict(again.read()[name].entries) for name in NAMES} == {
        name: dict(cluster.table(name).entries) for name in NAMES
    }
    assert again.sizes["slots"] == 1024


def test_an_endpoint_has_its_table_of_flows_as_long_as_it_is_there(pins: Path) -> None:
    cluster = Cluster()
    for name in ("one/a", "one/b"):
        cluster.pod(name, {"app": "a"})
    cluster.compile()
    kernel = Kernel(pins, FLOWS)
    kernel.write(plan(kernel.read(), cluster.before.tables))
    numbers = {endpoint.id for endpoint in cluster.endpoints.values()}
    with Map.open(pins / "maps" / "conntrack") as conntrack:
        tables = FlowTables(conntrack, FLOWS)
        assert tables.endpoints() == numbers and len(numbers) == 2
        ids = {number: table.id for number, table in tables.all()}
        cluster.relabel("one/a", {"app": "c"})
        before = kernel.read()
        cluster.compile()
        kernel.write(plan(before, cluster.before.tables))
        assert {number: table.id for number, table in tables.all()} == ids, "its flows outlive a change of policy"
        lost = numbers.pop()
        tables.remove(lost)
        tables.add(max(ids) + 1)
        kernel.write(plan(kernel.read(), cluster.before.tables))
        assert tables.endpoints() == set(ids), "what a torn change left is put right"
        cluster.delete_pod("one/a")
        before = kernel.read()
        cluster.compile()
        kernel.write(plan(before, cluster.before.tables))
        assert tables.endpoints() == {endpoint.id for endpoint in cluster.endpoints.values()}


def foreign(name: str, number: int) -> tuple[bytes, bytes]:
    """An entry of somebody else's, which no packet ever asks for."""
    match name:
        case "policy":
            return layout.PolicyKey(96, 1 << 31, number, 0, 6, 1).pack(), layout.PolicyRule(1, 2).pack()
        case "identities":
            address = pack(f"198.51.{100 + number // 256}.{number % 256}")
            return layout.PrefixKey(128, address).pack(), layout.Identity(layout.IDENTITY_WORLD).pack()
        case "services":
            return layout.ServiceKey(pack("198.51.100.1"), number + 1, 6, 0).pack(), layout.Service().pack()
        case _:
            return layout.Number((1 << 30) + number).pack(), layout.Backend(pack("198.51.100.1")).pack()


def fill(pins: Path, name: str, room: int) -> None:
    """So that the map has room for so many more entries."""
    with Map.open(pins / "maps" / name) as table:
        for number in range(table.definition.entries - room - len(list(table.items()))):
            if name == "conntrack":
                FlowTables(table, replace(FLOWS, entries=1)).add((1 << 30) + number)
            else:
                table.put(*foreign(name, number))


def turned(kernel: Kernel) -> tuple[Cluster, Tables, Tables]:
    """A node, and two states of it, of which each has entries in every map that the other has not."""
    cluster = Cluster(sizes=kernel.sizes)
    for name in ("one/a", "one/b"):
        cluster.pod(name, {"app": "a"})
    for name in "cde":
        cluster.pod(f"one/{name}", {"app": min(name, "d")}, node="n2")

    def put(allowed: str, denied: str, port: int) -> None:
        friends, others = ({"fromEndpoints": [{"matchLabels": {"app": app}}]} for app in (allowed, denied))
        ports = {"toPorts": [{"ports": [{"port": str(port)}]}]}
        spec = {"endpointSelector": {}, "ingress": [friends], "ingressDeny": [others, friends | ports]}
        spec["egress"] = [{"toCIDR": [f"203.0.113.{port}/32"]} | ports]
        metadata = {"name": "p", "namespace": "one"}
        cluster.put({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec})

    put("c", "d", 80)
    cluster.service("one/web", ["10.244.1.3"], clusterIP="10.96.0.1")
    before = cluster.compile().tables
    put("d", "c", 81)
    cluster.relabel("one/c", {"app": "d"})
    cluster.relabel("one/d", {"app": "c"})
    cluster.pod("one/late", {"app": "a"})
    cluster.remove("Service", "one/web")
    cluster.service("one/new", ["10.244.1.4", "10.244.2.3/n2"], clusterIP="10.96.0.2")
    return cluster, before, cluster.compile().tables


@pytest.mark.parametrize("name", ["policy", "identities", "services", "backends", "conntrack"])
def test_a_write_that_the_kernel_refuses_half_way_opens_nothing_and_the_next_repairs_it(pins: Path, name: str) -> None:
    """Somebody else has filled the map, so the agent could not know."""
    kernel = Kernel(pins, FLOWS)
    cluster, before, after = turned(kernel)
    for refused in itertools.count():
        kernel.write(plan(kernel.read(), before))
        fill(pins, name, room=refused)
        try:
            kernel.write(plan(before, after))
            break
        except BpfError as error:
            assert error.name == name and error.errno in (errno.E2BIG, errno.ENOSPC)
        torn = kernel.read()
        check_torn(before, torn, after)
        between = True
        while between:  # as the agent does
            cluster.before = replace(cluster.before, tables=kernel.read())
            desired = cluster.recompile(Memory())
            assert not desired.overflows
            check_between(cluster.before.tables, desired.tables, cluster.sizes)
            kernel.write(plan(cluster.before.tables, desired.tables))
            between = desired.between
        found = kernel.read()
        for table in NAMES:
            assert dict(found[table].entries) == dict(desired.tables[table].entries)
        for table in ("policy", "identities", "endpoints"):
            assert desired.tables[table] == after[table]
        with Map.open(pins / "maps" / "conntrack") as conntrack:
            assert len(FlowTables(conntrack, FLOWS).endpoints()) == len(after["endpoints"].entries)
    assert refused > 0


def test_routes_and_the_rule_are_made_so_and_stay() -> None:
    node, other = Namespace(), Namespace()
    try:
        node.link("eth0", "eth0", other)
        node.ip("addr", "add", "192.168.86.21/24", "dev", "eth0")
        for end in (node, other):
            end.ip("link", "set", "eth0", "up")
        with node.entered():
            netlink = Netlink()
        with netlink:
            uplink = netlink.link("eth0")
            assert uplink is not None
            cluster = Cluster()
            routes = cluster.compile().routes
            wanted = routes_of(routes, uplink.index, 1, {pack("10.244.1.3"): uplink.index})
            refused: list[str] = []
            stale = Route(Prefix.parse("10.244.9.0/24"), uplink.index)
            netlink.put_route(stale)
            assert sync_routes(netlink, wanted, refused) == len(wanted) + 1
            assert netlink.routes() == wanted
            assert sync_routes(netlink, wanted, refused) == 0
            assert (sync_rules(netlink, routes), sync_rules(netlink, routes)) == (1, 0)
            both = routes | {PROXY_ROUTE_V6}
            assert sync_routes(netlink, routes_of(both, uplink.index, 1, {}), refused) > 0
            assert (sync_rules(netlink, both), sync_rules(netlink, both)) == (1, 0)
            assert {rule.v6 for rule in netlink.rules()} == {False, True}
            assert "local default dev lo" in node.ip("-6", "route", "show", "table", "1053")
            assert "fwmark 0x53000000/0xff000000 lookup 1053" in node.ip("-6", "rule")
            assert sync_rules(netlink, routes) == 1
            sync_routes(netlink, wanted, refused)
            gone = wanted | {Route(Prefix.parse("10.244.7.0/24"), 4711)}
            assert sync_routes(netlink, gone, refused) == 0, "a device that is not there is no reason to stop"
            assert refused == ["no route to 10.244.7.0/24: No such device"]
    finally:
        node.close()
        other.close()


def test_a_neighbour_is_kept_known_whether_or_not_anything_is_sent_to_it() -> None:
    near, far = Namespace(), Namespace()
    try:
        _keep(near, far)
    finally:
        near.close()
        far.close()


def _keep(near: Namespace, far: Namespace) -> None:
    near.link("nst0", "eth0", far)
    near.ip("addr", "add", "192.168.86.21/24", "dev", "nst0")
    far.ip("addr", "add", "192.168.86.22/24", "dev", "eth0")
    other = pack("192.168.86.22")
    refused: list[str] = []
    with _netlink(near) as node, _netlink(far) as there:
        device, peer = node.link("nst0"), there.link("eth0")
        assert device is not None and peer is not None
        assert (
            sync_neighbours(node, device.index, [other], refused),
            sync_neighbours(node, device.index, [other], refused),
        ) == (1, 0)
        assert node.kept_neighbours(device.index) == {other}

        def known() -> bool:
            return peer.mac.hex(":") in near.ip("neigh", "show", "192.168.86.22", "dev", "nst0")

        wait_for("the MAC", known)
        near.ip("neigh", "add", "192.168.86.77", "lladdr", "02:00:00:00:00:77", "dev", "nst0")
        assert sync_neighbours(node, device.index, [], refused) == 1
        assert node.kept_neighbours(device.index) == set() and not known()
        assert "192.168.86.77" in near.ip("neigh", "show", "dev", "nst0"), "what is not ours stays"
        assert not node.forget_neighbour(device.index, other)


def _netlink(namespace: Namespace) -> Netlink:
    with namespace.entered():
        return Netlink()

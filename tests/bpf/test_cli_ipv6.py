"""`netstack explain` of IPv6: what it says is what packets do, and the policy that it writes lets them pass.

Pods have the addresses that the CNI plugin does not give yet; what the agent would write of them, its own compiler says
here.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bpf.home import Home, home
from bpf.namespaces import Namespace
from bpf.test_cli_inquire import answering
from instruments.cluster import Cluster
from netstack.agent import report
from netstack.agent.desired import Place
from netstack.agent.register import Record, Register
from netstack.cli.explain import render
from netstack.cli.inquire import Inquiry, parse_destination
from netstack.core.address import Prefix, pack
from netstack.core.table import Op
from netstack.kernel.attach import TrafficControl, attach_pinned
from netstack.source.snapshot import Snapshot

pytestmark = pytest.mark.root

NODE, ROUTER, WORLD, GATEWAY = "fd00:86::21", "fd00:86::1", "2001:db8::7", "fe80::1"
PODS = {"a": "fd00:1::3", "b": "fd00:1::4"}
PORT = 7


@dataclass
class Six:
    """A node of namespaces: pods a and b, and a router that is the world too. `answers`: the agent's."""

    home: Home
    cluster: Cluster
    pods: dict[str, Namespace]
    register: Register
    run: Path
    answers: dict[str, Any]

    def apply(self) -> None:
        """What the agent does with the objects that are there."""
        desired = self.cluster.compile()
        for change in self.cluster.changes:
            with self.home.map(change.table) as table:
                if change.op is Op.PUT:
                    table.put(change.key, change.value)
                else:
                    table.delete(change.key)
        snapshot = Snapshot(dict(self.cluster.objects))
        self.answers["names"] = report.names(desired, snapshot, self.register, "1")
        self.answers["identities"] = report.identities(desired)

    def explain(self, source: str, to: str, protocol: str) -> tuple[bool, str]:
        """Whether it is allowed, and what is said."""
        with self.home.namespace.entered(), Inquiry(self.home.settings, self.run) as inquiry:
            (found,) = inquiry.explain(source, *parse_destination(to), protocol, "one")
        return found.allowed, render(found)


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Six]:
    with ExitStack() as stack:

        def namespace() -> Namespace:
            made = Namespace()
            stack.callback(made.close)
            return made

        node, router = namespace(), namespace()
        node.link("eth0", "eth0", router)
        for netns, addresses in ((node, (f"{NODE}/64",)), (router, (f"{ROUTER}/64", f"{WORLD}/128"))):
            for address in addresses:
                netns.ip("addr", "add", address, "dev", "eth0", "nodad")
        node.ip("route", "add", "default", "via", ROUTER)
        router.ip("route", "add", "fd00:1::/64", "via", NODE)
        with node.entered():
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        made = stack.enter_context(home(tmp_path_factory.mktemp("node"), node))
        made.load()
        pods = {name: namespace() for name in PODS}
        records = tuple(wire(made, number, name, pods[name]) for number, name in enumerate(PODS, 1))
        with node.entered():
            uplink = socket.if_nametoindex("eth0")
        place = Place("n1", (pack(NODE),), (Prefix.parse("fd00:1::/64"),), uplink)
        cluster = Cluster(place=place)
        for record in records:
            cluster.pod(f"one/{record.pod}", {"app": record.pod}, address=record.address)
            cluster.endpoints[record.local().ref] = record.local()
        for netns in (*pods.values(), router, node):
            with netns.entered():
                stack.enter_context(socket.create_server(("::", PORT), family=socket.AF_INET6))
        answers: dict[str, Any] = {}
        run = tmp_path_factory.mktemp("run")
        stack.enter_context(answering(run, {"agent": answers}))
        six = Six(made, cluster, pods, Register("", records=records), run, answers)
        six.apply()
        yield six


def wire(made: Home, number: int, name: str, pod: Namespace) -> Record:
    """What CNI ADD does, with IPv6; the endpoint as the agent keeps it."""
    device, address = f"pod-{name}", PODS[name]
    made.namespace.link(device, "eth0", pod)
    with pod.entered(), TrafficControl() as traffic:
        inside = traffic.link("eth0")
    with made.namespace.entered(), TrafficControl() as traffic:
        outside = traffic.link(device)
        assert inside is not None and outside is not None
        attach_pinned(traffic, made.pins, outside.index)
        traffic.put_neighbour(outside.index, pack(address), inside.mac)
    made.namespace.ip("route", "add", f"{address}/128", "dev", device)
    pod.ip("addr", "add", f"{address}/128", "dev", "eth0", "nodad")
    pod.ip("route", "add", "default", "via", GATEWAY, "dev", "eth0", "onlink")
    with pod.entered(), TrafficControl() as traffic:
        traffic.put_neighbour(inside.index, pack(GATEWAY), outside.mac)
    made.flows().add(number)
    macs = {"mac": inside.mac.hex(), "host_mac": outside.mac.hex()}
    return Record(name, "eth0", device, number, address, "one", name, {"app": name}, ifindex=outside.index, **macs)


def connects(pod: Namespace, address: str) -> bool:
    with pod.entered():
        near = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    with near:
        near.settimeout(0.5)
        return near.connect_ex((address, PORT)) == 0


def pings(pod: Namespace, address: str) -> bool:
    return pod.run("ping", "-c", "1", "-W", "1", address, check=False).returncode == 0


def policy(name: str, pod: str, direction: str) -> dict[str, Any]:
    """It denies the pod all of a direction."""
    metadata = {"name": name, "namespace": "one"}
    spec = {"podSelector": {"matchLabels": {"app": pod}}, "policyTypes": [direction]}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


Passes = Callable[[Namespace, str], bool]


@pytest.mark.parametrize(("protocol", "passes"), [("TCP", connects), ("ICMP", pings)])
@pytest.mark.parametrize(
    ("to", "denied"), [("pod b", "Egress"), ("pod b", "Ingress"), ("the node", "Egress"), ("the world", "Egress")]
)
def test_what_is_denied_passes_with_the_policy_that_explain_writes(
    six: Six, to: str, denied: str, protocol: str, passes: Passes
) -> None:
    address = {"pod b": PODS["b"], "the node": NODE, "the world": WORLD}[to]
    pod, asked = six.pods["a"], f"[{address}]:{PORT}" if protocol == "TCP" else address
    assert passes(pod, address)
    allowed, text = six.explain("pod/a", asked, protocol)
    assert allowed, text

    six.cluster.put(policy("shut", "a" if denied == "Egress" else "b", denied))
    six.apply()
    assert not passes(pod, address)
    allowed, text = six.explain("pod/a", asked, protocol)
    assert not allowed and "NetworkPolicy one/shut selects it" in text, text
    assert f", {'TCP 7' if protocol == 'TCP' else 'ICMPv6'}\n" in text

    written = yaml.safe_load(text.partition("\nthis policy would allow it:\n")[2])
    six.cluster.put(written)
    six.apply()
    assert passes(pod, address), text
    allowed, text = six.explain("pod/a", asked, protocol)
    name = written["metadata"]["name"]
    assert allowed and f" by CiliumNetworkPolicy one/{name}: spec." in text, text

    six.cluster.remove("CiliumNetworkPolicy", f"one/{name}")
    six.apply()
    assert not passes(pod, address)
    six.cluster.remove("NetworkPolicy", "one/shut")
    six.apply()

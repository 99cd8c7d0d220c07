"""The topology on which services are measured, and the ways in which it can balance.

    client (the LAN) ---- eth0  node  veth ---- two servers, pods of this node
                                      veth ---- caller, one more pod

Each way to balance has a copy of its own, so that nothing of one is in another: no program, no rule, not even a hook of
connection tracking. Services have a ClusterIP, which the caller asks, and a LoadBalancer address, which the client asks
and whose way to the node is a route, as behind a router (ARP is no part of these figures). In the copy called `direct`
the very same addresses are routed by the node to the servers, half of them to each, and belong to them.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from bench import rulesets
from bench.rulesets import Balanced, Server
from bpf.home import Home, home
from bpf.namespaces import Namespace
from lab.image import cache
from lab.shell import run
from netstack.agent.apply import Kernel
from netstack.agent.desired import Before, Place, compile_all
from netstack.agent.identities import LocalEndpoint
from netstack.agent.order import plan
from netstack.core.address import Prefix, pack
from netstack.core.ref import Ref
from netstack.kernel import layout
from netstack.kernel.attach import TrafficControl, attach_pinned
from netstack.kernel.bpf import Map
from netstack.source.parse import parse
from netstack.source.snapshot import Snapshot

SOURCE = Path(__file__).with_name("load.c")
NODE, CLIENT, GATEWAY = "192.168.86.21", "192.168.86.50", "169.254.1.1"
SERVERS = ("10.244.1.3", "10.244.1.4")
CALLER = "10.244.1.5"
PORT, TARGET_PORT = 80, 8080
CLIENTS, CLIENT_COUNT = "10.200.0.0/16", 65536
"""The addresses from which the client's connections come: many homes' worth, so that no port is used twice in a row."""
CLUSTER_IPS, ADDRESSES = IPv4Address("10.97.0.0"), IPv4Address("172.20.0.0")
HALF = 1 << 15
"""Even services' addresses are in the lower half of their /16, odd ones' in the upper."""
PODS = (*SERVERS, CALLER)


@dataclass(frozen=True, slots=True)
class Load:
    """What the load generator reported (load.c)."""

    done: int
    failed: int
    seconds: float
    bytes: int
    busy_us: int


def generator() -> Path:
    """The load generator, compiled if its source is newer."""
    program = cache() / "bench-load"
    if not program.exists() or program.stat().st_mtime < SOURCE.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        run(["gcc", "-O2", "-Wall", "-Werror", "-o", str(program), str(SOURCE)])
    return program


def services(count: int, protocol: str) -> list[Balanced]:
    def at(base: IPv4Address, index: int) -> str:
        return str(base + index % 2 * HALF + index // 2)

    return [Balanced(f"s{i}", at(CLUSTER_IPS, i), at(ADDRESSES, i), protocol, PORT) for i in range(count)]


class Rig:
    """One copy of the topology: plain routing, no services yet."""

    name = "direct"

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.client, self.node = self.namespace(), self.namespace()
        self.pods = {address: self.namespace() for address in PODS}
        self.client.link("eth0", "eth0", self.node)
        self.client.ip("addr", "add", f"{CLIENT}/24", "dev", "eth0")
        self.client.ip("route", "add", "local", CLIENTS, "dev", "lo")
        self.client.ip("route", "add", "default", "via", NODE)
        self.node.ip("addr", "add", f"{NODE}/24", "dev", "eth0")
        self.node.ip("route", "add", CLIENTS, "via", CLIENT)
        for namespace in (self.client, self.node, *self.pods.values()):
            self._tune(namespace)
        for address, pod in self.pods.items():
            self._plug(address, pod)

    def namespace(self) -> Namespace:
        made = Namespace()
        self.stack.callback(made.close)
        return made

    @staticmethod
    def _tune(namespace: Namespace) -> None:
        """tcp_no_metrics_save: what one round learned of the path would help the next. The rest is room."""
        settings = {"ip_forward": 1, "tcp_no_metrics_save": 1, "tcp_max_syn_backlog": 8192}
        with namespace.entered():
            for name, value in settings.items():
                Path("/proc/sys/net/ipv4", name).write_text(str(value))
            Path("/proc/sys/net/core/somaxconn").write_text("8192")
            Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("10000 65535")

    def device(self, address: str) -> str:
        return f"pod{PODS.index(address)}"

    def _plug(self, address: str, pod: Namespace) -> None:
        """What CNI ADD does, without programs: a veth, an address, the gateway as the one neighbour."""
        device = self.device(address)
        self.node.link(device, "eth0", pod)
        pod.ip("addr", "add", f"{address}/32", "dev", "eth0")
        pod.ip("route", "add", GATEWAY, "dev", "eth0")
        pod.ip("route", "add", "default", "via", GATEWAY)
        with pod.entered(), TrafficControl() as inside, self.node.entered(), TrafficControl() as outside:
            near, far = inside.link("eth0"), outside.link(device)
            assert near is not None and far is not None
            inside.put_neighbour(near.index, pack(GATEWAY), far.mac)
            outside.put_neighbour(far.index, pack(address), near.mac)
        self.node.ip("route", "add", address, "dev", device)

    def serve(self) -> None:
        """Start the servers."""
        for address in SERVERS:
            argv = [str(generator()), "serve", str(PORT), str(TARGET_PORT)]
            server = subprocess.Popen(self.inside(self.pods[address], argv), stdout=subprocess.PIPE, text=True)
            self.stack.callback(_end, server)
            assert server.stdout is not None
            if server.stdout.readline() != "serving\n":
                raise RuntimeError(f"the server at {address} ended with {server.wait()}")

    def inside(self, namespace: Namespace, argv: Sequence[str]) -> list[str]:
        """The command line that runs argv in a namespace of this rig."""
        return ["nsenter", f"--net={namespace.path}", "--", *argv]

    def balance(self, wanted: Sequence[Balanced]) -> None:
        """Have these services, for good. Here: route their addresses to the servers, half of them to each."""
        for index, address in enumerate(SERVERS):
            for base in (CLUSTER_IPS, ADDRESSES):
                self.node.ip(
                    "route", "add", f"{base + index * HALF}/17", "via", address, "dev", self.device(address), "onlink"
                )
                self.pods[address].ip("route", "add", "local", f"{base}/16", "dev", "lo")

    def load(self, kind: str, targets: Sequence[str], *, seconds: float, caller: bool = False) -> Load:
        """One load (load.c) from the LAN's client, or from the caller pod. Raises CommandFailed."""
        parallel = "1" if kind == "stream" else "32"
        sources = ["-"] if caller else [CLIENTS.partition("/")[0], str(CLIENT_COUNT)]
        argv = [str(generator()), kind, parallel, f"{seconds:g}", *sources]
        where = self.pods[CALLER] if caller else self.client
        lines = "".join(f"{target} {PORT}\n" for target in targets)
        command = self.inside(where, argv) if caller else ["nsenter", f"--net={where.path}", "--", *argv]
        said = run(command, stdin=lines, timeout_s=seconds + 30).stdout
        return Load(**json.loads(said))


class Iptables(Rig):
    name = "iptables"

    def balance(self, wanted: Sequence[Balanced]) -> None:
        text = rulesets.iptables(wanted, [Server(address, TARGET_PORT) for address in SERVERS])
        run(["nsenter", f"--net={self.node.path}", "iptables-legacy-restore"], stdin=text, timeout_s=300)
        _forget_soon(self.node)


class Nftables(Rig):
    name = "nftables"

    def balance(self, wanted: Sequence[Balanced]) -> None:
        for text in rulesets.nftables(wanted, [Server(address, TARGET_PORT) for address in SERVERS]):
            run(["nsenter", f"--net={self.node.path}", "nft", "-f", "-"], stdin=text, timeout_s=300)
        _forget_soon(self.node)


def _forget_soon(node: Namespace) -> None:
    """A table of connections that is full would refuse new ones; closed ones go after 10 s, as netstack's do."""
    with node.entered():
        Path("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait").write_text("10")


class Netstack(Rig):
    """The product: programs by its loader, tables by its agent's compiler and writer."""

    name = "netstack"

    def __init__(self, stack: ExitStack) -> None:
        super().__init__(stack)
        self.policies: list[dict[str, Any]] = []
        """More objects that the compiler gets: policies, and the pods that they name."""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="netstack-bench-")))
        self.home: Home = stack.enter_context(home(folder, self.node))

    def inside(self, namespace: Namespace, argv: Sequence[str]) -> list[str]:
        """Pods' processes are in the cgroup whose sockets are translated."""
        join = ["sh", "-c", 'echo $$ > "$0"; exec "$@"', f"{self.home.settings.cgroup}/cgroup.procs"]
        return [*join, *super().inside(namespace, argv)]

    def balance(self, wanted: Sequence[Balanced]) -> None:
        self.home.settings = replace(self.home.settings, sizes=sizes(len(wanted)))
        self.home.load()
        endpoints = tuple(self._endpoint(number, address) for number, address in enumerate(PODS, 1))
        with self.node.entered(), TrafficControl() as traffic:
            uplink = traffic.link("eth0")
            assert uplink is not None
        place = Place(
            node="n1",
            addresses=(pack(NODE),),
            pod_cidrs=(Prefix.parse("10.244.1.0/24"),),
            uplink=uplink.index,
            ranges=(Prefix.parse(rulesets.PODS), Prefix.parse(rulesets.SERVICES)),
        )
        kernel = Kernel(self.home.pins, self.home.settings.definition("flows"))
        before = Before(kernel.read())
        desired = compile_all(snapshot(wanted, self.policies), endpoints, place, before, kernel.sizes)
        if desired.problems:
            raise RuntimeError("; ".join(desired.problems[:3]))
        kernel.write(plan(before.tables, desired.tables))

    def _endpoint(self, number: int, address: str) -> LocalEndpoint:
        with self.node.entered(), TrafficControl() as outside, self.pods[address].entered(), TrafficControl() as inside:
            far, near = outside.link(self.device(address)), inside.link("eth0")
            assert far is not None and near is not None
            attach_pinned(outside, self.home.pins, far.index)
        return LocalEndpoint(number, pack(address), Ref("Pod", "bench", f"p{number}"), far.index, near.mac, far.mac)

    def megabytes(self) -> float:
        """Memory of all maps that the load pinned, by the kernel's own account."""
        total = 0
        for path in sorted((self.home.pins / "maps").iterdir()):
            with Map.open(path) as opened:
                total += _memory(opened)
        total += sum(_memory(table) for _, table in self.home.flows().all())
        return total / 1e6


def _memory(table: Map) -> int:
    """Bytes."""
    facts = Path(f"/proc/self/fdinfo/{table.fd}").read_text()
    return next(int(line.split()[1]) for line in facts.splitlines() if line.startswith("memlock:"))


def sizes(count: int) -> dict[str, int]:
    """Entries of the maps that `count` services need; {} while the product's defaults hold them.

    A service has an entry for each of its port's three frontends and for its addresses in both scopes: 7. Two backends
    have 67 slots (netstack.agent.maglev).
    """
    needed = {"services": 7 * count, "slots": 67 * count}
    return {
        name: 1 << (entries - 1).bit_length() for name, entries in needed.items() if entries > layout.MAPS[name].entries
    }


def objects(wanted: Sequence[Balanced]) -> Iterator[dict[str, Any]]:
    """The services as the API server would hand them out, with a slice each, and the node."""
    yield {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n1"},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE}]},
    }
    for one in wanted:
        protocol = one.protocol.upper()
        yield {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": one.name, "namespace": "bench"},
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": one.cluster_ip,
                "clusterIPs": [one.cluster_ip],
                "externalTrafficPolicy": "Local",
                "allocateLoadBalancerNodePorts": False,
                "ports": [{"port": one.port, "protocol": protocol, "targetPort": TARGET_PORT}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": one.address}]}},
        }
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": one.name,
                "namespace": "bench",
                "labels": {"kubernetes.io/service-name": one.name},
            },
            "addressType": "IPv4",
            "ports": [{"name": "", "protocol": protocol, "port": TARGET_PORT}],
            "endpoints": [
                {"addresses": [address], "nodeName": "n1", "conditions": {"ready": True}} for address in SERVERS
            ],
        }


def snapshot(wanted: Sequence[Balanced], more: Sequence[dict[str, Any]] = ()) -> Snapshot:
    parsed = [one for one in map(parse, (*objects(wanted), *more)) if one is not None]
    return Snapshot({one.meta.ref: one for one in parsed})


WAYS: dict[str, type[Rig]] = {way.name: way for way in (Rig, Netstack, Iptables, Nftables)}


@contextmanager
def rigs(names: Sequence[str], wanted: Sequence[Balanced]) -> Iterator[dict[str, Rig]]:
    """A rig for each of these ways to balance, with these services, serving."""
    with ExitStack() as stack:
        made = {}
        for name in names:
            rig = WAYS[name](stack)
            rig.balance(wanted)
            rig.serve()
            made[name] = rig
        yield made


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()

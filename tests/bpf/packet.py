"""The instrument `Packet`: a scapy frame in, the real program, verdict and frame out.

Programs are loaded from files/bpf, once, with maps of their own that are pinned nowhere. Every run checks for free:
exactly one verdict was counted, a drop is a drop, a frame that passes has right lengths and checksums, and a frame that
is passed on untouched is the same to the byte.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet as Frame
from scapy.packet import Raw

from bpf.namespaces import Namespace
from netstack.core.address import ANY, Prefix, pack
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l
from netstack.kernel.bpf import Map, Program
from netstack.kernel.flows import FlowTables
from netstack.kernel.loader import LoaderSettings, load_program
from netstack.kernel.programs import Compiled
from netstack.kernel.ring import Ring

ROOT = Path(__file__).parents[2]
# As lab.image.cache(), but without all that the lab imports: a guest of another architecture does not have all of it.
CACHE = Path(os.environ.get("NETSTACK_CACHE") or Path.home() / ".cache" / "netstack")
SETTINGS = LoaderSettings(
    bpf_source=str(ROOT / "files" / "bpf"),
    cache=str(CACHE / "programs"),
    sizes=dict.fromkeys(("slots", "services", "backends", "identities", "policy", "fqdn", "nat"), 4096)
    | {"flows": 1024},
)
OK, SHOT, REDIRECT = 0, 2, 7

NODE, OTHER_NODE = "192.168.86.21", "192.168.86.22"
CLIENT, VIP = "192.168.86.50", "192.168.86.18"
POD, NEIGHBOUR, REMOTE = "10.244.1.3", "10.244.1.4", "10.244.2.3"
SERVICE = "10.96.0.10"
GATEWAY = "169.254.1.1"
POD_MAC, HOST_MAC = "02:00:00:00:01:03", "02:00:00:00:01:fe"
NODE_MAC, OTHER_NODE_MAC, CLIENT_MAC = "02:00:00:00:00:21", "02:00:00:00:00:22", "02:00:00:00:00:50"
POD_ID, NEIGHBOUR_ID = 11, 12
POD_IDENTITY, NEIGHBOUR_IDENTITY, REMOTE_IDENTITY = 1001, 1002, 1003


@dataclass(frozen=True, slots=True)
class Result:
    verdict: Verdict
    action: int
    frame: Frame


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def monotonic_ns(offset_s: float = 0) -> int:
    return time.monotonic_ns() + int(offset_s * 1e9)


class Packet:
    """One node: two pods, an uplink, tables to write and programs to run."""

    def __init__(self, compiled: Compiled, namespace: Namespace) -> None:
        self.namespace = namespace
        self.uplink, self.pod, self.neighbour = map(self.device, ("uplink", "pod", "neighbour"))
        self.maps = {name: SETTINGS.create(name) for name in l.MAPS}
        self.tables = FlowTables(self.maps["conntrack"], SETTINGS.definition("flows"))
        self.compiled = compiled
        self.programs: dict[str, Program] = {}
        self.generation = 1
        self._written: set[tuple[str, bytes]] = set()  # elements of arrays, which cannot be deleted
        self._populate()

    def reset(self) -> None:
        """Make the tables as they were at first. The programs stay loaded: that is a walk of the verifier each."""
        for name, table in self.maps.items():
            if l.MAPS[name].kind not in (l.ARRAY, l.PERCPU_ARRAY, l.RINGBUF, l.HASH_OF_MAPS):
                table.delete_batch([key for key, _ in table.items()])
        for endpoint, flows in self.tables.all():
            with flows:
                if endpoint in (POD_ID, NEIGHBOUR_ID):  # emptied: to take one away waits for every processor
                    flows.delete_batch([key for key, _ in flows.items()])
                else:
                    self.tables.remove(endpoint)
        for name, key in self._written:
            self.maps[name].put(key, bytes(l.MAPS[name].value.size()))
        self._written.clear()
        counters = self.maps["counters"]
        for key, values in list(counters.items()):
            if any(values):
                counters.put(key, bytes(len(values)))
        events = self.maps["events"]
        with closing(Ring(Map(os.dup(events.fd), events.name))) as ring:
            ring.read()
        self._populate()

    def device(self, name: str) -> int:
        """ifindex"""
        with self.namespace.entered():
            return socket.if_nametoindex(name)

    def close(self) -> None:
        for opened in (*self.maps.values(), *self.programs.values()):
            opened.close()

    # tables

    def put(self, name: str, key: l.Record, value: l.Record) -> None:
        spec = l.MAPS[name]
        assert type(key) is spec.key and type(value) is spec.value
        self.maps[name].put(key.pack(), value.pack())
        if spec.kind == l.ARRAY:
            self._written.add((name, key.pack()))

    def entries(self, name: str) -> dict[l.Record, l.Record]:
        spec = l.MAPS[name]
        return {spec.key.unpack(key): spec.value.unpack(value) for key, value in self.maps[name].items()}

    def flows(self, endpoint: int = POD_ID) -> dict[l.Record, l.Record]:
        """What conntrack knows of an endpoint."""
        return {l.FlowKey.unpack(key): l.Flow.unpack(value) for key, value in self._flows(endpoint).items()}

    def put_flow(self, key: l.FlowKey, flow: l.Flow) -> None:
        self._flows(key.endpoint).put(key.pack(), flow.pack())

    def _flows(self, endpoint: int) -> Map:
        table = self.tables.open(endpoint)
        assert table is not None
        return table

    def set_generation(self, generation: int, *, host: bool = False) -> None:
        self.generation = generation
        self.put("config", l.Number(0), l.Config(
            pack(NODE), pack("10.244.1.0"), 120, pack("fd00::21"), pack("fd00:1::"), 64, self.uplink, generation, host
        ))  # fmt: skip

    def guard(self, enforce: int) -> None:
        """Policies select the node itself."""
        self.tables.add(l.HOST_ENDPOINT)
        itself = l.Endpoint(l.HOST_ENDPOINT, 0, l.IDENTITY_HOST, enforce, bytes(6), bytes(6))
        self.put("endpoints", l.AddressKey(pack(NODE)), itself)
        self.set_generation(self.generation, host=True)

    def endpoint(self, address: str, number: int, identity: int, *, enforce: int = 0, device: int = 0) -> None:
        self.tables.add(number)
        self.put(
            "endpoints",
            l.AddressKey(pack(address)),
            l.Endpoint(number, device or self.pod, identity, enforce, mac(POD_MAC), mac(HOST_MAC)),
        )
        self.identity(f"{address}/128" if ":" in address else f"{address}/32", identity, NODE)

    def identity(self, prefix: str, identity: int, node: str = "") -> None:
        parsed = Prefix.parse(prefix)
        owner = ("fd00::21" if node == NODE else "fd00::22") if ":" in prefix and node else node
        self.put(
            "identities",
            l.PrefixKey(parsed.bits, parsed.address),
            l.Identity(identity, 0, pack(owner) if owner else ANY),
        )

    def rule(
        self,
        action: int,
        peer: int,
        port: int | None = None,
        *,
        endpoint: int = POD_ID,
        direction: int = l.DIRECTION_EGRESS,
        protocol: int | None = 6,
        number: int = 7,
    ) -> None:
        bits = l.POLICY_BITS_ANY if protocol is None else l.POLICY_BITS_PROTO if port is None else l.POLICY_BITS_PORT
        key = l.PolicyKey(bits, endpoint, peer, direction, protocol or 0, port or 0)
        self.put("policy", key, l.PolicyRule(number, action))

    def service(
        self,
        address: str,
        port: int,
        backends: list[tuple[str, int, str]],
        *,
        scope: int = l.SCOPE_CLUSTER,
        protocol: int = 6,
        number: int = 1,
        affinity_s: int = 0,
    ) -> None:
        """`backends`: (address, port, node); the slots are theirs in turn."""
        first = number * 16
        for i, (at, at_port, node) in enumerate(backends):
            identifier = number * 16 + i + 1
            self.put("backends", l.Number(identifier), l.Backend(pack(at), pack(node) if node else ANY, at_port, 0))
            self.put("slots", l.Number(first + i), l.Number(identifier))
        wanted = ANY if not address else pack(address)
        self.put(
            "services",
            l.ServiceKey(wanted, port, protocol, scope),
            l.Service(number, first, len(backends), affinity_s, 0, len(backends)),
        )
        if address:
            self.put("services", l.ServiceKey(wanted, 0, 0, scope), l.Service())

    def vip(self, address: str, deadline: int) -> None:
        self.put("vips", l.VipKey(pack(address), self.uplink), l.Vip(deadline, 1, mac(NODE_MAC)))

    def counts(self) -> dict[Verdict, int]:
        return {Verdict(number): packets for number, packets in self.maps["counters"].sums().items() if packets}

    # packets

    def program(self, name: str) -> Program:
        """The program over these tables; loaded when it is first asked for."""
        if name not in self.programs:
            self.programs[name] = load_program(name, self.compiled, self.maps)
        return self.programs[name]

    def run(self, program: str, frame: Frame, *, device: int, came_by: int = 0, translated: bool = False) -> Result:
        """The frame through the program on `device`, having entered the node by `came_by` (0 = made here).
        `translated`: the verdict is a policy's, yet a service was translated on the way."""
        data = bytes(frame)
        before = self.counts()
        ((action, out),) = self._run(program, [data], device, came_by)
        after = self.counts()
        (verdict,) = [v for v in after if after[v] != before.get(v, 0)]
        assert after[verdict] == before.get(verdict, 0) + 1
        assert verdict.dropped == (action == SHOT)
        result = Ether(out)
        if not verdict.dropped:
            assert len(out) == len(data)
            _assert_checksums(result)
            if verdict in (Verdict.FORWARDED, Verdict.REPLY) and action == OK:
                assert (out == data) is not translated
        return Result(verdict, action, result)

    def send(self, program: str, frames: Iterable[bytes], device: int, came_by: int) -> None:
        """Frames through the program, looked at by nobody; `run` looks at one."""
        self._run(program, frames, device, came_by)

    def _run(self, program: str, frames: Iterable[bytes], device: int, came_by: int) -> list[tuple[int, bytes]]:
        """Action and frame of each."""
        loaded = self.program(program)
        context = bytearray(192)
        struct.pack_into("=II", context, 36, came_by, device)  # ingress_ifindex, ifindex of struct __sk_buff
        with self.namespace.entered():
            return [loaded.test_run(frame, bytes(context))[:2] for frame in frames]

    def many_from_lan(self, packet: Frame, source_ports: Iterable[int]) -> list[str]:
        """Where copies of one TCP packet go that differ in their source port, all of them passed on and counted alike:
        what `from_lan` shows of one, for many at the cost of a few."""
        data = bytes(Ether(src=CLIENT_MAC, dst=NODE_MAC) / packet)
        frames = [_from_port(data, port) for port in source_ports]
        before = self.counts()
        ran = self._run("uplink_ingress", frames, self.uplink, self.uplink)
        after = self.counts()
        passed = {verdict: after[verdict] - before.get(verdict, 0) for verdict in after}
        assert sum(passed.values()) == len(ran)
        assert not any(verdict.dropped for verdict, packets in passed.items() if packets)
        assert all(action != SHOT and _sum_of_tcp(out) == 0 for action, out in ran)
        return [socket.inet_ntoa(out[30:34]) for _, out in ran]

    def from_pod(self, packet: Frame, *, device: int = 0, translated: bool = False) -> Result:
        frame, at = Ether(src=POD_MAC, dst=HOST_MAC) / packet, device or self.pod
        return self.run("pod_ingress", frame, device=at, came_by=at, translated=translated)

    def to_pod(self, packet: Frame, *, came_by: int | None = None, device: int = 0, translated: bool = False) -> Result:
        frame, door = Ether(src=HOST_MAC, dst=POD_MAC) / packet, self.uplink if came_by is None else came_by
        return self.run("pod_egress", frame, device=device or self.pod, came_by=door, translated=translated)

    def from_lan(self, packet: Frame) -> Result:
        frame = packet if isinstance(packet, Ether) else Ether(src=CLIENT_MAC, dst=NODE_MAC) / packet
        return self.run("uplink_ingress", frame, device=self.uplink, came_by=self.uplink)

    def to_lan(self, packet: Frame, *, came_by: int = 0) -> Result:
        frame = Ether(src=NODE_MAC, dst=CLIENT_MAC) / packet
        return self.run("uplink_egress", frame, device=self.uplink, came_by=came_by)

    def _populate(self) -> None:
        self.set_generation(1)
        self.endpoint(POD, POD_ID, POD_IDENTITY)
        self.endpoint(NEIGHBOUR, NEIGHBOUR_ID, NEIGHBOUR_IDENTITY, device=self.neighbour)
        self.endpoint("fd00:1::3", POD_ID, POD_IDENTITY)
        self.identity("10.244.2.0/24", l.IDENTITY_UNMANAGED, OTHER_NODE)
        self.identity(f"{REMOTE}/32", REMOTE_IDENTITY, OTHER_NODE)
        self.identity(f"{NODE}/32", l.IDENTITY_HOST, NODE)
        self.identity(f"{OTHER_NODE}/32", l.IDENTITY_REMOTE_NODE, OTHER_NODE)
        self.identity("fd00:2::/64", l.IDENTITY_UNMANAGED, OTHER_NODE)


def _ones_complement(data: bytes) -> int:
    """What the checksum field of RFC 1071 has to be for these bytes; 0 if they hold the right one already."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _sum_of_tcp(frame: bytes) -> int:
    """0 if the checksum is right. A frame of IPv4 without options, its TCP of an even length."""
    return _ones_complement(frame[26:34] + struct.pack("!HH", 6, len(frame) - 34) + frame[34:])


def _from_port(frame: bytes, port: int) -> bytes:
    """Such a frame with another source port, and the checksum of it."""
    unsummed = frame[:34] + struct.pack("!H", port) + frame[36:50] + bytes(2) + frame[52:]
    return unsummed[:50] + struct.pack("!H", _sum_of_tcp(unsummed)) + unsummed[52:]


def _assert_checksums(frame: Frame) -> None:
    """Every checksum is what scapy computes for the same content; a quoted packet's transport is left as it is."""
    if not frame.haslayer(IP) and not frame.haslayer(IPv6):
        assert frame.haslayer(ARP) or frame.haslayer(Raw)
        return
    fresh = frame.copy()
    layer = fresh.payload
    while layer and layer.name not in ("IP in ICMP", "Raw", "Padding") and "in ICMP" not in layer.name:
        for name in ("chksum", "cksum"):
            if name in layer.fields and not (layer.name == "UDP" and layer.chksum == 0):
                layer.delfieldval(name)
        layer = layer.payload
    fresh.clear_cache()
    assert bytes(Ether(bytes(fresh))) == bytes(frame)
    if "IP in ICMP" in fresh:
        quoted = fresh["IP in ICMP"].copy()
        told = quoted.chksum
        quoted.delfieldval("chksum")
        quoted.clear_cache()
        assert type(quoted)(bytes(quoted)).chksum == told

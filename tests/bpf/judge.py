"""Compiled tables in a node's real maps, and first packets through its real programs: does a judge let them pass?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeVar

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.sctp import SCTP

from bpf import packet as c
from bpf.namespaces import Namespace
from bpf.packet import SHOT, Packet
from instruments.cluster import Cluster
from netstack.kernel import layout as l

Key = TypeVar("Key")
PROTOCOL_AT, SOURCE_AT, DESTINATION_AT, PORTS_AT, ECHO_AT, FLAGS_AT = 9, 12, 16, 20, 24, 33
"""Where in an IPv4 packet without options these stand; the flags are TCP's."""
TCP_NUMBER, SYN_ACK = 6, 0x12
ADDRESSES = {1: c.NODE, 2: c.OTHER_NODE}
MACS = {1: c.NODE_MAC, 2: c.OTHER_NODE_MAC}


@contextmanager
def wired(number: int, more: int = 0) -> Iterator[Namespace]:
    """A namespace with the devices of node `number` of two, and `more` of pods: pod0 and so on. Nothing is sent on
    them."""
    namespace, other = Namespace(), 3 - number
    try:
        for name in ("uplink", "pod", "neighbour", *(f"pod{at}" for at in range(more))):
            namespace.link(name, f"{name}-peer")
        namespace.ip("link", "set", "uplink", "address", MACS[number])  # by which a frame is this host's or another's
        with namespace.entered():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        for node, neighbour, pods in (
            (f"{ADDRESSES[number]}/24", ADDRESSES[other], f"10.244.{other}.0/24"),
            (f"fd00::2{number}/64", f"fd00::2{other}", f"fd00:{other}::/64"),
        ):
            namespace.ip("addr", "add", node, "dev", "uplink")
            namespace.ip("neigh", "add", neighbour, "lladdr", MACS[other], "dev", "uplink")
            namespace.ip("route", "add", pods, "via", neighbour)
        namespace.ip("addr", "add", f"192.168.86.12{number}/32", "dev", "lo")  # one more that no table knows
        yield namespace
    finally:
        namespace.close()


def install(node: Packet, cluster: Cluster, devices: Mapping[str, int]) -> None:
    """The compiled tables, and no others; local pods are on these `devices` of the instrument."""
    for name in ("policy", "identities", "endpoints"):
        table = node.maps[name]
        table.delete_batch([key for key, _ in table.items()])
    for name in ("policy", "identities"):
        node.maps[name].put_batch(cluster.table(name).entries)
    at = {cluster.address(pod): device for pod, device in devices.items()}
    for key, value in cluster.table("endpoints").entries.items():
        endpoint = l.Endpoint.unpack(value)
        node.tables.add(endpoint.id)
        placed = replace(endpoint, ifindex=at.get(key, 0), mac=c.mac(c.POD_MAC), host_mac=c.mac(c.HOST_MAC))
        node.put("endpoints", l.AddressKey(key), placed)
    (config,) = map(l.Config.unpack, cluster.table("config").entries.values())
    node.put("config", l.Number(0), replace(config, uplink=node.uplink))


@cache
def _first(source: str, destination: str, protocol: str, port: int) -> bytes:
    layers = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}
    transport = ICMP(type=port) if protocol == "ICMP" else layers[protocol](dport=port)
    return bytes(IP(src=source, dst=destination) / transport)


def first(source: str, destination: str, protocol: str, source_port: int, port: int) -> bytes:
    """A flow's first packet, from its IP header on. A port of ICMP is the message's type. Its checksum is another
    port's: no program reads it, and scapy is asked once for all that differ in nothing else."""
    packet, at = _first(source, destination, protocol, port), ECHO_AT if protocol == "ICMP" else PORTS_AT
    return packet[:at] + source_port.to_bytes(2) + packet[at + 2 :]


def answer(packet: bytes) -> bytes:
    """What comes back to such a packet of TCP, UDP or SCTP."""
    source, destination = packet[SOURCE_AT:DESTINATION_AT], packet[DESTINATION_AT:PORTS_AT]
    ports, rest = (
        packet[PORTS_AT + 2 : PORTS_AT + 4] + packet[PORTS_AT : PORTS_AT + 2],
        bytearray(packet[PORTS_AT + 4 :]),
    )
    if packet[PROTOCOL_AT] == TCP_NUMBER:
        rest[FLAGS_AT - PORTS_AT - 4] = SYN_ACK
    return packet[:SOURCE_AT] + destination + source + ports + rest


def passed(
    node: Packet, program: str, packets: Mapping[Key, bytes], device: int, came_by: int, macs: tuple[str, str]
) -> dict[Key, bytes]:
    """Those of the packets that the program on `device` lets pass. `macs`: the frame's source and destination."""
    ether = c.mac(macs[1]) + c.mac(macs[0]) + b"\x08\x00"
    ran = node._run(program, [ether + packet for packet in packets.values()], device, came_by)
    return {key: packet for (key, packet), (action, _) in zip(packets.items(), ran, strict=True) if action != SHOT}

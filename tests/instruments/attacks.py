"""What a program inside a pod, or a host on the LAN, may put on the wire that it should not: frames as data.

Every frame but the smallest fragments bears MARK, so whoever sees one where it must not arrive knows it. `Scene` says
who is who.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

MARK = b"netstack-attack!"
DATA = Raw(MARK * 4)
ALLOWED, DENIED = 8080, 9999
"""Ports: friend accepts the attacker at the first and nobody else anywhere."""
SERVICE, NODE_PORT = 80, 30080
GATEWAY = "169.254.1.1"
"""Of every pod, on no wire."""
BROADCAST = "ff:ff:ff:ff:ff:ff"


@dataclass(frozen=True, slots=True)
class Scene:
    """Addresses and MACs. The attacker may reach `friend` at ALLOWED by TCP and UDP, and nothing else.

    `victim` accepts `friend` alone. `cluster_ip`, `vip` and NODE_PORT stand for the victim.
    """

    mac: str
    gateway_mac: str
    attacker: str
    friend: str
    victim: str
    remote: str
    node: str
    other_node: str
    lan: str
    cluster_ip: str
    vip: str
    gateway: str = GATEWAY

    def frame(self, packet: Packet, **more: str) -> bytes:
        """To the gateway, as a pod sends everything."""
        return bytes(Ether(src=more.get("src", self.mac), dst=more.get("dst", self.gateway_mac)) / packet)


Attack = Callable[[Scene], list[bytes]]


def _transports(port: int) -> list[Packet]:
    return [TCP(sport=4000, dport=port, flags="S") / DATA, UDP(sport=4000, dport=port) / DATA]


def _everything(port: int) -> list[Packet]:
    return [*_transports(port), TCP(sport=4000, dport=port, flags="A") / DATA, ICMP(id=7) / DATA]


def spoofed_source(s: Scene) -> list[bytes]:
    sources = (s.friend, s.node, s.other_node, s.remote, s.lan, s.gateway, "10.244.1.99", "0.0.0.0", "127.0.0.1")
    return [
        s.frame(IP(src=source, dst=to) / transport)
        for source in (*sources, s.victim, "255.255.255.255", "224.0.0.1")
        for to in (s.victim, s.friend, s.node, s.lan)
        for transport in _transports(ALLOWED)
    ]


def spoofed_mac(s: Scene) -> list[bytes]:
    packet = IP(src=s.attacker, dst=s.friend) / UDP(sport=4000, dport=ALLOWED) / DATA
    return [
        s.frame(packet, src="02:00:00:00:00:99"),
        s.frame(packet, src=s.gateway_mac),
        s.frame(packet, dst=BROADCAST),
        s.frame(packet, dst="01:00:5e:00:00:01"),
        s.frame(packet, dst="02:00:00:00:00:99"),
    ]


def denied_peers(s: Scene) -> list[bytes]:
    peers = (s.victim, s.lan, s.remote, s.other_node, "10.244.1.99", "203.0.113.9")
    direct = [s.frame(IP(src=s.attacker, dst=to) / packet) for to in peers for packet in _everything(ALLOWED)]
    return [*direct, *(s.frame(IP(src=s.attacker, dst=s.friend) / packet) for packet in _everything(DENIED))]


def services_of_a_denied_pod(s: Scene) -> list[bytes]:
    asked = [(address, SERVICE) for address in (s.cluster_ip, s.vip)]
    asked += [(address, NODE_PORT) for address in (s.node, s.other_node)]
    asked += [(address, DENIED) for address in (s.cluster_ip, s.vip)]
    return [s.frame(IP(src=s.attacker, dst=to) / packet) for to, port in asked for packet in _everything(port)]


def the_host_by_every_address(s: Scene) -> list[bytes]:
    to = (s.node, s.gateway, "127.0.0.1", "192.168.86.255", "255.255.255.255", "224.0.0.1", "0.0.0.0")
    transports = [*_everything(22), *_transports(53), *_transports(10250)]
    frames = [s.frame(IP(src=s.attacker, dst=address) / packet) for address in to for packet in transports]
    others = [
        s.frame(IP(src=s.attacker, dst=address, proto=proto) / DATA)
        for address in (s.node, s.gateway, "224.0.0.1")
        for proto in (2, 4, 41, 47, 50, 51, 89, 103, 112, 132, 253)
    ]
    return [*frames, *others]


def the_host_by_ipv6(s: Scene) -> list[bytes]:
    link_local = _link_local(s.gateway_mac)
    sources = (_link_local(s.mac), "::", "fd00::1", f"::ffff:{s.attacker}")
    to = (link_local, "ff02::1", "ff02::2", "::1", f"::ffff:{s.node}", "fd00::21")
    payloads = [
        UDP(sport=4000, dport=53) / DATA,
        TCP(sport=4000, dport=22, flags="S") / DATA,
        ICMPv6EchoRequest(data=MARK),
        ICMPv6ND_RS() / DATA,
        ICMPv6ND_RA() / DATA,
        ICMPv6ND_NS(tgt=link_local) / DATA,
        ICMPv6ND_NA(tgt=link_local, O=1) / DATA,
    ]
    macs = {"ff02::1": "33:33:00:00:00:01", "ff02::2": "33:33:00:00:00:02"}
    return [
        s.frame(IPv6(src=source, dst=address, hlim=255) / payload, dst=macs.get(address, s.gateway_mac))
        for source in sources
        for address in to
        for payload in payloads
    ]


def ipv6_extension_headers(s: Scene) -> list[bytes]:
    source, to = _link_local(s.mac), _link_local(s.gateway_mac)
    chains: list[Packet] = [
        IPv6ExtHdrHopByHop(),
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrRouting(addresses=[to]),
        IPv6ExtHdrFragment(m=1, offset=0),
        IPv6ExtHdrFragment(m=0, offset=8),
        IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(),
    ]
    return [
        s.frame(IPv6(src=source, dst=address) / chain / UDP(sport=4000, dport=ALLOWED) / DATA)
        for address in (to, "ff02::1")
        for chain in chains
    ]


def forged_neighbours(s: Scene) -> list[bytes]:
    """ARP that claims or asks for what is not the gateway's. The payload lies behind the ARP packet."""
    frames = []
    for claimed in (s.gateway, s.friend, s.victim, s.node, s.lan):
        for op in (1, 2):
            for to in (BROADCAST, s.gateway_mac):
                arp = ARP(op=op, hwsrc=s.mac, psrc=claimed, hwdst=s.gateway_mac, pdst=s.node)
                frames.append(s.frame(arp / DATA, dst=to))
    own = ARP(hwsrc=s.mac, psrc=s.attacker, pdst=s.attacker)
    return [*frames, s.frame(own / DATA, dst=BROADCAST), s.frame(ARP(hwsrc=s.mac, psrc=s.attacker, pdst=s.node) / DATA)]


def fragments(s: Scene) -> list[bytes]:
    """To the port that is allowed, and what could turn it into another: no fragment passes, whichever it is."""
    udp = bytes(UDP(sport=4000, dport=ALLOWED, len=8 + len(MARK) * 4) / DATA)
    tcp = bytes(TCP(sport=4000, dport=ALLOWED, flags="S") / DATA)

    def piece(proto: int, data: bytes, offset: int, more: bool) -> bytes:
        ip = IP(src=s.attacker, dst=s.friend, id=77, proto=proto, flags="MF" if more else 0, frag=offset)
        return s.frame(ip / Raw(data))

    overlap = bytes(UDP(sport=4000, dport=DENIED) / DATA)
    return [
        piece(17, udp[:8], 0, True),  # tiny first
        piece(17, udp[8:], 1, False),  # later
        piece(17, overlap[:16] + MARK, 0, True),  # over the first
        piece(6, tcp[:8], 0, True),  # the flags are in the next
        piece(6, tcp[8:] + MARK, 1, False),
        piece(17, udp, 8189, False),  # past the end of the largest packet
        piece(17, udp, 0, True),
    ]


def ip_options(s: Scene) -> list[bytes]:
    via = bytes(map(int, s.victim.split(".")))
    options = {
        "loose source route": b"\x83\x07\x04" + via + b"\x00",
        "strict source route": b"\x89\x07\x04" + via + b"\x00",
        "record route": b"\x07\x07\x04" + bytes(4) + b"\x00",
        "router alert": b"\x94\x04\x00\x00",
        "timestamp": b"\x44\x08\x05\x00" + bytes(4),
    }
    return [
        s.frame(IP(src=s.attacker, dst=to, options=option) / packet)
        for option in options.values()
        for to in (s.friend, s.victim, s.node)
        for packet in _transports(ALLOWED)
    ]


def vlan_tags(s: Scene) -> list[bytes]:
    packet = IP(src=s.attacker, dst=s.friend) / UDP(sport=4000, dport=ALLOWED) / DATA
    tags: list[Packet] = [
        Dot1Q(vlan=0),
        Dot1Q(vlan=1),
        Dot1Q(vlan=7) / Dot1Q(vlan=8),
        Dot1AD(vlan=7) / Dot1Q(vlan=8),
        Dot1AD(vlan=0) / Dot1Q(vlan=0) / Dot1Q(vlan=0),
    ]
    return [s.frame(tag / packet) for tag in tags]


def other_ethertypes(s: Scene) -> list[bytes]:
    kinds = (0x88B5, 0x8035, 0x8863, 0x8864, 0x8847, 0x888E, 0x88CC, 0x88A4, 0x8137, 0x0842, 0x9000, 0x002E, 0xFFFF)
    to = (s.gateway_mac, BROADCAST, "01:80:c2:00:00:00", "01:80:c2:00:00:0e")
    return [bytes(Ether(src=s.mac, dst=mac, type=kind) / DATA) for kind in kinds for mac in to]


def icmp(s: Scene) -> list[bytes]:
    """Answers to nothing, errors about nothing and about others' flows, and all that is not echo."""
    quoted = IP(src=s.friend, dst=s.victim) / UDP(sport=ALLOWED, dport=4000) / DATA
    own = IP(src=s.lan, dst=s.attacker) / UDP(sport=ALLOWED, dport=4000) / DATA
    packets = [ICMP(type=kind, id=7) / DATA for kind in (0, 4, 5, 9, 10, 13, 14, 15, 17, 18, 30, 42, 255)]
    packets += [ICMP(type=kind, code=code) / about for kind, code in ((3, 3), (3, 4), (11, 0), (12, 0), (5, 1))
                for about in (quoted, own)]  # fmt: skip
    to = (s.victim, s.friend, s.node, s.lan)
    return [s.frame(IP(src=s.attacker, dst=address) / packet) for address in to for packet in packets]


def malformed(s: Scene) -> list[bytes]:
    udp = UDP(sport=4000, dport=ALLOWED) / DATA
    packets = [
        IP(src=s.attacker, dst=s.friend, version=6) / udp,
        IP(src=s.attacker, dst=s.friend, ihl=4) / udp,
        IP(src=s.attacker, dst=s.friend, len=24) / udp,
        IP(src=s.attacker, dst=s.friend, len=19) / udp,
        IP(src=s.attacker, dst=s.friend, ihl=15) / udp,
        IP(src=s.attacker, dst=s.friend, proto=6) / Raw(bytes(UDP(sport=4000, dport=ALLOWED)) + MARK[:8]),
    ]
    return [s.frame(packet) for packet in packets]


FROM_A_POD: dict[str, Attack] = {
    function.__name__: function
    for function in (
        spoofed_source,
        spoofed_mac,
        denied_peers,
        services_of_a_denied_pod,
        the_host_by_every_address,
        the_host_by_ipv6,
        ipv6_extension_headers,
        forged_neighbours,
        fragments,
        ip_options,
        vlan_tags,
        other_ethertypes,
        icmp,
        malformed,
    )
}


# ---- a host of the LAN, whose frames go to the node; `mac` is its own, `gateway_mac` the node's uplink's ----


def lan_to_a_pod(s: Scene) -> list[bytes]:
    """Straight at the victim's address, from the LAN's own addresses and from all that are not."""
    sources = (s.lan, s.friend, s.node, s.remote, s.other_node, s.gateway, "10.244.1.99", "10.244.2.99", "127.0.0.1")
    return [
        s.frame(IP(src=source, dst=s.victim) / packet)
        for source in sources
        for packet in [*_everything(ALLOWED), *_everything(DENIED)]
    ]


def lan_to_its_services(s: Scene) -> list[bytes]:
    sources = (s.lan, s.friend, s.remote, s.other_node)
    asked = ((s.vip, SERVICE), (s.node, NODE_PORT), (s.vip, DENIED), (s.cluster_ip, SERVICE))
    return [
        s.frame(IP(src=source, dst=to) / packet)
        for source in sources
        for to, port in asked
        for packet in _everything(port)
    ]


def lan_fragments_and_options(s: Scene) -> list[bytes]:
    udp = bytes(UDP(sport=4000, dport=ALLOWED) / DATA)
    to = [(s.victim, s.lan), (s.victim, s.friend), (s.vip, s.lan)]
    pieces = [
        s.frame(IP(src=source, dst=address, id=9, proto=17, flags=flags, frag=offset) / Raw(data))
        for address, source in to
        for flags, offset, data in (("MF", 0, udp[:8]), (0, 1, udp[8:]), ("MF", 0, udp))
    ]
    route = b"\x83\x07\x04" + bytes(map(int, s.victim.split("."))) + b"\x00"
    routed = [s.frame(IP(src=s.lan, dst=address, options=route) / Raw(udp)) for address in (s.node, s.victim, s.vip)]
    return [*pieces, *routed]


def lan_vlan_tags(s: Scene) -> list[bytes]:
    """A tag with number 0 is a priority only: the kernel takes the frame for one without."""
    tags: list[Packet] = [Dot1Q(vlan=0), Dot1AD(vlan=0), Dot1Q(vlan=0) / Dot1Q(vlan=0), Dot1Q(vlan=7)]
    served = TCP(sport=4000, dport=SERVICE, flags="S") / DATA
    return [
        s.frame(tag / IP(src=source, dst=to) / packet)
        for tag in tags
        for source in (s.lan, s.friend, s.remote, s.other_node)
        for to, packet in [*((s.victim, one) for one in _transports(ALLOWED)), (s.vip, served)]
    ]


FROM_THE_LAN: dict[str, Attack] = {
    function.__name__: function
    for function in (lan_to_a_pod, lan_to_its_services, lan_fragments_and_options, lan_vlan_tags)
}


def _link_local(mac: str) -> str:
    """RFC 4291 appendix A."""
    parts = [int(part, 16) for part in mac.split(":")]
    eui = [parts[0] ^ 2, *parts[1:3], 0xFF, 0xFE, *parts[3:]]
    return "fe80::" + ":".join(f"{eui[i] << 8 | eui[i + 1]:x}" for i in range(0, 8, 2))

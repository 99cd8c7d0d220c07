"""The structures that Python shares with the eBPF programs: files/bpf/lib/abi.h, field by field.

Each record is a frozen dataclass whose fields carry their C type, so `pack` gives the bytes of a map key or value and
`unpack` reads them back. Addresses are 16 bytes (netstack.core.address), ports plain integers here and network order
in the bytes, everything else host order. abi.h has the meaning of each field; tests/bpf/test_abi.py compares offsets.

MAPS is every map that is pinned: its types, its size and its one writer (law 2).
"""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass
from typing import Any, ClassVar, Self

# be16 and addr travel as bytes: a struct format has one byte order
_CODES = {"addr": "16s", "be16": "2s", "mac": "6s", "u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
_ALIGNMENT = {"addr": 4, "be16": 2, "mac": 1, "u8": 1, "u16": 2, "u32": 4, "u64": 8}
_BYTES = {"addr": bytes(16), "mac": bytes(6)}


def c(kind: str, *, pad: int = 0) -> Any:
    """A field of C type `kind`, followed by `pad` bytes of explicit padding; its default is zero."""
    return dataclasses.field(default=_BYTES.get(kind, 0), metadata={"kind": kind, "pad": pad})


class Record:
    """One C struct. Subclasses are dataclasses whose fields were made with `c`."""

    __slots__ = ()
    STRUCT: ClassVar[struct.Struct]
    NAMES: ClassVar[tuple[str, ...]]
    PORTS: ClassVar[tuple[int, ...]]

    @classmethod
    def offsets(cls) -> dict[str, int]:
        """Field name -> byte offset, as C lays them out."""
        offset, result = 0, {}
        for spec in dataclasses.fields(cls):  # type: ignore[arg-type]
            kind = spec.metadata["kind"]
            if offset % _ALIGNMENT[kind]:
                raise TypeError(f"{cls.__name__}.{spec.name} at {offset} needs explicit padding before it")
            result[spec.name] = offset
            offset += struct.calcsize("=" + _CODES[kind]) + spec.metadata["pad"]
        return result

    @classmethod
    def size(cls) -> int:
        return cls.STRUCT.size

    def pack(self) -> bytes:
        """The bytes of the C struct. struct.error or OverflowError if a value does not fit its field."""
        values = [getattr(self, name) for name in self.NAMES]
        for index in self.PORTS:
            values[index] = values[index].to_bytes(2)
        return self.STRUCT.pack(*values)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The record in `data`; struct.error unless it has exactly `size()` bytes."""
        values = list(cls.STRUCT.unpack(data))
        for index in cls.PORTS:
            values[index] = int.from_bytes(values[index])
        return cls(*values)


def record(cls: type[Any]) -> type[Any]:
    """Compute the struct format once; TypeError if the fields do not fill a C struct without implicit padding."""
    specs = dataclasses.fields(cls)
    kinds = [spec.metadata["kind"] for spec in specs]
    pads = [spec.metadata["pad"] for spec in specs]
    cls.STRUCT = struct.Struct("=" + "".join(f"{_CODES[k]}{p}x" for k, p in zip(kinds, pads, strict=True)))
    cls.NAMES = tuple(spec.name for spec in specs)
    cls.PORTS = tuple(i for i, kind in enumerate(kinds) if kind == "be16")
    cls.offsets()
    if cls.STRUCT.size % max((_ALIGNMENT[kind] for kind in kinds), default=1):
        raise TypeError(f"{cls.__name__} needs explicit padding at its end")
    return cls


# ---- config ----


@record
@dataclass(frozen=True, slots=True)
class Config(Record):
    """config[0]: who this node is. struct config with its two family_config unrolled."""

    node4: bytes = c("addr")
    pod_net4: bytes = c("addr")
    pod_net4_bits: int = c("u32", pad=4)
    node6: bytes = c("addr")
    pod_net6: bytes = c("addr")
    pod_net6_bits: int = c("u32", pad=4)
    uplink: int = c("u32")
    generation: int = c("u32")
    host: int = c("u32")
    unfinished: int = c("u32")


HOST_ENDPOINT = 0xFFFFFFFF


# ---- services ----

SCOPE_CLUSTER = 0
SCOPE_WORLD = 1
BACKEND_SILENT = 1


@record
@dataclass(frozen=True, slots=True)
class ServiceKey(Record):
    """A service port. address :: = node port. port 0, protocol 0 = the address itself (value: all zero)."""

    address: bytes = c("addr")
    port: int = c("be16")
    protocol: int = c("u8")
    scope: int = c("u8")


@record
@dataclass(frozen=True, slots=True)
class Service(Record):
    id: int = c("u32")
    first: int = c("u32")
    slots: int = c("u32")
    affinity_s: int = c("u32")
    flags: int = c("u16")
    backends: int = c("u16")


@record
@dataclass(frozen=True, slots=True)
class Number(Record):
    """A plain u32: index of an array, backend id."""

    value: int = c("u32")


@record
@dataclass(frozen=True, slots=True)
class Nothing(Record):
    """No bytes at all: what a ring has for keys and values."""


@record
@dataclass(frozen=True, slots=True)
class Instant(Record):
    """A plain u64: nanoseconds of CLOCK_MONOTONIC, or a count."""

    value: int = c("u64")


@record
@dataclass(frozen=True, slots=True)
class AddressKey(Record):
    """A plain address."""

    address: bytes = c("addr")


@record
@dataclass(frozen=True, slots=True)
class Backend(Record):
    address: bytes = c("addr")
    node: bytes = c("addr")
    port: int = c("be16")
    flags: int = c("u8", pad=1)


# ---- translations ----

NAT_SERVICE = 1
NAT_FORWARD = 2
NAT_REPLY = 3
NAT_POD = 4
NAT_POD_REPLY = 5
NAT_SOURCE = 6
NAT_SOURCE_REPLY = 7
NAT_SEEN = 1
NAT_FIN = 2
NAT_ACKED = 4


@record
@dataclass(frozen=True, slots=True)
class Tuple(Record):
    source: bytes = c("addr")
    destination: bytes = c("addr")
    source_port: int = c("be16")
    destination_port: int = c("be16")
    protocol: int = c("u8", pad=3)


@record
@dataclass(frozen=True, slots=True)
class Nat(Record):
    deadline: int = c("u64")
    address: bytes = c("addr")
    port: int = c("be16")
    kind: int = c("u8")
    flags: int = c("u8")
    service: int = c("u32")
    backend: int = c("u32")
    end: int = c("u32")
    asker: int = c("be16", pad=6)


@record
@dataclass(frozen=True, slots=True)
class SocketPeer(Record):
    cookie: int = c("u64")
    address: bytes = c("addr")
    port: int = c("be16", pad=6)


@record
@dataclass(frozen=True, slots=True)
class SocketOrigin(Record):
    address: bytes = c("addr")
    port: int = c("be16", pad=2)


# ---- endpoints, identities, policy ----

ENFORCE_INGRESS = 1
ENFORCE_EGRESS = 2
AUDIT = 4
AUDIT_INGRESS = 8
AUDIT_EGRESS = 16
PROXIED = 32

IDENTITY_ANY = 0
IDENTITY_HOST = 1
IDENTITY_WORLD = 2
IDENTITY_UNMANAGED = 3
IDENTITY_INIT = 5
IDENTITY_REMOTE_NODE = 6
IDENTITY_KUBE_APISERVER = 7
IDENTITY_INGRESS = 8
IDENTITY_NODES = 0x02000000
IDENTITY_NODES_END = 0x03000000
IDENTITY_PODS = 0x40000000
IDENTITY_PODS_END = 0x80000000

DIRECTION_INGRESS = 1
DIRECTION_EGRESS = 2
DIRECTION_AUDIT = 2

ACTION_ALLOW = 1
ACTION_DENY = 2
ACTION_REDIRECT_DNS = 3

POLICY_BITS_ANY = 72
POLICY_BITS_PROTO = 80
POLICY_BITS_PORT = 96


@record
@dataclass(frozen=True, slots=True)
class Endpoint(Record):
    id: int = c("u32")
    ifindex: int = c("u32")
    identity: int = c("u32")
    enforce: int = c("u32")
    mac: bytes = c("mac")
    host_mac: bytes = c("mac")


@record
@dataclass(frozen=True, slots=True)
class PrefixKey(Record):
    """A longest-prefix key: bits of 128 (netstack.core.address.Prefix), then the address."""

    bits: int = c("u32")
    address: bytes = c("addr")


@record
@dataclass(frozen=True, slots=True)
class Identity(Record):
    identity: int = c("u32")
    flags: int = c("u32")
    node: bytes = c("addr")


@record
@dataclass(frozen=True, slots=True)
class PolicyKey(Record):
    bits: int = c("u32")
    endpoint: int = c("u32")
    peer: int = c("u32")
    direction: int = c("u8")
    protocol: int = c("u8")
    port: int = c("be16")


@record
@dataclass(frozen=True, slots=True)
class PolicyRule(Record):
    rule: int = c("u32")
    action: int = c("u8", pad=3)


# ---- names ----

FQDN_SELECTORS = 8


@record
@dataclass(frozen=True, slots=True)
class FqdnKey(Record):
    endpoint: int = c("u32")
    address: bytes = c("addr")


@record
@dataclass(frozen=True, slots=True)
class Fqdn(Record):
    """Up to eight name-selectors (0 = free) with the monotonic second at which each expires."""

    selector0: int = c("u32")
    expires0_s: int = c("u32")
    selector1: int = c("u32")
    expires1_s: int = c("u32")
    selector2: int = c("u32")
    expires2_s: int = c("u32")
    selector3: int = c("u32")
    expires3_s: int = c("u32")
    selector4: int = c("u32")
    expires4_s: int = c("u32")
    selector5: int = c("u32")
    expires5_s: int = c("u32")
    selector6: int = c("u32")
    expires6_s: int = c("u32")
    selector7: int = c("u32")
    expires7_s: int = c("u32")

    @classmethod
    def packed(cls, expiries: dict[int, int]) -> bytes:
        """{selector: expires_s} as bytes, without a record in between: who writes, writes all the time. struct.error
        above FQDN_SELECTORS of them."""
        numbers = [number for item in sorted(expiries.items()) for number in item]
        return cls.STRUCT.pack(*numbers, *(0,) * (2 * FQDN_SELECTORS - len(numbers)))

    @classmethod
    def read(cls, data: bytes) -> dict[int, int]:
        """{selector: expires_s} of the slots in use."""
        numbers = cls.STRUCT.unpack(data)
        return {selector: expires for selector, expires in zip(numbers[::2], numbers[1::2], strict=True) if selector}


# ---- conntrack ----

FLOW_REPLIED = 1
FLOW_FIN = 2
FLOW_FIN_REPLY = 4
FLOW_HOST = 8
FLOW_REDIRECT = 16
FLOW_NAMED = 32
FLOW_SERVICE = 64
FLOW_PROXY = 128


@record
@dataclass(frozen=True, slots=True)
class FlowKey(Record):
    endpoint: int = c("u32")
    peer: bytes = c("addr")
    peer_port: int = c("be16")
    local_port: int = c("be16")
    protocol: int = c("u8", pad=3)


@record
@dataclass(frozen=True, slots=True)
class Flow(Record):
    deadline: int = c("u64")
    generation: int = c("u32")
    rule: int = c("u32")
    direction: int = c("u8")
    flags: int = c("u8", pad=2)
    end: int = c("u32")


# ---- events ----

EVENT_REPEAT = 1_000_000_000
EVENT_RATE = 200
EVENT_BURST = 2000
DNS_RATE = 1000
DNS_BURST = 500


@record
@dataclass(frozen=True, slots=True)
class Event(Record):
    """What the ring holds: a drop, or the first packet of a flow. Addresses :: = no IP header was read."""

    at: int = c("u64")
    source: bytes = c("addr")
    destination: bytes = c("addr")
    source_port: int = c("be16")
    port: int = c("be16")
    protocol: int = c("u8")
    verdict: int = c("u8")
    direction: int = c("u8")
    tcp: int = c("u8")
    endpoint: int = c("u32")
    peer: int = c("u32")
    rule: int = c("u32")
    ifindex: int = c("u32")
    repeats: int = c("u32", pad=4)


@record
@dataclass(frozen=True, slots=True)
class EventKey(Record):
    peer: bytes = c("addr")
    endpoint: int = c("u32")
    ifindex: int = c("u32")
    port: int = c("be16")
    protocol: int = c("u8")
    verdict: int = c("u8")
    direction: int = c("u8", pad=3)


@record
@dataclass(frozen=True, slots=True)
class EventSeen(Record):
    at: int = c("u64")
    repeats: int = c("u32", pad=4)


@record
@dataclass(frozen=True, slots=True)
class Budget(Record):
    at: int = c("u64")
    tokens: int = c("u32")
    lost: int = c("u32")


# ---- DNS answers past the proxy ----

HEARD_BYTES = 1232
HEARD_RATE = 50
HEARD_BURST = 100


@record
@dataclass(frozen=True, slots=True)
class Heard(Record):
    """The head of a record in the ring; `length` bytes of the message follow."""

    server: bytes = c("addr")
    endpoint: int = c("u32")
    length: int = c("u32")


# ---- LoadBalancer addresses ----


@record
@dataclass(frozen=True, slots=True)
class VipKey(Record):
    address: bytes = c("addr")
    ifindex: int = c("u32")


@record
@dataclass(frozen=True, slots=True)
class Vip(Record):
    deadline: int = c("u64")
    generation: int = c("u32")
    mac: bytes = c("mac", pad=6)


# ---- fixed by design ----

GATEWAY_V4 = 0xA9FE0101
PROXY_V4 = 0xA9FE0135
PROXY_V6_FIRST, PROXY_V6_LAST = 0xFD6E6574, 0x00000053
PROXY_PORT = 53
PROXY_MARK, PROXY_OWN_MARK = 0x53000000, 0x35000000
MASQUERADE_FIRST = 49152
MASQUERADE_SHARED = 8192
MASQUERADE_OWNERS = 64
MASQUERADE_OWN = 128
VERDICTS = 256

# ---- the maps ----

HASH = 1
ARRAY = 2
PERCPU_ARRAY = 6
LRU_HASH = 9
LPM_TRIE = 11
HASH_OF_MAPS = 13
RINGBUF = 27
NO_PREALLOC = 1  # BPF_F_NO_PREALLOC; an LPM trie must have it


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One pinned map: kernel type, flags, records, default size (`datapath.sizes` overrides it), its one writer.

    The size of a map is its entries; that of a ring its bytes, a power of two.
    """

    name: str
    kind: int
    key: type[Record]
    value: type[Record]
    entries: int
    writer: str
    flags: int = 0
    inner: str = ""
    """Of a map of maps: what they are like, by its name in INNER. The value is a descriptor when written, an id when
    read."""


INNER: dict[str, MapSpec] = {spec.name: spec for spec in (MapSpec("flows", LRU_HASH, FlowKey, Flow, 4096, "programs"),)}
"""Maps that are pinned nowhere but lie in others; the size is that of each. flows: an endpoint's budget, 0.5 MB of
memory. A pod that has more flows at a time forgets the least used one, which is then judged like a new one."""

# Together 35 MB on a node without pods, and 0.5 MB a pod (INNER). Services and their backends take memory as they come,
# and 10,000 services with two backends each fit: 7 entries of `services` (netstack.agent.services) and 67 slots each.
MAPS: dict[str, MapSpec] = {
    spec.name: spec
    for spec in (
        MapSpec("config", ARRAY, Number, Config, 1, "agent"),
        MapSpec("services", HASH, ServiceKey, Service, 131072, "agent", NO_PREALLOC),
        MapSpec("slots", ARRAY, Number, Number, 1048576, "agent"),
        MapSpec("backends", HASH, Number, Backend, 65536, "agent", NO_PREALLOC),
        MapSpec("nat", LRU_HASH, Tuple, Nat, 32768, "programs"),
        MapSpec("nat_pods", LRU_HASH, Tuple, Nat, 32768, "programs"),
        MapSpec("socket_revnat", LRU_HASH, SocketPeer, SocketOrigin, 65536, "programs"),
        MapSpec("endpoints", HASH, AddressKey, Endpoint, 1024, "agent"),
        MapSpec("identities", LPM_TRIE, PrefixKey, Identity, 65536, "agent", NO_PREALLOC),
        MapSpec("policy", LPM_TRIE, PolicyKey, PolicyRule, 131072, "agent", NO_PREALLOC),
        MapSpec("fqdn", HASH, FqdnKey, Fqdn, 65536, "dns", NO_PREALLOC),
        MapSpec("fqdn_use", LRU_HASH, FqdnKey, Instant, 16384, "programs"),
        MapSpec("conntrack", HASH_OF_MAPS, Number, Number, 1024, "agent", inner="flows"),
        MapSpec("vips", HASH, VipKey, Vip, 1024, "announcer"),
        MapSpec("node_alive", HASH, AddressKey, Instant, 256, "announcer"),
        MapSpec("events", RINGBUF, Nothing, Nothing, 1 << 20, "programs"),
        MapSpec("event_seen", LRU_HASH, EventKey, EventSeen, 8192, "programs"),
        MapSpec("event_budget", LRU_HASH, Number, Budget, 1024, "programs"),
        MapSpec("dns_budget", LRU_HASH, Number, Budget, 1024, "programs"),
        MapSpec("heard", RINGBUF, Nothing, Nothing, 1 << 18, "programs"),
        MapSpec("heard_budget", LRU_HASH, Number, Budget, 1024, "programs"),
        MapSpec("counters", PERCPU_ARRAY, Number, Instant, VERDICTS, "programs"),
    )
}

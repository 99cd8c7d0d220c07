"""Cluster: objects in, tables and reasons out, as node `n1` compiles them.

    cluster = Cluster()
    cluster.pod("default/web", labels={"app": "web"})
    cluster.pod("default/client", node="n2")
    cluster.put(POLICY_YAML)
    cluster.compile()
    assert cluster.verdict("default/client", "default/web", 80) == "DEFAULT_DENY"

Every compile also checks, without being asked:
* compiling the same objects without memory of earlier compiles gives the same bytes; and from the tables that are then
  in force, no change at all;
* the difference, replayed write by write on a model of the maps, ends in the new tables;
* no write finds its map full;
* after every single write, each probe packet is allowed only if the old or the new tables allow it, goes past the DNS
  proxy only if they let it, and, if its peer's identity stays, is allowed if both allow it; and every service entry
  points at slots and backends that exist.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import yaml

from netstack.agent.desired import Before, Desired, Memory, Place, compile_all
from netstack.agent.identities import LocalEndpoint
from netstack.agent.order import NAMES, Tables, plan
from netstack.core.address import ANY, V4_MAPPED, Prefix, pack
from netstack.core.errors import BadObject
from netstack.core.protocol import PROTOCOLS
from netstack.core.ref import Ref
from netstack.core.table import Change, Op, Table, diff
from netstack.kernel import layout
from netstack.source.models import Object
from netstack.source.parse import parse, reference
from netstack.source.snapshot import Broken, Snapshot

INGRESS, EGRESS = layout.DIRECTION_INGRESS, layout.DIRECTION_EGRESS
FREE, ALLOWED, REDIRECTED, DENIED, DEFAULT_DENY, ABSENT = (
    "FREE",
    "ALLOWED",
    "REDIRECTED",
    "POLICY_DENIED",
    "DEFAULT_DENY",
    "NO_ENDPOINT",
)
OPEN = {FREE, ALLOWED}
"""Verdicts that let a packet go on directly."""


@lru_cache(maxsize=1024)
def _endpoint(value: bytes) -> layout.Endpoint:
    return layout.Endpoint.unpack(value)


class Maps:
    """What the kernel holds, and what the programs make of it (files/bpf/lib/policy.h, in ten lines)."""

    def __init__(self, tables: Tables) -> None:
        self.tables = {name: dict(tables[name].entries) for name in NAMES}
        self.rules: dict[tuple[int, int, int], dict[tuple[int, int, int], int]] = {}
        self._identities: dict[bytes, int] = {}
        self._own = self._addresses()
        for key, value in self.tables["policy"].items():
            self._rule(key, value)

    def apply(self, change: Change) -> None:
        table = self.tables[change.table]
        if change.op is Op.PUT:
            table[change.key] = change.value
        else:
            del table[change.key]
        if change.table == "policy":
            self._rule(change.key, change.value if change.op is Op.PUT else None)
        if change.table == "identities":
            self._identities.clear()
        if change.table == "config":
            self._own = self._addresses()

    def _addresses(self) -> set[bytes]:
        """The node's own."""
        configs = map(layout.Config.unpack, self.tables["config"].values())
        return {address for config in configs for address in (config.node4, config.node6)} - {ANY}

    def _rule(self, raw: bytes, value: bytes | None) -> None:
        key = layout.PolicyKey.unpack(raw)
        rules = self.rules.setdefault((key.endpoint, key.peer, key.direction), {})
        place = (key.bits, key.protocol, key.port)
        if value is None:
            del rules[place]
        else:
            rules[place] = layout.PolicyRule.unpack(value).action

    def identity(self, address: bytes) -> int:
        if address not in self._identities:
            best = (-1, layout.IDENTITY_WORLD)
            for raw, value in self.tables["identities"].items():
                key = layout.PrefixKey.unpack(raw)
                if key.bits > best[0] and address in Prefix(key.address, key.bits):
                    best = (key.bits, layout.Identity.unpack(value).identity)
            self._identities[address] = best[1]
        return self._identities[address]

    def endpoint(self, address: bytes) -> layout.Endpoint | None:
        value = self.tables["endpoints"].get(address)
        return _endpoint(value) if value is not None else None

    def decide(
        self, pod: bytes, direction: int, peer: bytes, protocol: int, port: int, learned: tuple[int, ...]
    ) -> str:
        """The verdict on a packet between a local pod and a peer; `learned`: name-selectors known for the peer."""
        endpoint = self.endpoint(pod)
        if endpoint is None:
            return ABSENT
        if direction == INGRESS and peer in self._own:  # as its door says, whatever its address is to others
            return ALLOWED
        verdict = self._consult(endpoint, direction, peer, protocol, port, learned)
        return verdict or (DEFAULT_DENY if endpoint.enforce & direction else FREE)

    def would_deny(
        self, pod: bytes, direction: int, peer: bytes, protocol: int, port: int, learned: tuple[int, ...]
    ) -> bool:
        """Whether policies on trial would, by themselves or with the others."""
        endpoint = self.endpoint(pod)
        if endpoint is None or not endpoint.enforce & layout.AUDIT:
            return False
        audit = layout.AUDIT_EGRESS if direction == EGRESS else layout.AUDIT_INGRESS
        verdict = self._consult(endpoint, direction + layout.DIRECTION_AUDIT, peer, protocol, port, learned)
        return verdict == DENIED or (not verdict and bool(endpoint.enforce & audit))

    def _consult(
        self,
        endpoint: layout.Endpoint,
        direction: int,
        peer: bytes,
        protocol: int,
        port: int,
        learned: tuple[int, ...],
    ) -> str:
        """What rules say; "" if none does."""
        found = set()
        for number in (self.identity(peer), layout.IDENTITY_ANY, *learned):
            best = max(
                (
                    (bits, action)
                    for (bits, proto, first), action in self.rules.get((endpoint.id, number, direction), {}).items()
                    if bits == 72 or (proto == protocol and first >> (96 - bits) == port >> (96 - bits))
                ),
                default=None,
            )
            if best is not None:
                found.add(best[1])
        for action, verdict in ((2, DENIED), (3, REDIRECTED), (1, ALLOWED)):
            if action in found:
                return verdict
        return ""


class Cluster:
    """The objects of a cluster, and what is in force on its node `n1` (192.168.86.21, pods 10.244.1.0/24)."""

    def __init__(self, *, place: Place | None = None, nodes: int = 2, sizes: dict[str, int] | None = None) -> None:
        self.objects: dict[Ref, Object] = {}
        self.broken: list[Broken] = []
        self.endpoints: dict[Ref, LocalEndpoint] = {}
        self.place = place or Place(
            "n1",
            (pack("192.168.86.21"),),
            (Prefix.parse("10.244.1.0/24"),),
            2,
            ingress_services=(Ref("Service", "ingress-nginx", "ingress-nginx-controller"),),
            dns_services=(Ref("Service", "kube-system", "kube-dns"),),
        )
        self.sizes = {name: spec.entries for name, spec in layout.MAPS.items()} | (sizes or {})
        self.before = Before()
        self.memory = Memory()
        self.desired: Desired | None = None
        self.changes: list[Change] = []
        self._maps = Maps(self.before.tables)
        self._ids = itertools.count(1)
        self._hosts = {f"n{number}": itertools.count(3) for number in range(1, nodes + 1)}
        for number in range(1, nodes + 1):
            self.put(
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": {"name": f"n{number}"},
                    "spec": {"podCIDR": f"10.244.{number}.0/24"},
                    "status": {"addresses": [{"type": "InternalIP", "address": f"192.168.86.2{number}"}]},
                }
            )

    # objects ---------------------------------------------------------------------------------------------------------

    def put(self, *objects: str | dict[str, Any]) -> None:
        """YAML (any number of documents) or mappings; an object that does not parse is `broken`, as in the source."""
        for item in objects:
            for document in yaml.safe_load_all(item) if isinstance(item, str) else [item]:
                ref = reference(document)
                try:
                    model = parse(document)
                except BadObject as error:
                    self.broken.append(Broken("test.yaml", error, kept=ref in self.objects))
                    continue
                assert model is not None, f"{ref} is no object of ours"
                self.objects[ref] = model

    def remove(self, kind: str, name: str) -> None:
        namespace, _, short = name.rpartition("/")
        del self.objects[Ref(kind, namespace, short)]

    def pod(
        self,
        name: str,
        labels: dict[str, str] | None = None,
        *,
        node: str = "n1",
        ports: Iterable[tuple[str, str, int]] = (),
        address: str = "",
        **metadata: Any,
    ) -> str:
        """A running pod (on n1: with its endpoint); its address."""
        namespace, _, short = name.rpartition("/")
        address = address or f"10.244.{node[1:]}.{next(self._hosts[node])}"
        listed = [{"name": n, "protocol": proto, "containerPort": number} for n, proto, number in ports]
        self.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": short, "namespace": namespace, "labels": labels or {}, **metadata},
                "spec": {"nodeName": node, "containers": [{"name": "main", "ports": listed}]},
                "status": {"phase": "Running", "podIPs": [{"ip": address}]},
            }
        )
        if node == self.place.node:
            self.attach(name)
        return address

    def attach(self, name: str) -> None:
        """What ADD does for a pod of this node; nothing if it is attached already."""
        namespace, _, short = name.rpartition("/")
        ref = Ref("Pod", namespace, short)
        pod: Any = self.objects[ref]
        if ref not in self.endpoints:
            number = next(self._ids)
            mac = bytes([2, 0, 0, 0, 0, number % 256])
            self.endpoints[ref] = LocalEndpoint(number, pod.addresses[0], ref, 100 + number, mac, mac, pod.meta.labels)

    def delete_pod(self, name: str) -> None:
        namespace, _, short = name.rpartition("/")
        self.remove("Pod", name)
        self.endpoints.pop(Ref("Pod", namespace, short), None)

    def relabel(self, name: str, labels: dict[str, str]) -> None:
        namespace, _, short = name.rpartition("/")
        ref = Ref("Pod", namespace, short)
        pod: Any = self.objects[ref]
        self.objects[ref] = replace(pod, meta=replace(pod.meta, labels=labels))

    def service(self, name: str, targets: list[str], *, port: int = 80, target_port: int = 80, **spec: Any) -> None:
        """A Service and its EndpointSlice; `targets` are addresses, with `/node` behind them if not n1."""
        namespace, _, short = name.rpartition("/")
        self.put(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": short, "namespace": namespace},
                "spec": {"ports": [{"port": port, "targetPort": target_port}]} | spec,
            },
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"{short}-1",
                    "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": short},
                },
                "addressType": "IPv4",
                "endpoints": [
                    {"addresses": [target.partition("/")[0]], "nodeName": target.partition("/")[2] or "n1"}
                    for target in targets
                ],
                "ports": [{"port": target_port, "protocol": "TCP"}],
            },
        )

    # compiling -------------------------------------------------------------------------------------------------------

    def compile(self) -> Desired:
        """Compile, apply to the model, and check the free properties."""
        new, again = self.recompile(self.memory), self.recompile(Memory())
        for name in NAMES:
            assert new.tables[name] == again.tables[name], f"{name}: memory makes another table"
            assert diff(new.tables[name], new.tables[name]) == []
        assert new.dns_rules() == again.dns_rules()
        assert (new.owners, new.problems) == (again.owners, again.problems)
        assert (new.policy.rules, new.policy.selects) == (again.policy.rules, again.policy.selects)
        assert set(new.accepted.specs) == set(again.accepted.specs) and new.accepted.good == again.accepted.good
        self.changes = plan(self.before.tables, new.tables)
        self._maps = check_between(self.before.tables, new.tables, self.sizes)
        self.before = Before(new.tables, new.accepted.good)
        if new.between:
            return self.compile()
        settled = self.recompile(self.memory)
        assert plan(new.tables, settled.tables) == [], "nothing changed, and yet there is something to write"
        self.desired = new
        return new

    def recompile(self, memory: Memory) -> Desired:
        """Compile, and neither check nor apply."""
        snapshot = Snapshot(dict(self.objects), tuple(self.broken))
        return compile_all(snapshot, tuple(self.endpoints.values()), self.place, self.before, self.sizes, memory)

    # answers ---------------------------------------------------------------------------------------------------------

    def address(self, who: str) -> bytes:
        """A pod by name, or an address in text."""
        namespace, _, short = who.rpartition("/")
        pod: Any = self.objects.get(Ref("Pod", namespace, short))
        return pod.addresses[0] if pod is not None else pack(who)

    def verdict(
        self, source: str, destination: str, port: int, protocol: str = "TCP", *, learned: tuple[str, ...] = ()
    ) -> str:
        """What happens to the first packet: the sender's egress first, then the receiver's ingress. `learned`: the
        names (as the policy writes them) that the sender has learned for the destination.
        """
        assert self.desired is not None
        maps = self._maps
        a, b, number = self.address(source), self.address(destination), PROTOCOLS[protocol]
        selectors = {name.text: selector for item in self.desired.policy.dns for name, selector in item.names.items()}
        verdict = FREE
        if maps.endpoint(a):
            verdict = maps.decide(a, EGRESS, b, number, port, tuple(selectors[name] for name in learned))
        if verdict in OPEN and maps.endpoint(b):
            verdict = maps.decide(b, INGRESS, a, number, port, ())
        return verdict

    def one_way(self, pod: str, direction: str, peer: str, port: int, protocol: str = "TCP") -> str:
        """ "allowed" or "denied": the policies of one local pod alone."""
        way = EGRESS if direction == "egress" else INGRESS
        verdict = self._maps.decide(self.address(pod), way, self.address(peer), PROTOCOLS[protocol], port, ())
        return "allowed" if verdict in OPEN else "denied"

    def would_deny(
        self, pod: str, direction: str, peer: str, port: int, protocol: str = "TCP", *, learned: tuple[str, ...] = ()
    ) -> bool:
        """Whether policies on trial would deny the pod's packet. `learned` as of `verdict`."""
        assert self.desired is not None
        way = EGRESS if direction == "egress" else INGRESS
        selectors = {name.text: selector for item in self.desired.policy.dns for name, selector in item.names.items()}
        numbers = tuple(selectors[name] for name in learned)
        return self._maps.would_deny(self.address(pod), way, self.address(peer), PROTOCOLS[protocol], port, numbers)

    def identity(self, who: str) -> int:
        """What the programs see in the address."""
        return self._maps.identity(self.address(who))

    def may_ask(self, pod: str, server: str, port: int = 53) -> set[str]:
        """Which names the pod may ask for at this server (a pod by name, or an address), as policies write them."""
        assert self.desired is not None
        number = layout.Endpoint.unpack(self.table("endpoints").entries[self.address(pod)]).id
        queries = next((item.queries for item in self.desired.policy.dns if item.endpoint == number), {})
        servers = {(identity, at) for identity in (0, self.identity(server)) for at in (0, port)}
        found = [names for place, names in queries.items() if (place.identity, place.port) in servers]
        return {name.text for names in found for name in names}

    def table(self, name: str) -> Table:
        return self.before.tables[name]

    def backends(self, address: str, port: int, *, protocol: str = "TCP", scope: int = 0) -> list[bytes] | None:
        """The backends' addresses of a service entry, slot by slot; None if there is no entry. "" = node port."""
        tables = self.before.tables
        packed = pack(address) if address else ANY
        raw = tables["services"].entries.get(layout.ServiceKey(packed, port, PROTOCOLS[protocol], scope).pack())
        if raw is None:
            return None
        service = layout.Service.unpack(raw)
        if not service.slots:
            return []
        region = tables["slots"].entries[layout.Number(service.first).pack()]
        ids = [region[at : at + 4] for at in range(0, 4 * service.slots, 4)]
        return [layout.Backend.unpack(tables["backends"].entries[key]).address for key in ids]


def check_between(old: Tables, new: Tables, sizes: Mapping[str, int] | None = None) -> Maps:
    """Replay the plan from `old` to `new`, checking after every write; the maps at the end."""
    maps, watched = Maps(old), _Probes(Maps(old), Maps(new))
    for change in plan(old, new):
        if sizes is not None and change.table != "slots":
            _check_room(maps, change, sizes[change.table])
        maps.apply(change)
        if change.table in ("services", "slots", "backends"):
            _check_services(maps)
        for probe in watched.concerned(change):
            _check(change, probe, maps.decide(*probe), *watched.expected[probe])
    for name in NAMES:
        assert maps.tables[name] == dict(new[name].entries), f"{name}: replaying the changes gives another table"
    return maps


def check_torn(old: Tables, torn: Tables, new: Tables) -> None:
    """What a plan from `old` to `new` left that was broken off, or is written by another hand beside."""
    maps = Maps(torn)
    for probe, expected in _Probes(Maps(old), Maps(new)).expected.items():
        _check(None, probe, maps.decide(*probe), *expected)
    _check_services(maps)


def _check_room(maps: Maps, change: Change, size: int) -> None:
    """As the kernels do it: before Linux 6.13, a full trie does not even let a value be replaced."""
    table, trie = maps.tables[change.table], change.table in ("policy", "identities")
    if change.op is Op.PUT and (trie or change.key not in table):
        assert len(table) < size, f"map {change.table} is full ({size}) before {change}"


Probe = tuple[bytes, int, bytes, int, int, tuple[int, ...]]


def _probes(was: Maps, will: Maps) -> Iterator[Probe]:
    """Packets between every endpoint and every known address and range, on the ports that rules know and beside."""
    pods = was.tables["endpoints"].keys() | will.tables["endpoints"].keys()
    peers = {pack("203.0.113.9")}
    selectors: set[int] = set()
    ports = {(6, 80), (1, 8)}
    for maps in (was, will):
        for raw in maps.tables["identities"]:
            key = layout.PrefixKey.unpack(raw)
            last = int.from_bytes(key.address) | ((1 << (128 - key.bits)) - 1)
            peers |= {key.address, last.to_bytes(16)} if key.bits >= 96 else {V4_MAPPED + bytes([8, 8, 8, 8])}
        for raw in maps.tables["policy"]:
            rule = layout.PolicyKey.unpack(raw)
            if rule.peer >= 3 << 30:
                selectors.add(rule.peer)
            if rule.bits > 80:
                ports.add((rule.protocol, rule.port))
                if rule.bits == 96:  # of a range, one port of each block is enough
                    ports.add((rule.protocol, (rule.port + 1) % 65536))
    learned: list[tuple[int, ...]] = [(), *((selector,) for selector in sorted(selectors))]
    for pod, peer, direction in itertools.product(sorted(pods), sorted(peers), (INGRESS, EGRESS)):
        for protocol, port in sorted(ports):
            for known in learned if direction == EGRESS else [()]:
                yield pod, direction, peer, protocol, port, known


class _Probes:
    """The probe packets, what the tables before and after say of each, and which ones a write concerns."""

    def __init__(self, was: Maps, will: Maps) -> None:
        probes = list(_probes(was, will))
        self.expected = {p: (was.decide(*p), will.decide(*p), _moves(p, was, will)) for p in probes}
        self._of_pod: dict[tuple[bytes, int], list[Probe]] = defaultdict(list)
        self._of_peer: dict[bytes, list[Probe]] = defaultdict(list)
        for probe in probes:
            self._of_pod[probe[0], probe[1]].append(probe)
            self._of_peer[probe[2]].append(probe)
        self._pods: dict[int, set[bytes]] = defaultdict(set)
        for maps in (was, will):
            for pod, value in maps.tables["endpoints"].items():
                self._pods[layout.Endpoint.unpack(value).id].add(pod)

    def concerned(self, change: Change) -> Iterator[Probe]:
        if change.table == "policy":
            key = layout.PolicyKey.unpack(change.key)
            for pod in self._pods[key.endpoint]:
                for probe in self._of_pod[pod, key.direction]:
                    if key.bits == layout.POLICY_BITS_ANY or key.protocol == probe[3]:
                        yield probe
        elif change.table == "identities":
            place = layout.PrefixKey.unpack(change.key)
            for peer, probes in self._of_peer.items():
                if peer in Prefix(place.address, place.bits):
                    yield from probes
        elif change.table == "endpoints":
            for direction in (INGRESS, EGRESS):
                yield from self._of_pod[change.key, direction]


def _moves(probe: Probe, was: Maps, will: Maps) -> bool:
    """Whether the two ends are not the same pod and identity before and after."""
    ends = [(maps.identity(probe[2]), maps.endpoint(probe[0])) for maps in (was, will)]
    (before, old), (after, new) = ends
    return before != after or (old.id if old else 0) != (new.id if new else 0)


def _check(change: Change | None, probe: Probe, now: str, old: str, new: str, moves: bool) -> None:
    broken = ""
    if now in OPEN and old not in OPEN and new not in OPEN:
        broken = "opened"
    elif now == REDIRECTED and not {old, new} & {*OPEN, REDIRECTED}:
        broken = "redirected"
    elif now not in OPEN and old in OPEN and new in OPEN and not moves:
        broken = "dropped"
    assert not broken, f"{broken} after {change}: {probe}: {old} -> {now} -> {new}"


def _check_services(maps: Maps) -> None:
    for value in maps.tables["services"].values():
        service = layout.Service.unpack(value)
        if service.slots:
            region = maps.tables["slots"][layout.Number(service.first).pack()]
            assert len(region) == 4 * service.slots
            for at in range(0, len(region), 4):
                assert region[at : at + 4] in maps.tables["backends"], "a slot names a backend that is not there"

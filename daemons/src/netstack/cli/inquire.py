"""Asks the real programs about a flow (netstack.kernel.trial), and the daemons for the names of what answers.

The kernel decides and is read directly, so a node whose daemons are down can still be asked; rules and identities then
have numbers instead of names.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from netstack.agent.policy.names import BASE as NAMES_FROM
from netstack.cli.explain import ECHO, Explanation, Party, Stage, considered, suggestion
from netstack.cli.frames import WITH_PORTS, Flow, destination, first_packet
from netstack.core.address import ANY, is_v4, pack, unpack
from netstack.core.protocol import PROTOCOLS
from netstack.core.unit import RUN, ask
from netstack.core.verdict import Verdict
from netstack.kernel import layout
from netstack.kernel.attach import TrafficControl
from netstack.kernel.loader import LoaderSettings
from netstack.kernel.trial import Outcome, Trial

GATEWAY = pack(str(ipaddress.IPv4Address(layout.GATEWAY_V4)))
STRANGER_MAC = bytes.fromhex("020000000001")
"""Of whoever is no node and sends from the LAN: no program looks at it."""


class Unanswerable(Exception):
    """The question cannot be put to this node; the text says why."""


class Inquiry:
    """One node, as its tables are now. LoaderError or BpfError if they are not there."""

    def __init__(self, settings: LoaderSettings, run: Path = RUN) -> None:
        self._settings, self._run = settings, run
        self._stack = ExitStack()
        self._trial = self._stack.enter_context(Trial(settings))
        self._maps = self._trial.maps
        raw = self._maps["config"].get(layout.Number(0).pack())
        self._config = layout.Config.unpack(raw) if raw else layout.Config()
        names = self._ask("agent", "names") or {}
        self._pods = {view["pod"]: view for view in names.get("endpoints", ())}
        self._host: dict[str, Any] = names.get("host") or {}
        self._elsewhere: dict[str, str] = dict(names.get("pods", {}))
        """Address -> pod, of every node."""
        self._nodes: dict[str, str] = dict(names.get("nodes", {}))
        self._servers: list[str] = list(names.get("dns", ()))
        self._rules = {int(number): name for number, name in names.get("rules", {}).items()}
        self._labels = {item["identity"]: item["labels"] for item in self._ask("agent", "identities") or ()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def explain(self, source: str, to: str, port: int, protocol: str, namespace: str = "default") -> list[Explanation]:
        """One explanation. If `to` is a DNS name: one of the pod's question for it, and one for each address learned.

        `source` and `to`: an address, or pod/NAME or pod/NAMESPACE/NAME; `to` also a DNS name. ICMP is that of the
        addresses' family.
        """
        if protocol in WITH_PORTS and not port:
            raise Unanswerable(f"which port of {to}? With {protocol} it is {to}:PORT")
        if protocol in ECHO and port:
            raise Unanswerable(f"{protocol} has no ports: it is asked with {to} alone")
        start = self._party(source, namespace)
        if protocol in ECHO:
            protocol = "ICMP" if is_v4(start.address) else "ICMPv6"
        try:
            end = self._party(to, namespace)
        except ValueError:
            return self._by_name(start, to.lower().removesuffix("."), port, protocol)
        return [self._one(start, end, port, protocol)]

    def _by_name(self, start: Party, name: str, port: int, protocol: str) -> list[Explanation]:
        if not start.endpoint:
            raise Unanswerable(
                f"{name} is no address, and {start.name} no pod of this node, whose names would be known"
            )
        if self._learned is None:
            raise Unanswerable(f"{name} is no address, and netstack-dns, which knows names, does not answer")
        meant = Flow(start.address, ANY, port, protocol)
        servers = _alike(start, self._servers)
        found = [self._one(start, self._at(server, "name server"), 53, "UDP", name, meant) for server in servers]
        own = (item for item in self._learned if item["endpoint"] == start.endpoint)
        addresses = _alike(start, (item["address"] for item in own if f"{name}." in item["names"]))
        found += [self._one(start, self._at(address, name), port, protocol, name) for address in addresses]
        if not found:
            raise Unanswerable(f"{start.name} has learned no address of {name}, and which server it asks is not known")
        return found

    # ---- who ----

    def _party(self, text: str, namespace: str) -> Party:
        """ValueError if the text is neither a pod nor an address."""
        kind, _, name = text.partition("/")
        if kind != "pod":
            return self._at(pack(text), text)
        full = name if "/" in name else f"{namespace}/{name}"
        address = next((address for address, pod in self._elsewhere.items() if pod == full), None)
        if full in self._pods:
            address = self._pods[full]["address"]
        if address is None:
            known = ", ".join(sorted(self._pods)) or "none, or the agent does not answer"
            raise Unanswerable(f"pod {full} is not known (pods of this node: {known}); ask by its address instead")
        return self._at(pack(address), f"pod {full}")

    def _at(self, address: bytes, name: str) -> Party:
        known = self._identity(address)
        if address == GATEWAY:
            known = layout.Identity(layout.IDENTITY_HOST, 0, self._own(address))
        text, own = unpack(address), self._endpoint(address)
        local = next((pod for pod, view in self._pods.items() if own and view["id"] == own.id), "")
        pod = local or self._elsewhere.get(text, "")
        if pod:
            name = f"pod {pod}"
        elif text in self._nodes:
            name = f"node {self._nodes[text]}"
        return Party(
            name=name,
            address=address,
            identity=known.identity,
            labels=self._labels.get(known.identity, {}),
            endpoint=own.id if own and own.id != layout.HOST_ENDPOINT else 0,
            node="" if known.node == ANY else unpack(known.node),
            policies=_denying(self._pods[local]) if local else {},
            pod=pod,
            service=self._maps["services"].get(layout.ServiceKey(address, 0, 0, layout.SCOPE_CLUSTER).pack())
            is not None,
        )

    def _identity(self, address: bytes, bits: int = 128) -> layout.Identity:
        """By no entry longer than `bits`."""
        raw = self._maps["identities"].get(layout.PrefixKey(bits, address).pack())
        return layout.Identity.unpack(raw) if raw else layout.Identity(layout.IDENTITY_WORLD)

    def _is_broadcast(self, address: bytes) -> bool:
        """Of a network of the LAN: this node's for who sends there from elsewhere, and not for itself (lib/host.h)."""
        with TrafficControl() as traffic:
            link = traffic.link(self._settings.uplink)
            networks = traffic.networks(link.index) if link else ()
        return any(address == network.nth((1 << 128 - network.bits) - 1) for network in networks)

    @cached_property
    def _itself(self) -> Party:
        """This node, as the endpoint that it is while policies select it."""
        address = self._config.node6 if self._config.node4 == ANY else self._config.node4
        policies = _denying(self._host) if self._host else {}
        return replace(self._at(address, "this node"), endpoint=layout.HOST_ENDPOINT, policies=policies)

    def _endpoint(self, address: bytes) -> layout.Endpoint | None:
        raw = self._maps["endpoints"].get(layout.AddressKey(address).pack())
        return layout.Endpoint.unpack(raw) if raw else None

    def _own(self, address: bytes) -> bytes:
        return self._config.node4 if is_v4(address) else self._config.node6

    @cached_property
    def _learned(self) -> list[dict[str, Any]] | None:
        """What pods of this node have learned; None if netstack-dns does not answer."""
        return cast("list[dict[str, Any]] | None", self._ask("dns", "names"))

    # ---- what ----

    def _one(
        self, source: Party, end: Party, port: int, protocol: str, name: str = "", meant: Flow | None = None
    ) -> Explanation:
        """`name`: what the pod calls `end`; or, with the flow that is `meant`, what it asks `end` for."""
        if is_v4(source.address) != is_v4(end.address):
            raise Unanswerable(f"{unpack(source.address)} and {unpack(end.address)} are of different families")
        flow = Flow(source.address, end.address, port, protocol)
        if source.identity == end.identity == layout.IDENTITY_HOST and self._is_broadcast(end.address):
            end = replace(end, identity=self._identity(end.address, 127).identity, node="")
        stages: list[Stage] = []
        notes: list[str] = []
        onward, came_by, reached, beyond = flow, 0, end, ""
        if source.identity == layout.IDENTITY_HOST:
            may = "policies for nodes judge what leaves by the LAN" if self._config.host else "may send everything"
            notes.append(f"this node itself: {may}; its sockets translate service addresses")
            if self._config.host and self._by_the_lan(end, flow):
                stages.append(self._sent_by_the_node(end, flow))
        else:
            stage, onward, came_by = self._leave(source, end, flow)
            stages.append(stage)
            if onward != flow:
                reached = self._at(onward.destination, unpack(onward.destination))
        if meant and stages[-1].verdict is Verdict.REDIRECTED_DNS:
            stages += self._asked(source, name, onward)
        if not any(stage.verdict.dropped for stage in stages):
            if reached.endpoint:
                stages.append(self._enter(source, reached, onward, came_by))
            elif reached.pod and reached.node:
                beyond = self._ask_there(source, reached, onward)
        if source.endpoint and not reached.endpoint and reached.identity != layout.IDENTITY_HOST:
            stages += self._refused_by_the_uplink(onward, came_by)
        for party in (source, reached):
            tried = next((view["on_trial"] for view in self._pods.values() if view["id"] == party.endpoint), ())
            notes += [
                f"{policy} selects {party.name}, but is on trial: it denies and allows nothing" for policy in tried
            ]
        if not meant:
            notes += self._shared(end.address)
        notes += self._stale()
        cure = self._cure(stages, source, reached, onward, name, meant or onward)
        return Explanation(source, end, flow, tuple(stages), tuple(notes), cure, name if meant else "", beyond)

    def _asked(self, source: Party, name: str, onward: Flow) -> Iterator[Stage]:
        """The DNS proxy's word on a question for a name."""
        server = {"server": unpack(onward.destination), "port": onward.port}
        told = self._ask("dns", "judge", pod=unpack(source.address), name=name, **server)
        if told is None:  # of an earlier release
            return
        where, opens = f"asks netstack-dns for {name}", tuple(told["opens"])
        if told["allowed"]:
            notes = () if opens else ("no toFQDNs in force has this name: the addresses learned are opened by no name",)
            yield Stage(where, Verdict.FORWARDED, ", ".join(opens), notes)
            return
        entries = self._entries(source.endpoint, layout.DIRECTION_EGRESS)
        named = {self._rule(rule.rule) for key, rule in entries if key.peer >= NAMES_FROM}
        yield Stage(
            where,
            Verdict.DEFAULT_DENY,
            notes=(
                f"netstack-dns: {told['reason']}",
                *(f"{policy} selects it" for policy in source.policies["egress"]),
                *(f"{rule} is for other names" for rule in sorted(named)),
            ),
        )

    def _ask_there(self, source: Party, reached: Party, flow: Flow) -> str:
        """What to ask on the node of the pod that is reached, whose tables alone know what it accepts."""
        node = self._nodes.get(reached.node, reached.node)
        start = f"pod/{source.pod}" if source.pod else unpack(source.address)
        port = f":{flow.port}" if flow.protocol in WITH_PORTS else ""
        asking = f"netstack explain {start} --to pod/{reached.pod}{port} --protocol {flow.protocol}"
        return f"what {reached.name} accepts, node {node} knows; there: {asking}"

    def _shared(self, address: bytes) -> Iterator[str]:
        """A note, if pods of this node have learned several names for the address."""
        names = {name for item in self._learned or () if pack(item["address"]) == address for name in item["names"]}
        if len(names) > 1:
            known = ", ".join(sorted(name.removesuffix(".") for name in names))
            yield f"address shared, name not proven: pods have learned it for {known}"

    def _leave(self, source: Party, end: Party, flow: Flow) -> tuple[Stage, Flow, int]:
        """The program at which the flow's first packet begins; the flow as it goes on, and by which device."""
        own = self._endpoint(source.address)
        if own is not None:
            program, device, macs = "pod_ingress", own.ifindex, (own.mac, own.host_mac)
            where = f"leaves {source.name}"
        else:
            program, device, macs = "uplink_ingress", self._config.uplink, self._uplink_macs(source)
            where = f"arrives at {self._settings.uplink}"
        outcome = self._trial.run(program, first_packet(flow, *macs), device=device, came_by=device)
        address, port = destination(outcome.frame)
        onward = flow if outcome.verdict.dropped else Flow(flow.source, address, port, flow.protocol)
        notes = []
        if onward != flow:
            notes.append(f"service {unpack(flow.destination)} port {flow.port} -> {unpack(address)} port {port}")
        if outcome.direction == layout.DIRECTION_INGRESS:  # the policies for nodes have spoken, of this one
            stage = self._stage(
                f"enters {self._itself.name}", outcome, self._itself, source, flow, outcome.direction, []
            )
        else:
            judged = self._at(address, end.name)
            stage = self._stage(where, outcome, source, judged, onward, layout.DIRECTION_EGRESS, notes)
        return stage, onward, device

    def _by_the_lan(self, end: Party, flow: Flow) -> bool:
        """Whether what this node sends there leaves by the uplink, and as it is."""
        if end.endpoint or end.identity == layout.IDENTITY_HOST or end.service:
            return False
        at = (end.address, ANY) if unpack(end.address) in self._nodes else (end.address,)
        protocol = PROTOCOLS[flow.protocol]
        keys = (layout.ServiceKey(address, flow.port, protocol, layout.SCOPE_CLUSTER).pack() for address in at)
        return all(self._maps["services"].get(key) is None for key in keys)

    def _sent_by_the_node(self, end: Party, flow: Flow) -> Stage:
        """The egress policies for nodes."""
        _, mac = self._uplink_macs(self._itself)
        outcome = self._trial.run(
            "uplink_egress", first_packet(flow, mac, STRANGER_MAC), device=self._config.uplink, came_by=0
        )
        where = f"leaves {self._itself.name}"
        return self._stage(where, outcome, self._itself, end, flow, layout.DIRECTION_EGRESS, [])

    def _refused_by_the_uplink(self, flow: Flow, came_by: int) -> Iterator[Stage]:
        """A word against it, which no policy changes: not everything can be given the node's address."""
        _, mac = self._uplink_macs(self._itself)
        frame = first_packet(flow, mac, STRANGER_MAC)
        outcome = self._trial.run("uplink_egress", frame, device=self._config.uplink, came_by=came_by)
        if outcome.verdict.dropped:
            yield Stage(f"leaves the node by {self._settings.uplink}", outcome.verdict)

    def _enter(self, source: Party, end: Party, flow: Flow, came_by: int) -> Stage:
        """The ingress policy of a pod of this node."""
        own = self._endpoint(end.address)
        assert own is not None  # noqa: S101 - end.endpoint says so
        frame = first_packet(flow, own.host_mac, own.mac)
        outcome = self._trial.run("pod_egress", frame, device=own.ifindex, came_by=came_by)
        return self._stage(f"enters {end.name}", outcome, end, source, flow, layout.DIRECTION_INGRESS, [])

    def _stage(
        self, where: str, outcome: Outcome, subject: Party, peer: Party, flow: Flow, direction: int, notes: list[str]
    ) -> Stage:
        if outcome.verdict is Verdict.DEFAULT_DENY:
            judging = subject.policies.get("ingress" if direction == layout.DIRECTION_INGRESS else "egress", ())
            notes += [f"{policy} selects it" for policy in judging]
            entries = self._entries(subject.endpoint, direction)
            peers = (peer.identity, layout.IDENTITY_ANY, *self._selectors(subject.endpoint, peer.address))
            notes += considered(entries, self._rules, peers, flow)
        if outcome.audited:
            by = self._rule(outcome.audit_rule) or "for want of a rule that allows it"
            notes.append(f"policies on trial would deny it: {by}")
        return Stage(where, outcome.verdict, self._rule(outcome.rule), tuple(notes))

    def _rule(self, number: int) -> str:
        """Its name; "" for none."""
        return self._rules.get(number, f"rule {number}") if number else ""

    def _entries(self, endpoint: int, direction: int) -> Iterator[tuple[layout.PolicyKey, layout.PolicyRule]]:
        for raw, value in self._maps["policy"].items():
            key = layout.PolicyKey.unpack(raw)
            if (key.endpoint, key.direction) == (endpoint, direction):
                yield key, layout.PolicyRule.unpack(value)

    def _selectors(self, endpoint: int, address: bytes) -> list[int]:
        """Those that have not expired."""
        raw = self._maps["fqdn"].get(layout.FqdnKey(endpoint, address).pack())
        now_s = time.monotonic()
        return [number for number, expires_s in layout.Fqdn.read(raw).items() if now_s < expires_s] if raw else []

    @staticmethod
    def _cure(stages: list[Stage], source: Party, end: Party, flow: Flow, name: str, meant: Flow) -> dict[str, Any]:
        """`name`, `meant`: what the pod wants in the end; it may be only asking for it yet."""
        if not stages or stages[-1].verdict is not Verdict.DEFAULT_DENY:
            return {}
        if stages[-1].where.startswith("enters"):
            return suggestion(layout.DIRECTION_INGRESS, end, source, flow)
        return suggestion(layout.DIRECTION_EGRESS, source, end, meant, name)

    # ---- the node ----

    def _stale(self) -> Iterator[str]:
        for name in self._trial.differing():
            yield f"program {name} on this node is not that of this release: answers are this release's"

    def _uplink_macs(self, source: Party) -> tuple[bytes, bytes]:
        """Of who would bring a packet of `source` to this node, and this node's own."""
        with TrafficControl() as traffic:
            link = traffic.link(self._settings.uplink)
            if link is None:
                raise Unanswerable(f"there is no device {self._settings.uplink}")
            known = traffic.neighbours(link.index)
        return known.get(pack(source.node), STRANGER_MAC) if source.node else STRANGER_MAC, link.mac

    def _ask(self, daemon: str, command: str, **details: Any) -> Any:
        """None if the daemon does not answer."""
        try:
            return ask(daemon, {"command": command, **details}, run=self._run)
        except (OSError, RuntimeError):
            return None


def _alike(start: Party, texts: Iterable[str]) -> list[bytes]:
    """The addresses that are of the family of who starts: resolvers ask for both, whatever the pod has."""
    return [address for address in map(pack, texts) if is_v4(address) == is_v4(start.address)]


def _denying(view: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Of an endpoint as the agent shows it."""
    enforced = view["policies"]
    return {way: tuple(ref for ref in refs if ref in enforced) for way, refs in view["denies"].items()}


def parse_destination(text: str) -> tuple[str, int]:
    """`10.0.0.7:443`, `[fd00::7]:443`, `pod/ns/name:80`, `api.example.com:443`; without a port, 0. ValueError."""
    if not text.startswith("[") and text.count(":") > 1:
        return text, 0
    parts = re.fullmatch(r"(?:\[([^]]+)\]|([^:[]+))(?::([0-9]+))?", text)
    if parts is None or int(parts[3] or 0) > 65535:
        raise ValueError(f"{text!r} has no host, or a port that is none")
    return parts[1] or parts[2], int(parts[3] or 0)

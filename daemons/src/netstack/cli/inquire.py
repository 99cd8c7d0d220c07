"""Asks the real programs about a flow (netstack.kernel.trial), and the daemons for the names of what answers.

The kernel decides and is read directly, so a node whose daemons are down can still be asked; rules and identities then
have numbers instead of names.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from netstack.cli.explain import Explanation, Party, Stage, considered, suggestion
from netstack.cli.frames import Flow, destination, first_packet
from netstack.core.address import ANY, is_v4, pack, unpack
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
        self._pods = {view["pod"]: view for view in (self._ask("agent", "status") or {}).get("endpoints", ())}
        self._rules = {int(number): name for number, name in (self._ask("agent", "rules") or {}).items()}
        self._labels = {item["identity"]: item["labels"] for item in self._ask("agent", "identities") or ()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def explain(self, source: str, to: str, port: int, protocol: str, namespace: str = "default") -> list[Explanation]:
        """One explanation; several if `to` is a DNS name of which the pod has learned several addresses.

        `source` and `to`: an address, or pod/NAME or pod/NAMESPACE/NAME of a pod of this node; `to` also a DNS name.
        """
        start = self._party(source, namespace)
        try:
            ends = [self._party(to, namespace)]
        except ValueError:
            ends = [self._at(address, to) for address in self._learned(start, to)]
        return [self._one(start, end, port, protocol) for end in ends]

    # ---- who ----

    def _party(self, text: str, namespace: str) -> Party:
        """ValueError if the text is neither a pod nor an address."""
        kind, _, name = text.partition("/")
        if kind != "pod":
            return self._at(pack(text), text)
        full = name if "/" in name else f"{namespace}/{name}"
        if full not in self._pods:
            known = ", ".join(sorted(self._pods)) or "none, or the agent does not answer"
            raise Unanswerable(f"pod {full} is not on this node (its pods: {known}); ask by its address instead")
        return self._at(pack(self._pods[full]["address"]), f"pod {full}")

    def _at(self, address: bytes, name: str) -> Party:
        raw = self._maps["identities"].get(layout.PrefixKey(128, address).pack())
        known = layout.Identity.unpack(raw) if raw else layout.Identity(layout.IDENTITY_WORLD)
        if address == GATEWAY:
            known = layout.Identity(layout.IDENTITY_HOST, 0, self._own(address))
        own = self._endpoint(address)
        pod = next((pod for pod, view in self._pods.items() if own and view["id"] == own.id), "")
        return Party(
            name=f"pod {pod}" if pod else name,
            address=address,
            identity=known.identity,
            labels=self._labels.get(known.identity, {}),
            endpoint=own.id if own and own.id != layout.HOST_ENDPOINT else 0,
            node="" if known.node == ANY else unpack(known.node),
            policies=tuple(self._pods[pod]["policies"]) if pod else (),
        )

    def _endpoint(self, address: bytes) -> layout.Endpoint | None:
        raw = self._maps["endpoints"].get(layout.AddressKey(address).pack())
        return layout.Endpoint.unpack(raw) if raw else None

    def _own(self, address: bytes) -> bytes:
        return self._config.node4 if is_v4(address) else self._config.node6

    def _learned(self, source: Party, name: str) -> list[bytes]:
        """The addresses that the pod has learned for a DNS name."""
        wanted = name.lower().removesuffix(".") + "."
        entries = self._ask("dns", "names")
        if entries is None:
            raise Unanswerable(f"{name} is no address, and netstack-dns, which knows names, does not answer")
        found = [
            pack(item["address"]) for item in entries if item["endpoint"] == source.endpoint and wanted in item["names"]
        ]
        if not found:
            raise Unanswerable(f"{source.name} has learned no address of {name}: look it up in the pod first")
        return found

    def _shared(self, address: bytes) -> set[str]:
        """Every name that some pod of this node has learned for the address."""
        entries = self._ask("dns", "names") or ()
        return {name for item in entries if pack(item["address"]) == address for name in item["names"]}

    # ---- what ----

    def _one(self, source: Party, end: Party, port: int, protocol: str) -> Explanation:
        if is_v4(source.address) != is_v4(end.address):
            raise Unanswerable(f"{unpack(source.address)} and {unpack(end.address)} are of different families")
        flow = Flow(source.address, end.address, port, protocol)
        stages: list[Stage] = []
        notes = list(self._stale())
        onward, came_by, reached = flow, 0, end
        if source.identity == layout.IDENTITY_HOST:
            may = "policies for nodes judge what leaves by the LAN" if self._config.host else "may send everything"
            notes.append(f"this node itself: {may}; its sockets translate service addresses")
        else:
            stage, onward, came_by = self._leave(source, end, flow)
            stages.append(stage)
            if onward != flow:
                reached = self._at(onward.destination, unpack(onward.destination))
        if not stages or not stages[0].verdict.dropped:
            if reached.endpoint:
                stages.append(self._enter(source, reached, onward, came_by))
            elif reached.node and reached.node != unpack(self._own(reached.address)):
                notes.append(f"what {reached.name} accepts is for its node {reached.node} to say: ask there")
        for party in (source, reached):
            tried = next((view["on_trial"] for view in self._pods.values() if view["id"] == party.endpoint), ())
            notes += [
                f"{policy} selects {party.name}, but is on trial: it denies and allows nothing" for policy in tried
            ]
        names = self._shared(end.address)
        if len(names) > 1:
            notes.append(f"address shared, name not proven: pods have learned it for {', '.join(sorted(names))}")
        return Explanation(source, end, flow, tuple(stages), tuple(notes), self._cure(stages, source, reached, onward))

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
        judged = self._at(address, end.name)
        stage = self._stage(where, outcome, source, judged, onward, layout.DIRECTION_EGRESS, notes)
        return stage, onward, device

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
            notes += [f"{policy} selects it" for policy in subject.policies]
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
        raw = self._maps["fqdn"].get(layout.FqdnKey(endpoint, address).pack())
        return list(layout.Fqdn.unpack(raw).expiries()) if raw else []

    @staticmethod
    def _cure(stages: list[Stage], source: Party, end: Party, flow: Flow) -> dict[str, Any]:
        if not stages or stages[-1].verdict is not Verdict.DEFAULT_DENY:
            return {}
        if stages[-1].where.startswith("enters"):
            return suggestion(layout.DIRECTION_INGRESS, source, flow)
        return suggestion(layout.DIRECTION_EGRESS, end, flow)

    # ---- the node ----

    def _stale(self) -> Iterator[str]:
        for name in ("pod_ingress", "pod_egress", "uplink_ingress"):
            if self._trial.differs(name):
                yield f"program {name} on this node is not that of this release: answers are this release's"

    def _uplink_macs(self, source: Party) -> tuple[bytes, bytes]:
        """Of who would bring a packet of `source` to this node, and this node's own."""
        with TrafficControl() as traffic:
            link = traffic.link(self._settings.uplink)
            if link is None:
                raise Unanswerable(f"there is no device {self._settings.uplink}")
            known = traffic.neighbours(link.index)
        return known.get(pack(source.node), STRANGER_MAC) if source.node else STRANGER_MAC, link.mac

    def _ask(self, daemon: str, command: str) -> Any:
        """None if the daemon does not answer."""
        try:
            return ask(daemon, {"command": command}, run=self._run)
        except (OSError, RuntimeError):
            return None


def parse_destination(text: str) -> tuple[str, int]:
    """`10.0.0.7:443`, `[fd00::7]:443`, `pod/ns/name:80`, `api.example.com:443`; without a port, 0. ValueError."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, int(rest.removeprefix(":") or 0)
    if text.count(":") > 1:
        return text, 0
    host, _, port = text.partition(":")
    number = int(port or 0)
    if not host or not 0 <= number <= 65535:
        raise ValueError(f"{text!r} has no host, or a port that is none")
    return host, number

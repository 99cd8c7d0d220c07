"""An event as people and programs read it, and which of them somebody wants to see. Pure."""

from __future__ import annotations

import fnmatch
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from netstack.core.address import ANY, unpack
from netstack.core.protocol import PROTOCOL_NAMES
from netstack.core.verdict import Verdict
from netstack.kernel import layout
from netstack.observer.names import Names, kind

DIRECTIONS = {layout.DIRECTION_INGRESS: "ingress", layout.DIRECTION_EGRESS: "egress"}
NANO = 1_000_000_000


def addresses(event: layout.Event) -> tuple[str, str]:
    """Source and destination; "" where no IP header was read."""
    return tuple("" if raw == ANY else unpack(raw) for raw in (event.source, event.destination))  # type: ignore[return-value]


def named(event: layout.Event, names: Names, boot: float) -> dict[str, Any]:
    """`boot`: the wall-clock time at which CLOCK_MONOTONIC was zero, seconds since 1970."""
    verdict = Verdict(event.verdict)
    number = event.endpoint or names.endpoint_at(event.ifindex)
    endpoint = names.endpoints.get(number)
    source, destination = addresses(event)
    ingress = event.direction == layout.DIRECTION_INGRESS
    own, peer = (destination, source) if ingress else (source, destination)
    pods = {own: endpoint.pod if endpoint else names.pod(own), peer: names.pod(peer)}
    judging = () if endpoint is None else endpoint.on_trial if verdict is Verdict.AUDITED else endpoint.policies
    direction = DIRECTIONS.get(event.direction, "")
    denying = endpoint.denies.get(direction, ()) if endpoint else ()
    unruled = not event.rule and event.direction and verdict in (Verdict.DEFAULT_DENY, Verdict.AUDITED)
    return {
        "time": boot + event.at / NANO,
        "verdict": verdict.name,
        "reason": verdict.reason,
        "direction": direction,
        "endpoint": number,
        "pod": endpoint.pod if endpoint else "",
        "source": _party(source, event.source_port, pods.get(source, ""), names),
        "destination": _party(destination, event.port, pods.get(destination, ""), names),
        "learned": [] if names.pod(peer) else list(names.learned(number, peer)),
        "identity": event.peer,
        "entity": kind(event.peer) if event.direction else "",
        "protocol": PROTOCOL_NAMES.get(event.protocol, str(event.protocol) if event.protocol else ""),
        "rule": names.rule(event.rule),
        "policies": [policy for policy in judging if policy in denying] if unruled else [],
        "repeats": event.repeats,
    }


def _party(address: str, port: int, pod: str, names: Names) -> dict[str, Any]:
    return {
        "address": address,
        "port": port,
        "pod": pod,
        "node": "" if pod else names.node(address),
        "names": [] if pod else list(names.dns(address)),
    }


@dataclass(frozen=True, slots=True)
class Filter:
    """Every field that is given must match; a field with several values needs one of them. None given: everything.

    Pods match by the beginning of `namespace/name` (`shop/` is a namespace, `shop/cart` every replica), names by a
    pattern with `*`.
    """

    pod: tuple[str, ...] = ()
    from_pod: tuple[str, ...] = ()
    to_pod: tuple[str, ...] = ()
    namespace: tuple[str, ...] = ()
    ip: tuple[str, ...] = ()
    """Addresses or networks."""
    name: tuple[str, ...] = ()
    port: tuple[int, ...] = ()
    protocol: tuple[str, ...] = ()
    verdict: tuple[str, ...] = ()
    """`allowed`, `dropped`, `audited`, or the name of a verdict."""

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Filter:
        """From a request on the control socket. ValueError names the field."""
        known = {spec.name for spec in fields(cls)}
        for field, values in data.items():
            if field not in known:
                raise ValueError(f"filter {field}: unknown; known are {', '.join(sorted(known))}")
            kind = int if field == "port" else str
            if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
                raise ValueError(f"filter {field}: must be a list of {kind.__name__}")
        made = cls(**{field: tuple(values) for field, values in data.items()})
        for text in made.ip:
            try:
                ipaddress.ip_network(text, strict=False)
            except ValueError as error:
                raise ValueError(f"filter ip: {error}") from error
        for text in made.verdict:
            if text.lower() not in OUTCOMES and text.upper() not in Verdict.__members__:
                raise ValueError(f"filter verdict: {text!r} is none of {', '.join((*OUTCOMES, *Verdict.__members__))}")
        return made

    def matches(self, flow: Mapping[str, Any]) -> bool:
        source, destination = flow["source"], flow["destination"]
        ends = (source, destination)
        tests: tuple[tuple[tuple[Any, ...], Callable[[Any], bool]], ...] = (
            (self.pod, lambda text: any(_is_pod(end, text) for end in ends)),
            (self.from_pod, lambda text: _is_pod(source, text)),
            (self.to_pod, lambda text: _is_pod(destination, text)),
            (self.namespace, lambda text: any(end["pod"].startswith(f"{text}/") for end in ends)),
            (self.ip, lambda text: any(_within(end["address"], text) for end in ends)),
            (self.name, lambda text: any(fnmatch.fnmatch(n, text.lower()) for end in ends for n in end["names"])),
            (self.port, lambda number: number in (source["port"], destination["port"])),
            (self.protocol, lambda text: text.upper() == flow["protocol"].upper()),
            (self.verdict, lambda text: _is_verdict(flow["verdict"], text)),
        )
        return all(not values or any(map(test, values)) for values, test in tests)


OUTCOMES = ("allowed", "dropped", "audited")


def _is_pod(end: Mapping[str, Any], text: str) -> bool:
    return bool(end["pod"]) and end["pod"].startswith(text)


def _within(address: str, network: str) -> bool:
    return bool(address) and ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)


def _is_verdict(name: str, text: str) -> bool:
    verdict = Verdict.of(name)
    outcome = "dropped" if verdict.dropped else "audited" if verdict is Verdict.AUDITED else "allowed"
    return text.lower() == outcome or text.upper() == name

"""Policies for nodes (nodeSelector): the node as an endpoint, and what of its traffic no policy cuts.

A policy that denies everything would lock its author out: of the node, of the API server by which it could be taken
back, and the node out of its cluster. So some flows pass whatever policies say, unless protection is switched off:

    to the node      SSH and the API server from anybody; the kubelet from the API server; answers of DHCP servers
    from the node    to API servers; to DHCP servers; the DNS proxy's questions to the cluster's DNS servers

The node reaches its own pods in any case, answers pass with what they answer, and what goes to many (multicast,
255.255.255.255) and neighbour discovery are not judged at all (files/bpf/lib/host.h).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from netstack.agent.policy.entries import Entries, Server, Subject
from netstack.agent.policy.peers import Match, Resolver
from netstack.agent.policy.rules import Action, Direction
from netstack.core.protocol import TCP, UDP
from netstack.core.ref import Ref, RuleRef
from netstack.kernel import layout

KUBELET = 10250
DHCP = ((68, 67), (546, 547))
"""(client's, server's) port of UDP, RFC 2131 and RFC 8415."""
NODE = Ref("Node", "", "host")


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays reachable. `protected`: SSH, API server and kubelet too."""

    ssh_ports: tuple[int, ...] = (22,)
    api_port: int = 6443
    protected: bool = True

    @property
    def ports(self) -> frozenset[tuple[int, int]]:
        """(protocol, port) of a node that no Service may take, whether policies may cut them or not."""
        tcp = (*self.ssh_ports, self.api_port, KUBELET)
        return frozenset({*((TCP, port) for port in tcp), *((UDP, client) for client, _ in DHCP)})

    def __str__(self) -> str:
        if not self.protected:
            return "lock-out protection is switched off"
        ssh = ", ".join(map(str, self.ssh_ports))
        return f"always reachable: SSH (TCP {ssh}), API server (TCP {self.api_port}), kubelet for the API server"


def keep(made: Subject, kept: Kept, resolver: Resolver, servers: Iterable[Server]) -> Subject:
    """The node's rules with what is kept open, also inside of denies."""
    flows = tuple(_flows(kept, resolver, servers))
    trial = _open(made.trial, flows, resolver) if made.on_trial else made.trial
    return replace(made, entries=_open(made.entries, flows, resolver), trial=trial)


def _flows(kept: Kept, resolver: Resolver, servers: Iterable[Server]) -> Iterator[tuple[Match, RuleRef]]:
    """Those from or to certain peers first."""
    for server in servers:
        for protocol in (UDP, TCP):
            match = Match(server.identity, Direction.EGRESS, protocol, server.port, 16)
            yield match, RuleRef(NODE, "the cluster's DNS stays reachable")
    if kept.protected:
        for peer in resolver.of_entity("kube-apiserver"):
            match = Match(peer, Direction.INGRESS, TCP, KUBELET, 16)
            yield match, RuleRef(NODE, "the kubelet stays reachable for the API server")
        for port in kept.ssh_ports:
            yield _anyone(Direction.INGRESS, TCP, port), RuleRef(NODE, "SSH stays reachable")
        for direction in Direction:
            yield _anyone(direction, TCP, kept.api_port), RuleRef(NODE, "the API server stays reachable")
    for client, server_port in DHCP:
        yield _anyone(Direction.INGRESS, UDP, client), RuleRef(NODE, "DHCP goes on")
        yield _anyone(Direction.EGRESS, UDP, server_port), RuleRef(NODE, "DHCP goes on")


def _anyone(direction: Direction, protocol: int, port: int) -> Match:
    return Match(layout.IDENTITY_ANY, direction, protocol, port, 16)


def _open(entries: Entries, flows: tuple[tuple[Match, RuleRef], ...], resolver: Resolver) -> Entries:
    """Within one peer the longest prefix decides alone, so one port can be taken out of a wider deny."""
    found = dict(entries)
    denies = [(match, ref) for match, (action, ref) in entries.items() if action is Action.DENY]
    certain = {match for match, _ in flows if match.peer != layout.IDENTITY_ANY}
    for match, ref in flows:
        over = {deny.peer: why for deny, why in denies if deny.direction is match.direction and deny.covers(match)}
        if match.peer == layout.IDENTITY_ANY:
            for peer in over:
                found[match._replace(peer=peer)] = (Action.ALLOW, ref)
        elif layout.IDENTITY_ANY in over:  # the deny of anybody becomes one of everybody else
            for peer in resolver.everyone():
                if match._replace(peer=peer) not in certain:
                    found[match._replace(peer=peer)] = (Action.DENY, over[layout.IDENTITY_ANY])
            found[match._replace(peer=layout.IDENTITY_ANY)] = (Action.ALLOW, ref)
        found[match] = (Action.ALLOW, ref)
    return found

"""What a change means to people: pairs put together, and flows that were seen judged by the tables."""

from __future__ import annotations

from typing import Any

import yaml

from instruments import clusters
from netstack.agent.desired import Place
from netstack.agent.effect import ALL_PORTS, Effect, Party, State, parties
from netstack.cli.effect import Flow, Pairs, Told, flows, grouped, lines, render, report
from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.source.parse import parse, reference
from netstack.source.snapshot import Snapshot

POLICY = Ref("CiliumNetworkPolicy", "one", "p")
BY = (str(POLICY),)
NAMED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: one}
spec:
  endpointSelector: {}
  ingress: [{fromEntities: [world]}]
  egress:
  - {toFQDNs: [{matchPattern: "*.x.io"}, {matchName: y.io}], toPorts: [{ports: [{port: "443", protocol: TCP}]}]}
"""


def effect(
    source: str, destination: str, protocol: str = "TCP", ports: range = ALL_PORTS, opens: bool = False
) -> Effect:
    a, b = (Party(name, name.encode().rjust(16, b"\0"), "n1", 1) for name in (source, destination))
    return Effect(a, b, protocol, ports, opens, BY)


def everything(source: str, destination: str) -> list[Effect]:
    return [effect(source, destination, protocol) for protocol in ("TCP", "UDP", "SCTP", "ICMP")]


def test_who_loses_the_same_to_the_same_is_told_together() -> None:
    pods = ("one/a", "one/b", "one/c")
    found = [one for a in (*pods, "two/d") for b in pods if a != b for one in everything(a, b)]
    assert grouped(found) == (Pairs(False, (*pods, "two/d"), pods, "everything", BY),)
    assert grouped([*found, *everything("one/a", "world")]) == (
        Pairs(False, ("one/a",), ("one/b", "one/c", "world"), "everything", BY),
        Pairs(False, ("one/b", "one/c", "two/d"), pods, "everything", BY),
    )


def test_what_is_told_apart() -> None:
    found = [
        effect("one/a", "one/b", "TCP", range(80, 91)),
        effect("one/a", "one/b", "TCP", range(443, 444)),
        effect("one/a", "one/b", "UDP"),
        effect("one/a", "one/b", "SCTP", opens=True),
    ]
    assert list(map(str, grouped(found))) == [
        f"denies one/a -> one/b: TCP 80-90/443, UDP, by {POLICY}",
        f"opens one/a -> one/b: SCTP, by {POLICY}",
    ]


def test_a_line_counts_what_it_does_not_list() -> None:
    names = tuple(f"one/{number}" for number in range(9))
    text = str(Pairs(True, names, ("world",), "everything", BY))
    assert text.startswith("opens one/0, one/1, one/2, one/3, one/4, one/5, 3 more -> world: everything")


def end(address: str, port: int = 0) -> dict[str, Any]:
    return {"address": address, "port": port, "pod": "", "node": "", "names": ["of-another-pod.x.io"]}


def seen(source: str, destination: str, port: int = 443, **fields: Any) -> dict[str, Any]:
    source, destination = (clusters.ADDRESSES.get(name, name) for name in (source, destination))
    return {
        "verdict": "FORWARDED",
        "direction": "egress",
        "source": end(source, 40000),
        "destination": end(destination, port),
        "learned": [],
        "entity": "pod",
        "protocol": "TCP",
        "repeats": 0,
    } | fields


def changed(events: list[dict[str, Any]], before: str, after: str) -> list[str]:
    pods = [clusters.pod(name, {}, [], "default") for name in clusters.PODS]

    def snapshot(text: str) -> Snapshot:
        manifests = [*map(clusters.node, (1, 2, 3)), *pods, *yaml.safe_load_all(text)]
        found = {reference(item): parse(item) for item in manifests if item}
        return Snapshot({ref: item for ref, item in found.items() if item is not None})

    everyone = parties(snapshot(""))
    was, will = (State(snapshot(text), everyone, Place("", (), ())) for text in (before, after))
    return list(map(str, flows(events, was, will, everyone, POLICY)))


def test_a_flow_between_pods_is_one_however_often_it_was_seen() -> None:
    events = [
        seen("one/a", "two/b", repeats=2),
        seen("one/a", "two/b"),
        seen("one/a", "two/b", direction="ingress"),
        seen("two/b", "two/d"),
        seen("one/a", "two/b", direction=""),
        seen("one/a", "two/b", verdict="SPOOFED"),
    ]
    assert changed(events, "", NAMED) == [f"denies one/a -> two/b TCP 443 (seen 4x), by {POLICY}"]


def test_what_was_denied_opens() -> None:
    event = seen("two/b", "one/a", 80, direction="ingress", verdict="DEFAULT_DENY")
    rule = NAMED.replace("[world]", "[world, cluster]")
    assert changed([event], NAMED, rule) == [f"opens two/b -> one/a TCP 80 (seen 1x), by {POLICY}: spec.ingress[0]"]
    assert changed([event], NAMED, NAMED) == []


def test_names_decide_about_the_world() -> None:
    world = {"entity": "world"}
    events = [
        seen("one/a", "8.8.8.8", learned=("api.x.io",), **world),
        seen("one/a", "8.8.4.4", learned=("deep.api.x.io",), **world),
        seen("one/a", "9.9.9.9", **world),
        seen("one/a", "9.9.9.9", 80, **world),
        seen("8.8.8.8", "one/a", 80, direction="ingress", **world),
    ]
    by = f"by {POLICY}"
    assert changed(events, "", NAMED) == [
        f"denies one/a -> 9.9.9.9 TCP 80 (seen 1x), {by}",
        f"denies one/a -> 9.9.9.9 TCP 443 (seen 1x), {by}, unless the pod asks for it as *.x.io or y.io",
        f"denies one/a -> deep.api.x.io 8.8.4.4 TCP 443 (seen 1x), {by}",
    ]
    opened = changed(events[:1], NAMED.replace("*.x.io", "z.io"), NAMED)
    assert opened == [f"opens one/a -> api.x.io 8.8.8.8 TCP 443 (seen 1x), {by}: spec.egress[0]"]


def test_a_ping_is_judged_by_its_type() -> None:
    """Events have no port of it."""
    pings = NAMED.replace("  egress:", "  egress:\n  - {toEntities: [world], icmps: [{fields: [{type: 8}]}]}")
    event = seen("one/a", "9.9.9.9", 0, protocol="ICMP", entity="world")
    assert changed([event], "", pings) == []
    assert changed([event], "", NAMED) == [f"denies one/a -> 9.9.9.9 ICMP (seen 1x), by {POLICY}"]


def test_the_node_by_another_address_is_the_node() -> None:
    host = NAMED.replace("[world]", "[remote-node]").replace("  egress:", "  egress:\n  - {toEntities: [host]}")
    event = seen("one/a", "169.254.1.1", 80, entity="host")
    assert changed([event], "", host) == []
    assert changed([seen("169.254.1.1", "one/a", 80, entity="host", direction="ingress")], "", NAMED) == []
    assert changed([event], "", NAMED) == [f"denies one/a -> node n1 TCP 80 (seen 1x), by {POLICY}"]


def test_pods_of_other_nodes_and_of_no_object_are_left_to_theirs() -> None:
    assert changed([seen("10.244.9.9", "8.8.8.8", entity="world")], "", NAMED) == []


FLOW = Flow(False, "one/a", "9.9.9.9", "ICMP", 8, BY, 3)
PAIRS = Pairs(False, ("one/a",), ("one/b",), "everything", BY)


def test_for_people() -> None:
    assert render(Told(POLICY)) == "no effect on any pod that is known\n"
    assert render(Told(POLICY, flows=(FLOW,), pairs=(PAIRS,), notes=("there is no X",))).splitlines() == [
        "flows seen lately on this node:",
        f"  denies one/a -> 9.9.9.9 ICMP (seen 3x), by {POLICY}",
        "pods and nodes:",
        f"  denies one/a -> one/b: everything, by {POLICY}",
        "note: there is no X",
    ]
    refused = render(Told(POLICY, problems=(BadObject(POLICY, "spec.egress", "must be a list"),)))
    assert refused == f"{POLICY}: spec.egress: must be a list\nthe whole policy is refused\n"


def test_on_trial_it_says_what_would_be() -> None:
    told = Told(POLICY, on_trial=True, trial_pairs=(PAIRS,))
    assert lines(told) == [
        "on trial: denies and opens nothing; enforced, it would do this",
        "  pods and nodes:",
        f"    denies one/a -> one/b: everything, by {POLICY}",
    ]


def test_for_programs() -> None:
    said = report(Told(POLICY, problems=(BadObject(POLICY, "spec", "is required"),), place={"changed": True}))
    assert said["problems"] == [{"object": str(POLICY), "field": "spec", "reason": "is required"}]
    assert (said["lines"], said["changed"]) == ([], True)
    assert report(Told(POLICY, flows=(FLOW,)))["flows"][0]["destination"] == "9.9.9.9"

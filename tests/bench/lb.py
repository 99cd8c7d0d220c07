"""Service load balancing: what one node's translation costs, for N services, each connection to a random one of them.

`lb.<load>.<N>` is the LAN's path: a client asks LoadBalancer addresses, and the node translates packet by packet; what
kube-proxy's two modes do is on the same path in `.iptables` and `.nftables`. `.socket` is the pod's path: ClusterIPs,
translated once, at the socket. `.cpu_us` is the work of all processors of the machine for one connection, both ends'
included.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from bench.figures import Area, Figure, Measured, Settings
from bench.rig import Load, Netstack, rigs, services

COUNTS = (10, 1000, 10000)
LOADS = {"tcp_new": ("tcp", "tcp"), "udp_rr": ("udp", "udp"), "throughput": ("tcp", "stream")}
"""Figure -> (the services' protocol, the load generator's mode)."""
PEERS = ("iptables", "nftables")
DIRECT = "direct"
WHAT = {
    "tcp_new": ("1/s", "new TCP connections (a byte each way, close), 32 at a time"),
    "udp_rr": ("1/s", "UDP requests with their answers, each a new flow, 32 at a time"),
    "throughput": ("Gbit/s", "one TCP stream"),
}


def _figures() -> Iterator[Figure]:
    for load, count in itertools.product(LOADS, COUNTS):
        unit, what = WHAT[load]
        name = f"lb.{load}.{count}"
        behind = f"a client on the LAN, {count} services"
        yield Figure(name, unit, f"{what}; {behind}", DIRECT)
        for peer in PEERS:
            yield Figure(f"{name}.{peer}", unit, f"the same through kube-proxy's rules for {peer}", DIRECT)
        if load == "throughput":
            continue
        yield Figure(f"{name}.socket", unit, f"{what}; a pod that asks {count} ClusterIPs", DIRECT)
        yield Figure(f"{name}.cpu_us", "us", f"processor time of one; {behind}", DIRECT)
        for peer in PEERS:
            yield Figure(f"{name}.{peer}.cpu_us", "us", f"the same through kube-proxy's rules for {peer}", DIRECT)
    for count in COUNTS:
        meaning = f"memory of all pinned maps, sized to hold {count} services (never below their defaults)"
        yield Figure(f"maps_mb.agent.{count}", "MB", meaning)


Samples = dict[str, list[Load]]
"""Way to balance (or `direct.socket`, `netstack.socket`) -> one load a round."""


def measure(wanted: frozenset[str], settings: Settings) -> Iterator[Measured]:
    for count, protocol in itertools.product(COUNTS, ("tcp", "udp")):
        loads = {load: mode for load, (of, mode) in LOADS.items() if of == protocol}
        needed = {load: _ways(wanted, f"lb.{load}.{count}") for load in loads}
        memory = protocol == "tcp" and f"maps_mb.agent.{count}" in wanted
        if not memory and not any(needed.values()):
            continue
        yield from _measure(count, protocol, needed, settings, wanted)


def _ways(wanted: frozenset[str], name: str) -> list[str]:
    """Which ways must run for the figures `name` and below; none if none of them is wanted."""
    ways = []
    if name in wanted or f"{name}.cpu_us" in wanted:
        ways.append("netstack")
    ways += [peer for peer in PEERS if f"{name}.{peer}" in wanted or f"{name}.{peer}.cpu_us" in wanted]
    pods = [f"{DIRECT}.socket", "netstack.socket"] if f"{name}.socket" in wanted else []
    return [*([DIRECT] if ways else []), *ways, *pods]


def _measure(
    count: int, protocol: str, needed: Mapping[str, Sequence[str]], settings: Settings, wanted: frozenset[str]
) -> Iterator[Measured]:
    balanced = services(count, protocol)
    memory = protocol == "tcp" and f"maps_mb.agent.{count}" in wanted
    names = list(dict.fromkeys(way.partition(".")[0] for ways in needed.values() for way in ways))
    if memory and "netstack" not in names:
        names.append("netstack")
    settings.say(f"{count} {protocol} services: setting up {', '.join(names)}")
    with rigs(names, balanced) as made:
        ours = made.get("netstack")
        if memory and isinstance(ours, Netstack):
            yield Measured(f"maps_mb.agent.{count}", [ours.megabytes()])
        for load, ways in needed.items():
            if not ways:
                continue
            samples: Samples = defaultdict(list)
            for number in range(settings.rounds):
                turn = number % len(ways)
                for way in (*ways[turn:], *ways[:turn]):
                    rig, _, pod = way.partition(".")
                    targets = [one.cluster_ip if pod else one.address for one in balanced]
                    mode = LOADS[load][1]
                    found = made[rig].load(mode, targets, seconds=settings.seconds, caller=bool(pod))
                    samples[way].append(found)
            _keep(settings, f"lb.{load}.{count}", samples)
            yield from _evaluate(f"lb.{load}.{count}", load, samples, settings)


def _keep(settings: Settings, name: str, samples: Samples) -> None:
    """What the load generator said, beside what is made of it."""
    rows = {way: [asdict(one) for one in loads] for way, loads in samples.items()}
    settings.raw.mkdir(parents=True, exist_ok=True)
    (settings.raw / f"{name}.loads.json").write_text(json.dumps(rows, indent=1) + "\n")


def rate(load: str, one: Load) -> float:
    return one.bytes * 8 / one.seconds / 1e9 if load == "throughput" else one.done / one.seconds


def cost(one: Load) -> float:
    return one.busy_us / max(1, one.done)


def _evaluate(name: str, load: str, samples: Samples, settings: Settings) -> Iterator[Measured]:
    for way, loads in samples.items():
        failed, done = sum(one.failed for one in loads), sum(one.done for one in loads)
        if failed:
            settings.say(f"{name}: {way}: {failed} exchanges failed, {done} did not")
        rig, _, pod = way.partition(".")
        if rig == DIRECT:
            continue
        base = samples[f"{DIRECT}.socket" if pod else DIRECT]
        figure = ".".join(filter(None, (name, "" if rig == "netstack" else rig, pod)))
        yield Measured(figure, [rate(load, one) for one in loads], [rate(load, one) for one in base])
        if load != "throughput" and not pod:
            yield Measured(f"{figure}.cpu_us", [cost(one) for one in loads], [cost(one) for one in base])


AREA = Area(tuple(_figures()), measure)

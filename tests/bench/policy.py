"""What policy costs the packets, and how soon a change of it is in force.

`policy.tcp_new` and `policy.throughput` are the LAN's path of `lb`, to servers that a policy selects: 1,000 rules over
200 identities, of which the last allows the client. The ratio is to the same programs with no policy at all.
`policy.programs_us` is by the kernel's own account of its programs, which sees what is far below the noise of the two.

`policy.apply_p99` counts from the moment a manifest has its name in the folder until the kernel judges by it, on a node
of four with the real agent: 500 policies, 200 pods, 50 of them here.
"""

from __future__ import annotations

import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from bench.figures import Area, Figure, Measured, Settings
from bench.lb import rate
from bench.rig import CLIENTS, TARGET_PORT, Load, Netstack, services
from instruments.board import Board
from lab.shell import wait_until
from netstack.kernel import layout
from netstack.kernel.bpf import Map, Program

LOADS = {"tcp_new": "tcp", "throughput": "stream"}
SERVICES = 10
IDENTITIES, RULES = 200, 1000
POLICIES, PODS, NODES = 500, 200, 4
CHANGES = 200
STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
RUN_TIME = 192
"""Where struct bpf_prog_info has run_time_ns."""
STRANGER = "192.0.2.1"
"""Whom the policy that changes allows."""

FIGURES = (
    Figure(
        "policy.tcp_new",
        "1/s",
        f"new TCP connections from the LAN, servers selected by a policy of {RULES} rules over {IDENTITIES} identities",
        "no policy",
        target=0.98,
    ),
    Figure("policy.throughput", "Gbit/s", "one TCP stream, the same", "no policy", target=0.98),
    Figure("policy.programs_us", "us", "time in all programs for one of these connections", "no policy"),
    Figure(
        "policy.apply_p50",
        "ms",
        f"from a manifest to its enforcement, {POLICIES} policies, {PODS} pods, 50 of them here",
    ),
    Figure("policy.apply_p99", "ms", f"the same, the slowest of 100 (of {CHANGES})", statistic="p99", target=20),
)


def measure(wanted: frozenset[str], settings: Settings) -> Iterator[Measured]:
    loads = [load for load in LOADS if f"policy.{load}" in wanted]
    programs = "policy.programs_us" in wanted
    if loads or programs:
        yield from _packets(loads, programs, settings)
    if wanted & {"policy.apply_p50", "policy.apply_p99"}:
        settings.say(f"{POLICIES} policies, {PODS} pods")
        delays = list(_delays())
        for name in ("p50", "p99"):
            yield Measured(f"policy.apply_{name}", delays)


def _packets(loads: list[str], programs: bool, settings: Settings) -> Iterator[Measured]:
    balanced = services(SERVICES, "tcp")
    targets = [one.address for one in balanced]
    with ExitStack() as stack:
        rigs = {"no policy": Netstack(stack), "policy": Netstack(stack)}
        rigs["policy"].policies = list(guarded())
        for rig in rigs.values():
            rig.balance(balanced)
            rig.serve()
        for load in loads:
            found: dict[str, list[Load]] = {way: [] for way in rigs}
            for number in range(settings.rounds):
                for way in list(rigs)[:: 1 if number % 2 else -1]:
                    found[way].append(rigs[way].load(LOADS[load], targets, seconds=settings.seconds))
            samples, base = ([rate(load, one) for one in found[way]] for way in ("policy", "no policy"))
            yield Measured(f"policy.{load}", samples, base)
        if programs:
            with _counted():
                spent = {
                    way: [_programs_us(rig, targets, settings) for _ in range(settings.repeats)]
                    for way, rig in rigs.items()
                }
            yield Measured("policy.programs_us", spent["policy"], spent["no policy"], paired=False)


@contextmanager
def _counted() -> Iterator[None]:
    """The kernel counts its programs' time, which costs each run of one some 20 ns."""
    before = STATS.read_text()
    STATS.write_text("1")
    try:
        yield
    finally:
        STATS.write_text(before)


def _programs_us(rig: Netstack, targets: list[str], settings: Settings) -> float:
    before = _spent_ns(rig)
    load = rig.load("tcp", targets, seconds=settings.seconds)
    return (_spent_ns(rig) - before) / 1e3 / load.done


def _spent_ns(rig: Netstack) -> int:
    total = 0
    for path in (rig.home.pins / "progs").iterdir():
        with Program.open(path) as program:
            total += int(struct.unpack_from("=Q", program.info(RUN_TIME + 8), RUN_TIME)[0])
    return total


def guarded() -> Iterator[dict[str, Any]]:
    """Pods of as many identities, and the policy of the servers: the rule that fits is the last."""
    for number in range(IDENTITIES):
        yield pod("bench", f"peer{number}", "n1", f"10.244.9.{number + 1}", {"peer": str(number)})
    ports = RULES // IDENTITIES
    rules: list[dict[str, Any]] = [
        {
            "fromEndpoints": [{"matchLabels": {"peer": str(number)}}],
            "toPorts": [{"ports": [{"port": str(9000 + port), "protocol": "TCP"}]}],
        }
        for number in range(IDENTITIES)
        for port in range(ports)
    ][: RULES - 1]
    rules.append({"fromCIDR": [CLIENTS], "toPorts": [{"ports": [{"port": str(TARGET_PORT), "protocol": "TCP"}]}]})
    everyone_else = {"matchExpressions": [{"key": "peer", "operator": "DoesNotExist"}]}
    yield policy("bench", "guard", {"endpointSelector": everyone_else, "ingress": rules})


def pod(namespace: str, name: str, node: str, address: str, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]} if address else {},
    }


def policy(namespace: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec}


def changing(number: int) -> dict[str, Any]:
    """The policy that is edited: another port each time."""
    rule = {"toCIDR": [f"{STRANGER}/32"], "toPorts": [{"ports": [{"port": str(number), "protocol": "TCP"}]}]}
    return policy("bench", "changing", {"endpointSelector": {"matchLabels": {"app": "a0"}}, "egress": [rule]})


def _delays() -> Iterator[float]:
    """Milliseconds, one edit after another."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="netstack-bench-"))) / "board"
        folder.mkdir()
        board = stack.enter_context(Board(folder, audit_s=5.0))  # as by default
        for number in range(POLICIES - 1):
            board.put(f"policy-{number}", _ordinary(number))
        for number in range(PODS):
            node = f"n{number % NODES + 1}"
            if node != "n1":
                address = f"10.244.{number % NODES + 1}.{number // NODES + 3}"
                board.put(f"pod-{number}", pod("bench", f"p{number}", node, address, _labels(number)))
        board.put("changing", changing(1))
        board.load()
        board.start()
        for number in range(0, PODS, NODES):
            board.add(f"bench/p{number}", _labels(number))
        assert board.agent is not None
        with Map.open(Path(f"/proc/{board.agent.pid}/root{board.folder}/bpf/netstack/maps/config")) as config:

            def generation() -> int:
                raw = config.get(layout.Number(0).pack())
                return layout.Config.unpack(raw).generation if raw else 0

            for port in range(2, CHANGES + 2):
                time.sleep(0.1)  # as people edit, not as storms do
                text = yaml.safe_dump(changing(port))
                before, began = generation(), time.monotonic()
                board.put("changing", text)
                wait_until(lambda before=before: generation() != before, "the change", 60, step_s=0.0002)  # type: ignore[misc]
                yield 1000 * (time.monotonic() - began)


def _labels(number: int) -> dict[str, str]:
    return {"app": f"a{number % 50}", "tier": f"t{number % 3}", "pod": str(number)}


def _ordinary(number: int) -> dict[str, Any]:
    rule = {"toEndpoints": [{"matchLabels": {"app": f"a{number % 50}"}}], "toPorts": [{"ports": [{"port": "80"}]}]}
    selector = {"matchLabels": {"app": f"a{(number + 7) % 50}"}}
    return policy("bench", f"p{number}", {"endpointSelector": selector, "egress": [rule]})


AREA = Area(FIGURES, measure)

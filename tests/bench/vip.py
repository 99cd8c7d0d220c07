"""How long a LoadBalancer address is silent when its owner loses power, for a client that asks all the time.

netstack's lab runs site.yml and serves a name through its ingress, so a dead HAProxy is part of the gap. keepalived's
lab has the same nodes on the same LAN with Debian's keepalived and the same HTTP server on every node, which answers
by itself; both of its advert intervals, an address each, are measured by the same cut. Both labs are up all the time
and cut in turn.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.figures import Area, Figure, Measured, Settings
from e2e import demo
from lab import Lab, cgroups
from lab.node import Node
from lab.shell import wait_until

KNOCK = Path(demo.__file__).with_name("knock.py")
KNOCK_S = {"netstack": 3.0, "keepalived_100ms": 3.0, "keepalived_1s": 8.0}
"""How long the client knocks, the cut in its first second: past the longest gap that the way can have."""
NAME = "ha.home.lab"
ADDRESS = {"netstack": demo.VIP, "keepalived_1s": "192.168.86.5", "keepalived_100ms": "192.168.86.6"}
ADVERT_S = {"keepalived_1s": 1.0, "keepalived_100ms": 0.1}

_GAP = "longest time without an answer to a GET on a new connection every 10 ms, around a power cut of the owner"
FIGURES = (
    Figure("vip.gap.powercut.p50", "ms", f"{_GAP}; half of the cuts are shorter", "vip.gap.keepalived_100ms"),
    Figure("vip.gap.powercut.p95", "ms", f"{_GAP}; 95 % of the cuts are shorter", statistic="p95"),
    Figure("vip.gap.keepalived_1s", "ms", "the same with keepalived, adverts every second (its default)"),
    Figure("vip.gap.keepalived_100ms", "ms", "the same with keepalived, adverts every 100 ms"),
)


def measure(wanted: frozenset[str], settings: Settings) -> Iterator[Measured]:
    ours = any(name.startswith("vip.gap.powercut") for name in wanted)
    theirs = any(name.startswith("vip.gap.keepalived") for name in wanted) or "vip.gap.powercut.p50" in wanted
    gaps: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        homes: list[Home | Pair] = []
        if ours:
            homes.append(Home(stack.enter_context(Lab("benchvip")), settings))
        if theirs:
            homes.append(Pair(stack.enter_context(Lab("benchkad"))))
        for number in range(settings.cuts):
            for home in homes:
                for way, seen in home.cut().items():
                    gaps[way].append(seen["gap_ms"])
                    settings.say(f"cut {number + 1}: {way}: {seen}")
    if ours:
        peer = gaps["keepalived_100ms"] or None
        yield Measured("vip.gap.powercut.p50", gaps["netstack"], peer, paired=False)
        yield Measured("vip.gap.powercut.p95", gaps["netstack"])
    if theirs:
        for way in ADVERT_S:
            yield Measured(f"vip.gap.{way}", gaps[way])


def cut_under_knocks(lab: Lab, victim: str, ways: tuple[str, ...], name: str) -> dict[str, dict[str, Any]]:
    """Cut the victim's power while a client knocks at each way's address; what each client saw."""
    with ExitStack() as stack:
        knocking = {}
        for way in ways:
            command = [sys.executable, str(KNOCK), ADDRESS[way], "80", name, str(KNOCK_S[way])]
            client = subprocess.Popen(lab.client(1).enter(command), stdout=subprocess.PIPE, text=True)
            stack.callback(_end, client)
            knocking[way] = client
        for way, client in knocking.items():
            assert client.stdout is not None
            if client.stdout.readline().strip() != "knocking":
                raise RuntimeError(f"{way}: no answer before the cut")
        lab.powercut(victim)
        seen = {way: json.loads(client.stdout.read()) for way, client in knocking.items() if client.stdout}
    for way, one in seen.items():
        if one["gap_ms"] >= 1000 * KNOCK_S[way] * 0.9:
            raise RuntimeError(f"{way}: nobody took over while the client knocked: {one}")
    return seen


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


class Home:
    """netstack as `make demo` installs it, with Home Assistant's stand-in behind its ingress."""

    def __init__(self, lab: Lab, settings: Settings) -> None:
        settings.say("installing netstack")
        demo.site(lab)
        self.lab = lab
        for manifest in ("metallb", "ingress-nginx", "home-assistant"):
            lab.apply(demo.MANIFESTS / f"{manifest}.yaml")
        self._wait_owner()
        self.server = next(node.name for node in lab.nodes if node.name != demo.owner(lab))
        serve = ["python3", "/opt/lab/share/answer.py", "--name", "home-assistant", "--http", "8123"]
        labels = {"app": "home-assistant"}
        lab.pod(self.server, "home", "home-assistant", labels, serve, ports={"http": 8123}, host_network=True)

    def cut(self) -> dict[str, dict[str, Any]]:
        """Cut the owner's power, and bring everything back. The node of the server itself is never cut."""
        self._wait_served()
        if demo.owner(self.lab) == self.server:
            self.lab.node(self.server).run("systemctl restart netstack-announcer")
            wait_until(lambda: demo.owner(self.lab) not in (None, self.server), "another owner", 20)
        victim = demo.owner(self.lab) or ""
        seen = cut_under_knocks(self.lab, victim, ("netstack",), NAME)
        self.lab.boot(victim)
        demo.wait_ready(self.lab.node(victim))
        self._wait_owner()
        return seen

    def _wait_owner(self) -> None:
        wait_until(lambda: demo.owner(self.lab) is not None, f"somebody to answer for {demo.VIP}", 30)

    def _wait_served(self) -> None:
        """Every node's HAProxy serves the name: a cut is only as long as the takeover if the others were ready."""

        def served() -> bool:
            answers = (self.lab.client(1).get(f"http://{NAME}/", resolve=demo.VIP) for _ in range(12))
            return all(answer.status == 200 for answer in answers)

        wait_until(served, "the name to be served", 30)


class Pair:
    """keepalived on every node, an instance for each interval, and a web server that answers at once."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        for node in lab.nodes:
            self._furnish(node)

    def cut(self) -> dict[str, dict[str, Any]]:
        """Cut the power of the node that owns both addresses, and bring it back."""
        wait_until(lambda: self._owner() is not None, "one owner of both addresses", 30)
        victim = self._owner() or ""
        seen = cut_under_knocks(self.lab, victim, tuple(ADVERT_S), NAME)
        self.lab.boot(victim)
        self._furnish(self.lab.node(victim))
        return seen

    def _owner(self) -> str | None:
        macs = [self.lab.client(1).arp(ADDRESS[way], timeout_s=0.5) for way in ADVERT_S]
        owners = {node.name for node in self.lab.nodes if all(macs_of == {node.mac} for macs_of in macs)}
        return owners.pop() if owners else None

    def _furnish(self, node: Node) -> None:
        """Start what serves and what watches. keepalived is the machine's own, in the node's network and cgroup."""
        serve = "systemd-run --quiet --collect --unit=web python3 /opt/lab/share/answer.py --name web --http 80"
        node.run(serve)
        wait_until(
            lambda: "200" in node.run(["curl", "-so/dev/null", "-w%{http_code}", "127.0.0.1"], check=False).stdout,
            "the web server",
        )
        folder = node.folder / "keepalived"
        folder.mkdir(exist_ok=True)
        (folder / "keepalived.conf").write_text(keepalived_conf(node.number, node.name))
        files = [f"--{kind}={folder / kind}" for kind in ("pid", "vrrp_pid", "checkers_pid")]
        config = f"--use-file={folder / 'keepalived.conf'}"
        argv = ["keepalived", "--dont-fork", "--log-console", "--vrrp", config, *files]
        netns = self.lab.names.netns_path(node.name)
        cgroups.spawn(argv, cgroup=node.cgroup, log=folder / "log", netns=netns)


def keepalived_conf(number: int, router: str) -> str:
    """Two instances, the same order of succession in both, so that one node comes to own both addresses."""
    instances = "".join(
        f"""
vrrp_instance {way} {{
    state BACKUP
    interface eth0
    virtual_router_id {51 + index}
    priority {100 - number}
    advert_int {advert_s:g}
    virtual_ipaddress {{
        {ADDRESS[way]}/24 dev eth0
    }}
}}
"""
        for index, (way, advert_s) in enumerate(sorted(ADVERT_S.items()))
    )
    return f"global_defs {{\n    router_id {router}\n    vrrp_version 3\n}}\n{instances}"


AREA = Area(FIGURES, measure)

"""`make demo`: netstack's main job, shown on a home of three nodes, from nothing to a served request.

Boots the lab, runs playbooks/site.yml against it, applies the manifests of a home (tests/e2e/manifests), and then
shows claim by claim what a packet, a client or a name server saw. Ends with code 1 if any claim does not hold.
The lab stays up for exploring.

NETSTACK_SOURCE=kubernetes: with a real API server, which the daemons watch, in place of a folder of manifests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests")]

from lab import Lab  # noqa: E402 - the path above is where it is
from lab.node import Node  # noqa: E402
from lab.pods import Pod  # noqa: E402
from lab.router import ATTACKER, FOREIGN_DNS  # noqa: E402
from lab.shell import wait_until  # noqa: E402

VIP = "192.168.86.18"
LISTED = "https://api.anthropic.com/"
MANIFESTS = Path(__file__).with_name("manifests")
DAEMONS = "netstack-agent netstack-dns.socket netstack-dns netstack-ingress netstack-observer netstack-announcer"


class Refuted(Exception):
    """A claim does not hold; the text is what was seen instead."""


@dataclass(slots=True)
class Show:
    """Prints one line a claim, with its evidence, and remembers whether all held."""

    failed: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def step(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:5.1f} s] {text}", flush=True)

    def claim(self, text: str, evidence: Callable[[], str]) -> None:
        try:
            print(f"  ok   {text}: {evidence()}", flush=True)
        except Exception as error:  # whatever went wrong, the claim was not shown
            self.failed.append(text)
            print(f"  FAIL {text}: {type(error).__name__}: {error}", flush=True)


def expect(condition: object, seen: object) -> None:
    if not condition:
        raise Refuted(str(seen))


def site(lab: Lab, *options: str, root: Path = ROOT, playbook: str = "site.yml") -> subprocess.CompletedProcess[str]:
    """Run a playbook of the collection at `root` against the lab; raises Refuted with the end of its output."""
    inventory = (ROOT / "inventory/lab" if lab.names.prefix == "lab" else lab.names.run / "inventory") / "hosts.yml"
    lab.write_inventory(inventory)
    command = [str(root / "tests/playbook.sh"), f"playbooks/{playbook}", "-i", str(inventory), *options]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    expect(result.returncode == 0, f"{playbook} failed:\n{result.stdout[-4000:]}{result.stderr[-2000:]}")
    return result


@dataclass(slots=True)
class Home:
    """The lab with its manifests applied and its pods running."""

    lab: Lab
    openclaw: Pod
    scout: Pod
    assistant_node: str

    @classmethod
    def furnish(cls, lab: Lab) -> Home:
        for manifest in sorted(MANIFESTS.glob("*.yaml")):
            lab.apply(manifest)
        wait_until(lambda: owner(lab) is not None, f"somebody to answer for {VIP}")
        elsewhere = next(node.name for node in lab.nodes if node.name != owner(lab))
        lab.dns_pod(elsewhere)
        serve = ["python3", "/opt/lab/share/answer.py", "--name", "home-assistant", "--http", "8123"]
        labels, ports = {"app": "home-assistant"}, {"http": 8123}
        lab.pod(elsewhere, "home", "home-assistant", labels, serve, ports=ports, host_network=True)
        agents = next(node.name for node in lab.nodes if node.name != elsewhere)
        openclaw = lab.pod(agents, "openclaw", "openclaw", {"app": "openclaw"})
        scout = lab.pod(agents, "openclaw", "scout", {"app": "scout"})
        return cls(lab, openclaw, scout, elsewhere)

    @property
    def assistant(self) -> str:
        return self.lab.node(self.assistant_node).address


def wait_ready(node: Node) -> None:
    wait_until(lambda: node.run("netstack status", check=False).returncode == 0, f"{node.name} to be ready", 30)


def owner(lab: Lab) -> str | None:
    """The node whose MAC answers for the address; None if nobody does. More than one is a fault."""
    macs = lab.client(1).arp(VIP, timeout_s=1)
    expect(len(macs) <= 1, f"{VIP} is answered by {macs}")
    return next((node.name for node in lab.nodes if node.mac in macs), None)


def get_ha(lab: Lab) -> dict[str, Any]:
    answer = lab.client(1).get("http://ha.home.lab/", resolve=VIP)
    expect(answer.status == 200, answer)
    return dict(answer.json())


def reaches(pod: Pod, url: str, resolve: str | None = None) -> str:
    answer = pod.get(url, resolve=resolve)
    expect(answer.status == 200, answer.error or answer)
    return f"{url} -> 200 from {answer.remote}"


def refused(home: Home, pod: Pod, url: str, peer: str, *, to_peer: bool = False) -> str:
    """The request fails, and not one packet to `peer` leaves the pod's node. `to_peer`: whatever the name is."""
    with home.lab.capture(pod.node, f"host {peer} and not arp") as wire:
        answer = pod.get(url, resolve=peer if to_peer else None, options=("--insecure",), timeout_s=1)
    expect(answer.status == 0, answer)
    expect(not wire.frames(), f"{len(wire.frames())} packets to {peer} left {pod.node}: {wire.lines()[:3]}")
    return f"{url} -> {answer.error}; 0 packets to {peer} on the cable"


def show_web(show: Show, home: Home) -> None:
    lab = home.lab

    def who_answers() -> str:
        node = owner(lab)
        expect(node, "nobody answers")
        return f"{lab.node(node or '').mac} ({node}), and nobody else"

    def served_elsewhere() -> str:
        answer = get_ha(lab)
        expect(answer["server"] == home.assistant, answer)
        expect(owner(lab) != home.assistant_node, f"the owner is {owner(lab)} itself")
        return f"200 from {answer['name']} on {home.assistant_node} ({answer['server']}), entered by {owner(lab)}"

    def websocket() -> str:
        said = lab.client(1).run([sys.executable, str(Path(__file__).with_name("echo.py")), VIP, "ha.home.lab"]).stdout
        expect("echo: light.on" in said, said)
        return said.strip()

    def unknown() -> str:
        answer = lab.client(1).get("http://nobody.home.lab/", resolve=VIP)
        expect(answer.status == 404, answer.status)
        return "404 from the default backend"

    show.claim(f"one node answers ARP for {VIP}", who_answers)
    show.claim("GET http://ha.home.lab/ is served by a pod on another node", served_elsewhere)
    show.claim("its websocket answers", websocket)
    show.claim("an unknown host gets 404", unknown)


def show_policy(show: Show, home: Home) -> None:
    lab, agent, scout = home.lab, home.openclaw, home.scout
    ha, ssh = f"http://{home.assistant}:8123/", f"http://{home.assistant}:22/"

    def other_dns() -> str:
        with lab.capture(agent.node, f"host {FOREIGN_DNS}") as wire:
            dig = agent.exec(["dig", "+time=1", "+tries=1", f"@{FOREIGN_DNS}", "api.anthropic.com"])
        expect(dig.returncode != 0, dig.stdout)
        expect(not wire.frames(), wire.lines())
        return f"dig @{FOREIGN_DNS} times out; 0 packets to it on the cable"

    def never_asked() -> str:
        with lab.capture("rtr", "port 53") as wire:
            answer = agent.get("https://evil.example.com/")
        expect(answer.status == 0, answer)
        expect(not any("evil" in line for line in wire.lines()), wire.lines())
        return f"{answer.error}; the name never reached the home's name server"

    def observed() -> str:
        said = (
            lab.node(agent.node).run(f"netstack observe --json --last 500 --pod {agent.namespace}/{agent.name}").stdout
        )
        flows = [json.loads(text) for text in said.splitlines()]
        (denied, *_) = [flow for flow in flows if flow["destination"]["address"] == ATTACKER]
        expect(denied["verdict"] == "DEFAULT_DENY" and denied["policies"] and denied["why"], denied)
        named = [flow for flow in flows if "api.anthropic.com" in flow["destination"]["names"]]
        expect(named and named[0]["verdict"] == "FORWARDED" and named[0]["rule"], flows)
        return f"{ATTACKER}: no rule of {denied['policies'][0]}; api.anthropic.com: {named[0]['rule']}"

    show.claim("the agent reaches a listed name", lambda: reaches(agent, LISTED))
    show.claim("the attacker's name is refused", never_asked)
    show.claim("... and its bare address", lambda: refused(home, agent, LISTED, ATTACKER, to_peer=True))
    show.claim("... and over another DNS server", other_dns)
    show.claim("the agent reaches Home Assistant's port", lambda: reaches(agent, ha))
    show.claim("... and no other port of that node", lambda: refused(home, agent, ssh, home.assistant))
    show.claim("a pod without that rule reaches neither", lambda: refused(home, scout, ha, home.assistant))
    show.claim("... nor the other", lambda: refused(home, scout, ssh, home.assistant))
    show.claim("netstack observe tells what was denied and allowed, and by which policy", observed)


def show_daemons_down(show: Show, home: Home) -> None:
    lab, agent = home.lab, home.openclaw
    first = owner(lab) or "n1"
    learned = agent.get(LISTED).remote
    for node in {first, agent.node}:
        lab.node(node).run(f"systemctl stop {DAEMONS}")
    wait_until(lambda: owner(lab) is not None, f"somebody to answer for {VIP}")

    def web() -> str:
        answers = [get_ha(lab) for _ in range(5)]
        return f"5 of 5 requests answered by {answers[0]['name']}, entered by {owner(lab)}"

    show.step(f"every daemon but HAProxy stopped on {' and '.join(sorted({first, agent.node}))}")
    show.claim("the same web requests are answered", web)
    show.claim("an address that was learned works", lambda: reaches(agent, LISTED, resolve=learned))
    show.claim("a denied one stays denied", lambda: refused(home, agent, LISTED, ATTACKER, to_peer=True))


def show_silence(show: Show, home: Home) -> None:
    lab = home.lab
    for node in lab.nodes:
        node.run(f"systemctl stop {DAEMONS}")
        stopped = time.monotonic()

    def silent() -> str:
        with lab.capture("cli1", "arp") as wire:
            wait_until(lambda: not lab.client(1).arp(VIP, timeout_s=0.2), f"{VIP} to fall silent", 5)
            quiet_s = time.monotonic() - stopped
            time.sleep(0.5)
            expect(not lab.client(1).arp(VIP, timeout_s=1), "answered again")
        return f"silent {quiet_s * 1000:.0f} ms after the last announcer stopped ({len(wire.frames())} ARP frames seen)"

    def said() -> str:
        lines = [lab.node(n.name).run("netstack status", check=False).stdout for n in lab.nodes]
        expect(all("announcer  not running" in text for text in lines), lines[0])
        notes = [line.strip() for text in lines for line in text.splitlines() if VIP in line]
        expect(len(notes) == len(lab.nodes) and all("not announced" in note for note in notes), lines)
        return f"on each node: announcer not running; {' '.join(notes[0].split())}"

    show.step("the announcers stopped on all nodes")
    show.claim(f"{VIP} falls silent within its fence", silent)
    show.claim("netstack status says so", said)
    for node in lab.nodes:
        node.run(f"systemctl start {DAEMONS}")
    wait_until(lambda: owner(lab) is not None, f"somebody to answer for {VIP}")


def show_power_cut(show: Show, home: Home) -> None:
    lab = home.lab
    wait_until(
        lambda: lab.client(1).get("http://ha.home.lab/", resolve=VIP).status == 200, "the web to be served again"
    )
    if owner(lab) == home.assistant_node:  # cutting it would cut the application too
        lab.node(home.assistant_node).run("systemctl restart netstack-announcer")
        wait_until(lambda: owner(lab) not in (None, home.assistant_node), f"another owner of {VIP}")
    victim = owner(lab) or ""

    def noticed() -> str:
        knock = [sys.executable, str(Path(__file__).with_name("knock.py")), VIP, "80", "ha.home.lab", "4"]
        with subprocess.Popen(lab.client(1).enter(knock), stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            expect(client.stdout.readline().strip() == "knocking", "no answer before the cut")
            time.sleep(1)
            lab.powercut(victim)
            seen = json.loads(client.stdout.read())
        expect(owner(lab) not in (None, victim), f"owner is {owner(lab)}")
        expect(seen["gap_ms"] < 3000, seen)
        return f"{seen['gap_ms']:.0f} ms without an answer (a new connection every 10 ms); {owner(lab)} took over"

    show.claim(f"the owner of {VIP} ({victim}) loses power", noticed)


def explore() -> str:
    enter = f"cd {os.path.relpath(ROOT / 'tests')} && ../.venv/bin/python -m lab enter"
    return f"""
The lab is still up:
  {enter} n2          a shell on a node; then try: netstack status
  curl on a LAN client:   {enter} cli1 curl -H 'Host: ha.home.lab' http://{VIP}/
  make demo-down          ends it
"""


def perform(lab: Lab) -> tuple[Home, list[str]]:
    """The whole demo on a lab that is up; returns the home, one of whose nodes is off then, and the failed claims."""
    show = Show()
    show.step("installing netstack: ansible-playbook playbooks/site.yml")
    site(lab)
    show.step("applying the manifests of a home, starting its pods")
    home = Home.furnish(lab)
    show.step("the web")
    wait_until(lambda: lab.client(1).get("http://ha.home.lab/", resolve=VIP).status == 200, "the first answer")
    show_web(show, home)
    show.step("what an agent may reach, and what not")
    show_policy(show, home)
    show_daemons_down(show, home)
    show_silence(show, home)
    show.step("a power cut")
    show_power_cut(show, home)
    show.step("done" if not show.failed else f"{len(show.failed)} claims did not hold")
    return home, show.failed


def main() -> int:
    print("booting a home: three nodes, a router with an internet, two clients", flush=True)
    lab = Lab(source=os.environ.get("NETSTACK_SOURCE") or "directory")
    lab.down()
    lab.up(keep=True)
    _, failed = perform(lab)
    print(explore())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

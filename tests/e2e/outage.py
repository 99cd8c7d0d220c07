"""What goes on in a home while its API server is away, and what that costs its nodes.

First nothing listens there: connections are refused. Then its cable is pulled: silence at the nodes, while behind it
the control plane lives on, takes the nodes for lost, and is told of objects that come and go, in an hour so many that
etcd has forgotten what the nodes last saw. All the while sandboxes come and go at the CNI plugin.
"""

from __future__ import annotations

import itertools
import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.idle import UNITS, megabytes
from e2e.demo import LISTED, VIP, Home, expect, get_ha, reaches, refused, wait_ready
from lab import Lab, cni
from lab.node import Node
from lab.pods import Pod
from lab.router import ATTACKER
from lab.shell import wait_until
from netstack.agent.__main__ import WANTS as AGENT
from netstack.announcer.__main__ import WANTS as ANNOUNCER
from netstack.ingress.wants import wants
from netstack.source.resources import Want

NAMESPACE = "churn"
SERVICES = {"stays": "10.96.30.1", "leaves": "10.96.30.2", "late": "10.96.30.3"}
LIFE = 3
"""Rounds that an object of the churn lives."""
CAPTURE_EVERY = 10
"""Rounds between two looks at the cable."""
PATIENCE_S = 120.0
WATCHERS = {name: unit for name, unit in UNITS.items() if name in ("agent", "announcer", "ingress")}
"""The daemons that watch the API server."""
WANTED: dict[str, Sequence[Want]] = {"agent": AGENT, "announcer": ANNOUNCER, "ingress": wants()}
KUBECONFIGS = ("/etc/netstack/kubeconfig", "/etc/netstack/ingress.kubeconfig")
SAID_S = 10.0
"""How soon after the API server has gone every kind is known to be stale."""
SANDBOXES = ("generation ", "endpoint ")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one daemon on one node. `requests` of its process so far; `lines` of its log since it was asked about, but
    those about sandboxes that come and go."""

    megabytes: float
    requests: int
    lines: int


def costs(lab: Lab, since: float) -> dict[str, Cost]:
    """By "node daemon". `since`: seconds since the epoch."""
    found = {}
    for node in lab.nodes:
        status = told(node)
        for name, unit in WATCHERS.items():
            requests = int(status[name]["source"]["requests"])
            written = [line for line in log(node, name, since).splitlines() if not line.startswith(SANDBOXES)]
            found[f"{node.name} {name}"] = Cost(round(megabytes(node, unit), 1), requests, len(written))
    return found


def told(node: Node) -> dict[str, Any]:
    """What the daemons say in `netstack status`."""
    said = json.loads(node.run("netstack status --json", check=False).stdout)
    return {name: daemon.get("status", {}) for name, daemon in said["daemons"].items()}


def renew(node: Node, path: str, kubeconfig: str) -> None:
    """Puts credentials in the place of others, as their users rotate them."""
    node.run(f"umask 077 && cat >{path}.new && mv {path}.new {path}", stdin=kubeconfig)


def stamp(moment: float) -> str:
    """Seconds since the epoch, as a status has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def stale(lab: Lab) -> dict[str, Any]:
    """ "node daemon" -> why and since when it is not as the API server has it, of those that are not."""
    sources = {f"{node.name} {name}": told(node)[name]["source"] for node in lab.nodes for name in WATCHERS}
    return {name: source for name, source in sources.items() if source["problems"] or source["stale_since"]}


def log(node: Node, daemon: str, since: float) -> str:
    return node.run(["journalctl", "-q", "-o", "cat", "-u", WATCHERS[daemon], f"--since=@{since:.0f}"]).stdout


def in_step(node: Node) -> bool:
    """Whether the daemons of a node have what the API server has."""
    sources = [told(node)[name].get("source", {}) for name in WATCHERS]
    return all(source.get("connected") and not source["problems"] for source in sources)


def serves(lab: Lab, host: str) -> bool:
    return lab.client(1).get(f"http://{host}/", resolve=VIP).status == 200


def service(name: str, address: str = "") -> dict[str, Any]:
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}
    meta = {"name": name, "namespace": NAMESPACE}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": spec | ({"clusterIP": address} if address else {}),
    }


def silencing(name: str) -> dict[str, Any]:
    """Pods of this name may send nothing."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"podSelector": {"matchLabels": {"app": name}}, "policyTypes": ["Egress"]},
    }


def ingress(host: str) -> dict[str, Any]:
    """Another name for Home Assistant."""
    backend = {"service": {"name": "home-assistant", "port": {"number": 8123}}}
    rule = {"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": host.partition(".")[0], "namespace": "home"},
        "spec": {"ingressClassName": "nginx", "rules": [rule]},
    }


@contextmanager
def sandbox(node: Node, pod: Pod) -> Iterator[str]:
    """One more sandbox of a pod, as a kubelet makes when the old one has died; the name of its network namespace."""
    container = secrets.token_hex(32)
    netns = f"cni-{container[:32]}"
    attachment = cni.Attachment(container, f"/run/netns/{netns}", pod.namespace, pod.name, pod.sandbox.uid)
    node.run(f"ip netns add {netns} && ip -n {netns} link set lo up")
    try:
        result = cni.add(node, attachment)
        yield netns
        cni.delete(node, attachment, result)
    finally:
        node.run(["ip", "netns", "del", netns])


@dataclass(slots=True)
class Churn:
    """`agent` is a pod that policies hold; `spare` a node without pods, whose power may be cut."""

    home: Home
    agent: Pod
    spare: Node
    pods: dict[str, Pod] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    rounds: int = 0

    @classmethod
    def begin(cls, home: Home) -> Churn:
        """Furnishes what is there before, and what will go or change while no node can see it."""
        lab = home.lab
        place, spare = (node.name for node in lab.nodes if node.name != home.assistant_node)
        made = cls(home, lab.pod(place, "openclaw", "survivor", {"app": "openclaw"}), lab.node(spare))
        for name in ("stays", "leaves"):
            lab.apply(service(name, SERVICES[name]))
            made.pods[name] = lab.web_pod(home.assistant_node, NAMESPACE, name, {"app": name})
        lab.apply(silencing("freed"))
        for name in ("free", "freed", "bound"):
            made.pods[name] = lab.pod(place, NAMESPACE, name, {"app": name})
        made.wait(lambda: not made.reached("stays", "freed"), "the policy to be in force")
        made.wait(lambda: made.reached("stays", "bound") and made.reached("leaves"), "the services to be served")
        made.wait(lambda: serves(lab, "ha.home.lab"), "the web to be served")
        return made

    def end(self) -> None:
        """Nothing of it is left."""
        lab = self.home.lab
        for pod in [*self.pods.values(), self.agent]:
            pod.delete()
        for kind, namespace in (("Service", NAMESPACE), ("NetworkPolicy", NAMESPACE), ("Ingress", "home")):
            for item in lab.api.list(kind):
                meta = item["metadata"]
                if meta["namespace"] == namespace and meta["name"] != "home-assistant":
                    lab.delete(kind, namespace, meta["name"])

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, what, PATIENCE_S, step_s=0.2)

    def reached(self, name: str, pod: str = "free") -> bool:
        """Whether a pod gets an answer of a Service."""
        return self.pods[pod].get(f"http://{SERVICES[name]}/", timeout_s=2).status == 200

    # while the API server is away ---------------------------------------------------------------------------------

    def go_on(self, until: float, period_s: float, also: Callable[[int], None] = lambda number: None) -> None:
        """Rounds until then (time.monotonic(), seconds), at least one. What does not hold is noted in `failures`."""
        while True:
            began = time.monotonic()
            self.rounds += 1
            for check in (self._web, self._agent, self._sandbox, self._services):
                try:
                    check()
                except Exception as error:  # one of hundreds: the others are of interest too
                    self.failures.append(f"{time.strftime('%T')} round {self.rounds}, {check.__name__}: {error}")
            also(self.rounds)
            if time.monotonic() >= until:
                return
            time.sleep(max(0.0, began + period_s - time.monotonic()))

    def reboot(self) -> None:
        """The spare node loses its power and comes up without an API server."""
        self.home.lab.powercut(self.spare.name)
        self.home.lab.boot(self.spare.name)
        wait_ready(self.spare)
        self.wait(lambda: serves(self.home.lab, "ha.home.lab"), "the web to be served")

    def change(self, number: int) -> None:
        """Behind the cable: a Service, a pod that no kubelet starts, a policy; those of some rounds ago go."""
        lab, name, old = self.home.lab, f"c{number}", f"c{number - LIFE}"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
            "spec": {"nodeName": self.agent.node, "containers": [{"name": name, "image": "lab"}]},
        }
        lab.apply([service(name), pod, silencing(name)])
        if lab.api.get("Service", NAMESPACE, old) is not None:
            for kind in ("Service", "Pod", "NetworkPolicy"):
                lab.delete(kind, NAMESPACE, old)

    def decide(self) -> None:
        """Behind the cable: what must be so when the nodes see the API server again."""
        lab = self.home.lab
        lab.delete("Service", NAMESPACE, "leaves")
        lab.delete("NetworkPolicy", NAMESPACE, "freed")
        lab.apply([silencing("bound"), service("late", SERVICES["late"]), ingress("late.home.lab")])
        for pod in [pod for pod in lab.api.list("Pod") if pod["metadata"]["namespace"] == NAMESPACE]:
            if pod["metadata"]["name"] not in self.pods:
                lab.delete("Pod", NAMESPACE, pod["metadata"]["name"])

    def catch_up(self) -> None:
        """Waits until all that was decided is in force; the kubelets are back too."""
        lab = self.home.lab
        for node in lab.nodes:
            self.wait(lambda node=node: in_step(node), f"{node.name} to be in step")  # type: ignore[misc]
        self.pods["late"] = lab.web_pod(self.home.assistant_node, NAMESPACE, "late", {"app": "late"})
        self.wait(lambda: self.reached("late"), "the new Service")
        self.wait(lambda: not self.reached("leaves"), "the deleted Service to be gone")
        self.wait(lambda: self.reached("stays", "freed"), "the deleted policy to be gone")
        self.wait(lambda: not self.reached("stays", "bound"), "the new policy")
        self.wait(lambda: serves(lab, "late.home.lab"), "the new name")
        self.wait(lambda: self.reached("stays") and serves(lab, "ha.home.lab"), "what was there throughout")

    def said(self, since: float) -> None:
        """A node that has been up all the while says of every kind that it is as last known, why, and since when.
        `since`: seconds since the epoch."""
        node = self.home.lab.node(self.agent.node)
        earliest, latest = stamp(since), stamp(since + SAID_S)
        status, text, later = told(node), node.run("netstack status", check=False).stdout, told(node)
        for name, kinds in WANTED.items():
            source = status[name]["source"]
            problems = {problem["kind"]: problem for problem in source["problems"]}
            watched = {str(want) for want in kinds}
            silent = watched - problems.keys()
            expect(
                not source["connected"] and not silent, f"{name} does not say that it is cut off: {silent}, {source}"
            )
            for kind, problem in problems.items():
                expect(problem["reason"], f"{name} {kind}: no reason")
                # A status is refused when there is something to say, which may be late.
                in_time = problem["since"] <= latest or kind not in watched
                expect(earliest <= problem["since"] and in_time, f"{name} {kind}: {problem}, but it was {earliest}")
                # The next try, with another reason, may fall between two readings.
                reasons = [after["reason"] for after in later[name]["source"]["problems"] if after["kind"] == kind]
                since_then = f"(as last known, since {problem['since']})"
                lines = [f"{kind}: {reason} {since_then}" for reason in (problem["reason"], *reasons)]
                expect(any(line in text for line in lines), f"{name}: none is shown: {lines}")
            expect(source["stale_since"] == min(problem["since"] for problem in problems.values()), source)

    def hears(self, words: str, only: Sequence[str] = ()) -> bool:
        """Whether every kind that a daemon wants, or those alone, is stale for a reason with these words."""
        status = told(self.home.lab.node(self.agent.node))
        for name, kinds in WANTED.items():
            reasons = {problem["kind"]: problem["reason"] for problem in status[name]["source"]["problems"]}
            wanted = [str(want) for want in kinds if not only or str(want) in only]
            if any(words not in reasons.get(want, "") for want in wanted):
                return False
        return True

    @contextmanager
    def expired(self) -> Iterator[None]:
        """The nodes' certificates are no longer good; in the end they are, as if renewed on disk."""
        lab = self.home.lab
        bad = lab.controlplane.kubeconfig("late", valid_s=-1, inline=True).read_text()
        good = {node: {path: node.run(["cat", path]).stdout for path in KUBECONFIGS} for node in lab.nodes}
        for node in lab.nodes:
            for path in KUBECONFIGS:
                renew(node, path, bad)
        try:
            yield
        finally:
            for node, files in good.items():
                for path, text in files.items():
                    renew(node, path, text)

    def _web(self) -> None:
        get_ha(self.home.lab)

    def _agent(self) -> None:
        reaches(self.agent, LISTED)
        if self.rounds % CAPTURE_EVERY == 1:
            refused(self.home, self.agent, LISTED, ATTACKER, to_peer=True)

    def _sandbox(self) -> None:
        node, allowed = self.home.lab.node(self.agent.node), f"http://{self.home.assistant}:8123/"
        with sandbox(node, self.agent) as netns:
            curl = ["ip", "netns", "exec", netns, "curl", "-sS", "-o", "/dev/null", "-m"]
            done = node.run([*curl, "3", allowed], check=False)
            expect(done.returncode == 0, f"a new sandbox is not served: {done.stderr}")
            expect(
                node.run([*curl, "1", f"http://{SERVICES['stays']}/"], check=False).returncode != 0, "it is not held"
            )

    def _services(self) -> None:
        expect(self.reached("stays") and self.reached("leaves"), "a Service is not served")
        expect(self.reached("stays", "bound"), "a policy that nobody can know is in force")
        expect(not self.reached("stays", "freed"), "a policy has gone")


def table(found: dict[str, dict[str, Cost]]) -> str:
    """Costs at several moments, a line a daemon."""
    rows = [f"{'':14}" + "".join(f"{moment:>26}" for moment in found)]
    for name in next(iter(found.values())):
        cells = (moment[name] for moment in found.values())
        rows.append(f"{name:14}" + "".join(f"{c.megabytes:>9} MB {c.requests:>6} r {c.lines:>4} l" for c in cells))
    return "\n".join(itertools.chain(rows))

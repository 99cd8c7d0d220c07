"""The command `netstack` on nodes at work: what it says of real packets, and that these do what it says."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from e2e.demo import Home
from lab import objects
from lab.node import Node
from lab.pods import Pod
from lab.router import ATTACKER
from lab.shell import wait_until

pytestmark = [pytest.mark.root, pytest.mark.lab]

once = pytest.mark.parametrize("performance", [os.environ.get("NETSTACK_SOURCE") or "directory"], indirect=True)
"""For what is the same wherever objects come from."""

PATIENCE_S = 30.0
AUDIT = {"netstack.kubelab.io/audit": "true"}
SERVICE = "10.96.20.77"
BARE = "203.0.113.80"
"""www.example.org"""
NAMES = "CiliumNetworkPolicy openclaw/openclaw-egress-fqdn"
HOUSE = "CiliumNetworkPolicy openclaw/openclaw-ha-egress"
"""The agents' policies (manifests/openclaw.yaml)."""


def policy(
    name: str, labels: Mapping[str, str], direction: str, *rules: Any, namespace: str = "desk", audit: bool = False
) -> dict[str, Any]:
    """A NetworkPolicy, which denies all without `rules`."""
    annotations = {"annotations": AUDIT} if audit else {}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace, **annotations},
        "spec": {
            "podSelector": {"matchLabels": dict(labels)},
            "policyTypes": [direction.capitalize()],
            direction: list(rules),
        },
    }


CAT, BOWL, DNS = {"app": "cat"}, {"app": "bowl"}, {"k8s-app": "kube-dns"}
CLOSED = policy("closed", BOWL, "ingress")
WHO_MAY_ASK = policy("who-may-ask", DNS, "ingress", namespace="kube-system")


@dataclass(frozen=True, slots=True)
class Desk:
    """`claw`: an agent like the home's, whose egress is restricted to names and to Home Assistant. `cat` and `bowl`:
    a client and a server, on the node of the cluster's DNS server and not restricted."""

    home: Home
    claw: Pod
    cat: Pod
    bowl: Pod

    @property
    def dns(self) -> Pod:
        return self.home.lab.find_pod("kube-system", f"coredns-{self.home.assistant_node}")

    def node(self, pod: Pod) -> Node:
        return self.home.lab.node(pod.node)

    def explain(self, pod: Pod, to: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Asked on the pod's node."""
        return self.said(
            self.node(pod), f"netstack explain pod/{pod.namespace}/{pod.name} --to {to} {' '.join(options)}"
        )

    def said(self, node: Node, command: str) -> subprocess.CompletedProcess[str]:
        answer = node.run(command, check=False)
        assert "Traceback" not in answer.stderr, answer.stderr
        return answer

    def flows(self, pod: Pod, *options: str) -> list[dict[str, Any]]:
        """What `netstack observe` tells of the past, on the pod's node."""
        command = f"netstack observe --json --last 500 --pod {pod.namespace}/{pod.name} {' '.join(options)}"
        return [json.loads(line) for line in self.node(pod).run(command).stdout.splitlines()]

    @contextmanager
    def applied(self, document: Any) -> Iterator[list[dict[str, Any]]]:
        made = self.home.lab.apply(document)
        try:
            yield made
        finally:
            for one in made:
                self.home.lab.delete(one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"])


@pytest.fixture(scope="module")
def desk(home: Home) -> Iterator[Desk]:
    lab, near = home.lab, home.assistant_node
    far = next(node.name for node in lab.nodes if node.name != near)
    service = {"clusterIP": SERVICE, "selector": BOWL, "ports": [{"name": "echo", "port": 70, "targetPort": 7}]}
    pods = (
        lab.pod(far, "openclaw", "claw", {"app": "openclaw"}),
        lab.pod(near, "desk", "cat", CAT),
        lab.web_pod(near, "desk", "bowl", BOWL),
    )
    metadata = {"name": "bowl", "namespace": "desk"}
    made = Desk(home, *pods)
    with made.applied({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service}):
        wait_until(lambda: connects(made.cat, SERVICE, 70), "the Service to be served", PATIENCE_S)
        yield made
    for pod in pods:
        pod.delete()


def connects(pod: Pod, address: str, port: int) -> bool:
    """Whether a TCP connection from the pod is accepted."""
    return pod.exec(["timeout", "1", "bash", "-c", f"< /dev/tcp/{address}/{port}"]).returncode == 0


def looks_up(pod: Pod, name: str) -> bool:
    """Whether one question to the cluster's DNS is answered by an address."""
    said = pod.exec(["dig", "+short", "+time=1", "+tries=1", name]).stdout.splitlines()
    return any(line[:1].isdigit() for line in said)


def pings(pod: Pod, address: str) -> bool:
    return pod.exec(["ping", "-c", "1", "-W", "1", address]).returncode == 0


INITIATE = """
import errno, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP) as raw:
    raw.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
    raw.settimeout(1)
    raw.connect((sys.argv[1], 0))
    raw.send(struct.pack("!HHIIBBHIIHHI", 4000, int(sys.argv[2]), 0, 0, 1, 0, 20, 1, 65535, 1, 1, 1))
    try:
        raw.recv(100)
    except OSError as error:
        sys.exit(error.errno != errno.ENOPROTOOPT)
"""
"""An SCTP INIT. A host without SCTP says that it has no such protocol, if the INIT arrives."""


def initiates(pod: Pod, address: str, port: int) -> bool:
    return pod.exec(["python3", "-c", INITIATE, address, str(port)]).returncode == 0


def reaches(pod: Pod, url: str, resolve: str | None = None) -> bool:
    return pod.get(url, resolve=resolve, timeout_s=1).status == 200


# What explain says


@dataclass(frozen=True, slots=True)
class Case:
    """A flow that is denied for want of a rule, and what explain says of it. {node} is the address of another node,
    {name} its name, {bowl} the server's address. `first`: a policy that has to be there."""

    who: str
    to: str
    passes: Callable[[Pod, str], bool]
    says: tuple[str, ...]
    first: tuple[dict[str, Any], ...] = ()
    protocol: str = "TCP"


CASES = {
    "an address": Case(
        "claw",
        f"{BARE}:443",
        lambda pod, address: reaches(pod, "https://www.example.org/", address),
        (
            f"{NAMES} selects it",
            f"{HOUSE} selects it",
            f"{NAMES}: spec.egress[0] is for names; the pod has learned {BARE} for none of them lately",
            f"{HOUSE}: spec.egress[0] is for other peers",
        ),
    ),
    "a node": Case(
        "claw",
        "{node}:22",
        lambda pod, address: connects(pod, address, 22),
        ("node {name} {node} (remote-node", f"{HOUSE}: spec.egress[0] is for this peer, but for TCP 8123"),
    ),
    "a name": Case(
        "claw",
        "www.example.org:443",
        lambda pod, name: reaches(pod, f"https://{name}/"),
        (
            "asks netstack-dns for www.example.org: DEFAULT_DENY",
            f"{NAMES} selects it",
            f"{NAMES}: spec.egress[0] is for other names",
        ),
    ),
    "another port of a name": Case(
        "claw",
        "api.github.com:8443",
        lambda pod, name: reaches(pod, f"https://{name}:8443/"),
        (
            "asks netstack-dns for api.github.com: FORWARDED by matchName: api.github.com",
            f"{NAMES}: spec.egress[0] is for this peer, but for TCP 443",
        ),
    ),
    "a service": Case(
        "cat",
        f"{SERVICE}:70",
        lambda pod, address: connects(pod, address, 70),
        (
            f"{SERVICE} (service), TCP 70",
            f"service {SERVICE} port 70 -> ",
            "enters pod desk/bowl: DEFAULT_DENY",
            "NetworkPolicy desk/closed selects it",
        ),
        (CLOSED,),
    ),
    "a name about which the server's policy lets nobody ask": Case(
        "cat",
        "api.github.com:443",
        looks_up,
        (
            "to ask for api.github.com",
            "enters pod kube-system/coredns-{name}: DEFAULT_DENY",
            "NetworkPolicy kube-system/who-may-ask selects it",
        ),
        (WHO_MAY_ASK,),
    ),
    "a ping": Case(
        "claw",
        BARE,
        pings,
        (f"{BARE} (world, identity 2), ICMP\n", f"{NAMES} selects it", f"{HOUSE}: spec.egress[0] is for other peers"),
        protocol="ICMP",
    ),
    "a ping to a name": Case(
        "claw",
        "www.example.org",
        pings,
        ("asks netstack-dns for www.example.org: DEFAULT_DENY", f"{NAMES}: spec.egress[0] is for other names"),
        protocol="ICMP",
    ),
    "a ping to a pod that hears nobody": Case(
        "cat",
        "{bowl}",
        pings,
        (
            "leaves pod desk/cat: FORWARDED",
            "enters pod desk/bowl: DEFAULT_DENY",
            "NetworkPolicy desk/closed selects it",
        ),
        (CLOSED,),
        protocol="ICMP",
    ),
    "SCTP": Case(
        "cat",
        "{bowl}:7",
        lambda pod, address: initiates(pod, address, 7),
        (
            "leaves pod desk/cat: FORWARDED",
            "enters pod desk/bowl: DEFAULT_DENY",
            "NetworkPolicy desk/closed selects it",
        ),
        (CLOSED,),
        protocol="SCTP",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_denied_passes_with_the_policy_that_explain_writes(desk: Desk, case: Case) -> None:
    pod: Pod = getattr(desk, case.who)
    there = {"node": desk.home.assistant, "name": desk.home.assistant_node, "bowl": desk.bowl.address}
    to = case.to.format(**there)
    host = to.rpartition(":")[0] or to

    with desk.applied(case.first):
        wait_until(lambda: not case.passes(pod, host), f"{to} to be denied", PATIENCE_S)
        answer = desk.explain(pod, to, "--protocol", case.protocol)
        text = answer.stdout
        missing = [said for said in case.says if said.format(**there) not in text]
        assert (answer.returncode, missing) == (1, []), text
        written = text.partition("\nthis policy would allow it:\n")[2].partition("\n\n")[0]
        with desk.applied(written) as (made,):
            wait_until(lambda: case.passes(pod, host), f"{to} to pass with\n{written}", PATIENCE_S)
            answer = desk.explain(pod, to, "--protocol", case.protocol)
            rule = f"{made['kind']} {made['metadata']['namespace']}/{made['metadata']['name']}: spec."
            assert (answer.returncode, rule in answer.stdout) == (0, True), answer.stdout
        wait_until(lambda: not case.passes(pod, host), f"{to} to be denied again", PATIENCE_S)


def test_a_deny_rule_is_named_and_no_policy_written_that_would_not_help(desk: Desk) -> None:
    never: dict[str, Any] = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "never", "namespace": "openclaw"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "openclaw"}},
            "enableDefaultDeny": {"egress": False},
            "egressDeny": [{"toEntities": ["remote-node"]}],
        },
    }
    to = f"{desk.home.assistant}:8123"
    answer = desk.explain(desk.claw, to)
    assert (answer.returncode, f"FORWARDED by {HOUSE}: spec.egress[0]" in answer.stdout) == (0, True), answer.stdout
    assert connects(desk.claw, desk.home.assistant, 8123)
    with desk.applied(never):
        wait_until(lambda: not connects(desk.claw, desk.home.assistant, 8123), "the deny rule", PATIENCE_S)
        answer = desk.explain(desk.claw, to)
        rule = "POLICY_DENIED by CiliumNetworkPolicy openclaw/never: spec.egressDeny[0]"
        assert (answer.returncode, rule in answer.stdout) == (1, True), answer.stdout
        assert "would allow it" not in answer.stdout
    wait_until(lambda: connects(desk.claw, desk.home.assistant, 8123), "the port to be reached again", PATIENCE_S)


@once
def test_no_policy_is_written_for_what_cannot_leave_the_node(desk: Desk) -> None:
    """SCTP cannot be given the node's address: neither a pod that may send everything sends it to the world, nor one
    that another policy would let."""
    for pod in (desk.cat, desk.claw):
        answer = desk.explain(pod, f"{BARE}:7", "--protocol", "SCTP")
        assert answer.returncode == 1 and "leaves the node by eth0: UNSUPPORTED" in answer.stdout, answer.stdout
        assert "would allow it" not in answer.stdout
        with desk.home.lab.capture(pod.node, "ip proto 132") as wire:
            assert not initiates(pod, BARE, 7)
        assert wire.frames() == []


@once
def test_a_name_before_and_after_it_is_looked_up_and_with_a_neighbor_on_its_address(desk: Desk) -> None:
    name, neighbor = "api.github.com", "shared.example.net"
    fresh = desk.home.lab.pod(desk.claw.node, "openclaw", "fresh", {"app": "openclaw"})
    near = desk.home.lab.pod(desk.claw.node, "desk", "near", CAT)
    try:
        answer = desk.explain(fresh, f"{name}:443")
        assert (answer.returncode, f"FORWARDED by matchName: {name}" in answer.stdout) == (2, True), answer
        assert f"has learned no IPv4 address of {name} yet: look it up in the pod" in answer.stderr

        assert reaches(fresh, f"https://{name}/")
        answer = desk.explain(fresh, f"{name}:443")
        assert (answer.returncode, f"FORWARDED by {NAMES}: spec.egress[0]" in answer.stdout) == (0, True), answer

        assert looks_up(near, neighbor)
        shared = f"address shared, name not proven: pods have learned it for {name}, {neighbor}"
        wait_until(lambda: shared in desk.explain(fresh, f"{name}:443").stdout, shared, PATIENCE_S)
    finally:
        fresh.delete()
        near.delete()


@once
def test_what_another_node_decides_is_asked_there(desk: Desk) -> None:
    """The proxy asks in the agent's name, and the server's policy keeps the agent out: only its own node knows."""
    with desk.applied(WHO_MAY_ASK):
        wait_until(lambda: not looks_up(desk.claw, "api.github.com"), "the question to be denied", PATIENCE_S)
        (question, *_) = json.loads(desk.explain(desk.claw, "api.github.com:443", "--json").stdout)
        assert question["asked"] == "api.github.com" and question["allowed"]
        answer = desk.said(desk.node(desk.cat), question["beyond"].partition("; there: ")[2])
        assert answer.returncode == 1
        assert "NetworkPolicy kube-system/who-may-ask selects it" in answer.stdout
    wait_until(lambda: looks_up(desk.claw, "api.github.com"), "the question to be answered again", PATIENCE_S)


# What dns says


@once
def test_dns_tells_what_was_learned_and_what_was_refused(desk: Desk) -> None:
    assert reaches(desk.claw, "https://api.github.com/")
    for _ in range(2):
        assert not looks_up(desk.claw, "evil.example.com")
    node = desk.node(desk.claw)
    text = node.run("netstack dns openclaw/claw").stdout.splitlines()
    told = json.loads(node.run("netstack dns openclaw/claw --json").stdout)

    (row,) = [row for row in told["learned"] if row["address"] == "203.0.113.30"]
    assert row["names"] == [{"name": "api.github.com", "from": desk.dns.address}]
    assert (row["pod"], row["rules"], row["open"]) == ("openclaw/claw", ["matchName: api.github.com"], True)
    assert 3500 < row["for_s"] <= 3600  # min_ttl_s
    (line,) = [line for line in text if "203.0.113.30" in line]
    assert f"api.github.com (said {desk.dns.address}); open for 3" in line and "by matchName: api.github.com" in line

    (refused,) = [item for item in told["refused"] if item["name"] == "evil.example.com"]
    assert (refused["pod"], refused["reason"], refused["times"]) == ("openclaw/claw", "name not allowed", 2)
    assert any("openclaw/claw: evil.example.com: name not allowed (2 times, last" in line for line in text)
    assert {row["pod"] for row in (*told["learned"], *told["refused"])} == {"openclaw/claw"}


# What observe says


class Following:
    """`netstack observe --follow` on a node, as a program whose output somebody reads; it ends after a while."""

    def __init__(self, node: Node, *options: str) -> None:
        both = (
            'exec 3<&0; timeout "$0" netstack observe --follow "$@" & { read -r _ <&3; kill $!; } > /dev/null & wait %1'
        )
        command = node.enter(["bash", "-c", both, f"{PATIENCE_S}", *options])
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def line(self) -> str:
        assert self.process.stdout is not None
        told = self.process.stdout.readline()
        assert told, "nothing more was told"
        return told


def denied_and_allowed(desk: Desk) -> None:
    """One drop and one new flow of `claw`."""
    assert not connects(desk.claw, ATTACKER, 443)
    assert reaches(desk.claw, "https://api.github.com/")


@once
def test_who_follows_sees_drops_and_first_packets_as_they_happen(desk: Desk) -> None:
    denied_and_allowed(desk)
    node, pod = desk.node(desk.claw), ("--pod", "openclaw/claw", "--port", "443")
    with Following(node, "--last", "1", *pod) as follower:
        assert "openclaw/claw" in follower.line()  # from here on it hears everything
        denied_and_allowed(desk)
        dropped, allowed = follower.line(), ""
        assert f"-> {ATTACKER}:443 (world)  TCP  DEFAULT_DENY  egress of openclaw/claw: no rule of {NAMES}" in dropped
        while "FORWARDED" not in allowed:
            allowed = follower.line()
        assert "-> api.github.com" in allowed and f"egress of openclaw/claw: {NAMES}: spec.egress[0]" in allowed

        node.run("systemctl restart netstack-observer")
        denied_and_allowed(desk)
        while "FORWARDED" not in (line := follower.line()):
            assert ATTACKER in line or line.startswith("     "), line


ENDING = """
import signal, subprocess, sys
options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
observe = subprocess.Popen(["netstack", "observe", "--follow", "--last", "1"], **options)
assert observe.stdout.readline()
observe.send_signal(signal.SIGINT)
out, err = observe.communicate(timeout=20)
print(observe.returncode, repr(err))
observe = subprocess.Popen(["netstack", "observe", "--follow", "--last", "1"], **options)
assert observe.stdout.readline()
observe.stdout.close()
print("closed", flush=True)
print(observe.wait(20), repr(observe.stderr.read()))
"""


@once
def test_who_follows_may_end_it_by_key_or_by_reading_no_more(desk: Desk) -> None:
    denied_and_allowed(desk)
    watching = desk.node(desk.claw).enter(["python3", "-c", ENDING])
    with subprocess.Popen(watching, stdout=subprocess.PIPE, text=True) as ending:
        assert ending.stdout is not None
        assert ending.stdout.readline() == "-2 ''\n"
        assert ending.stdout.readline() == "closed\n"
        denied_and_allowed(desk)
        assert ending.stdout.readline() == "141 ''\n"


@once
def test_filters_pick_flows(desk: Desk) -> None:
    denied_and_allowed(desk)
    assert connects(desk.cat, desk.bowl.address, 7)

    def ends(*options: str, of: Pod = desk.claw) -> set[tuple[str, str]]:
        """Verdict and destination of every flow told."""
        said = desk.node(of).run(["netstack", "observe", "--json", "--last", "500", *options]).stdout
        return {(flow["verdict"], flow["destination"]["address"]) for flow in map(json.loads, said.splitlines())}

    denied, allowed = ("DEFAULT_DENY", ATTACKER), ("FORWARDED", "203.0.113.30")
    assert {denied, allowed} <= ends("--pod", "openclaw/claw")
    assert ends("--from-pod", "openclaw/claw", "--ip", "198.51.100.0/24") == {denied}
    assert ends("--to-pod", "openclaw/claw") == set()
    assert denied in ends("--verdict", "dropped") and allowed not in ends("--verdict", "dropped")
    assert {verdict for verdict, _ in ends("--verdict", "default_deny")} == {"DEFAULT_DENY"}
    assert allowed in ends("--name", "*.github.com", "--port", "443", "--protocol", "tcp")
    assert {address for _, address in ends("--name", "*.github.com")} == {"203.0.113.30"}
    assert ("FORWARDED", desk.bowl.address) in ends("--namespace", "desk", "--port", "7", of=desk.cat)
    assert ends("--namespace", "openclaw", "--port", "7", of=desk.cat) == set()
    assert ends("--since", "0") == set()
    wrong = desk.said(desk.node(desk.claw), "netstack observe --verdict maybe")
    assert wrong.returncode == 2 and "'maybe' is none of allowed, dropped" in wrong.stderr


# What policies do, and what observe says of it

HOLD = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 3) as held:
    held.settimeout(1)
    print("holding", flush=True)
    for line in sys.stdin:
        try:
            held.sendall(line.encode())
            print("echo" if held.recv(100) else "closed", flush=True)
        except OSError as error:
            print(type(error).__name__, flush=True)
"""


@dataclass(frozen=True, slots=True)
class Held:
    """A TCP connection from a pod to an echo server, which stays open."""

    process: subprocess.Popen[str]

    def works(self) -> bool:
        """Whether what is sent comes back."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("x\n")
        self.process.stdin.flush()
        return self.process.stdout.readline() == "echo\n"


@contextmanager
def held(pod: Pod, address: str, port: int) -> Iterator[Held]:
    command = pod.enter(["python3", "-c", HOLD, address, str(port)])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "holding\n"
        yield Held(process)


def judged(desk: Desk, verdict: str) -> list[dict[str, Any]]:
    """What was told of `cat` towards `bowl`, latest first."""
    told = desk.flows(desk.cat, "--verdict", verdict, "--ip", desk.bowl.address, "--port", "7")
    return [flow for flow in reversed(told) if flow["direction"] == "egress"]


def test_audit_tells_what_would_be_denied_and_its_end_denies_it(desk: Desk) -> None:
    """The annotation on the policy, then on its namespace; a connection that is held through all of it."""
    lab, bowl = desk.home.lab, desk.bowl.address
    by = {"policies": ["NetworkPolicy desk/still"], "rule": ""}

    def audited(since: int) -> bool:
        assert connects(desk.cat, bowl, 7)  # what would be denied passes
        return len(judged(desk, "audited")) > since

    with held(desk.cat, bowl, 7) as connection, desk.applied(policy("still", CAT, "egress", audit=True)):
        wait_until(lambda: audited(0), "what would be denied to be told", PATIENCE_S)
        told = judged(desk, "audited")
        assert {field: told[0][field] for field in by} == by
        assert connection.works()
        note = "NetworkPolicy desk/still selects pod desk/cat, but is on trial: it denies and allows nothing"
        answer = desk.explain(desk.cat, f"{bowl}:7")
        assert (answer.returncode, note in answer.stdout) == (0, True), answer.stdout

        lab.apply(policy("still", CAT, "egress"))
        wait_until(lambda: not connects(desk.cat, bowl, 7), "the policy to deny", PATIENCE_S)
        assert not connection.works()
        assert {field: judged(desk, "default_deny")[0][field] for field in by} == by

        namespace = objects.namespace("desk")
        try:
            lab.apply({**namespace, "metadata": {**namespace["metadata"], "annotations": AUDIT}})
            wait_until(lambda: connects(desk.cat, bowl, 7), "the namespace to be audited", PATIENCE_S)
            wait_until(lambda: audited(len(told)), "what would be denied to be told again", PATIENCE_S)
            wait_until(connection.works, "the connection to go on", PATIENCE_S)
        finally:
            lab.apply(namespace)
        wait_until(lambda: not connects(desk.cat, bowl, 7), "the policy to deny again", PATIENCE_S)
        wait_until(lambda: not connection.works(), "the connection to be cut again", PATIENCE_S)


def test_a_policy_that_is_deleted_takes_the_connections_with_it_that_it_allowed(desk: Desk) -> None:
    bowl = desk.bowl.address
    allow = policy("allow", CAT, "egress", {"to": [{"podSelector": {"matchLabels": BOWL}}], "ports": [{"port": 7}]})
    with desk.applied([policy("still", CAT, "egress"), policy("alone", CAT, "ingress")]):
        wait_until(lambda: not connects(desk.cat, bowl, 7), "default deny", PATIENCE_S)
        with desk.applied(allow):
            wait_until(lambda: connects(desk.cat, bowl, 7), "the policy to allow it", PATIENCE_S)
            with held(desk.cat, bowl, 7) as connection:
                assert connection.works()
                desk.home.lab.delete("NetworkPolicy", "desk", "allow")
                wait_until(lambda: not connection.works(), "the connection to be cut", PATIENCE_S)
                assert judged(desk, "default_deny")[0]["policies"] == ["NetworkPolicy desk/still"]
                desk.home.lab.apply(allow)
                wait_until(connection.works, "the connection to go on", PATIENCE_S)

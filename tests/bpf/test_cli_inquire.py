"""`netstack explain` on a node with the real programs in force."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpf.home import Home
from bpf.populated import ALLOW, DENY, IDENTITY, NODE, OTHER, REMOTE, A, B, populated
from netstack.cli.inquire import Inquiry, Unanswerable, parse_destination
from netstack.core.address import pack
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l

pytestmark = pytest.mark.root

SERVER = "10.96.0.10"
ASK = 9
"""Number of a rule."""

ANSWERS: dict[str, dict[str, Any]] = {
    "agent": {
        "names": {
            "endpoints": [
                {"pod": "one/a", "id": 11, "address": A,
                 "policies": ["CiliumNetworkPolicy one/p", "NetworkPolicy one/i"],
                 "on_trial": ["CiliumNetworkPolicy one/t"],
                 "denies": {"ingress": ["NetworkPolicy one/i"],
                            "egress": ["CiliumNetworkPolicy one/p", "CiliumNetworkPolicy one/t"]}},
                {"pod": "one/b", "id": 12, "address": B, "policies": [], "on_trial": [],
                 "denies": {"ingress": [], "egress": []}},
            ],
            "rules": {
                "7": "CiliumNetworkPolicy one/p: spec.egress[0]",
                "8": "CiliumNetworkPolicy one/p: spec.egressDeny[0]",
                "9": "CiliumNetworkPolicy one/p: spec.egress[1]",
            },
            "pods": {A: "one/a", B: "one/b", REMOTE: "two/dns"},
            "nodes": {NODE: "n1", OTHER: "n2"},
            "host": {"policies": ["CiliumClusterwideNetworkPolicy h"], "on_trial": [],
                     "denies": {"ingress": ["CiliumClusterwideNetworkPolicy h"], "egress": []}},
            "dns": [SERVER],
        },
        "identities": [
            {"identity": IDENTITY[A], "labels": {"app": "a", "io.kubernetes.pod.namespace": "one"}},
            {"identity": IDENTITY[B], "labels": {"app": "b"}},
        ],
    },
    "dns": {
        "names": [
            {"endpoint": 11, "address": "192.0.2.10", "names": ["api.x.io."]},
            {"endpoint": 12, "address": "192.0.2.10", "names": ["evil.y."]},
            {"endpoint": 11, "address": "2001:db8::a", "names": ["api.x.io.", "six.x.io."]},
        ],
        "judge": {
            "api.x.io": {"allowed": True, "reason": "forwarded", "opens": ["matchName: api.x.io"]},
            "new.x.io": {"allowed": True, "reason": "forwarded", "opens": []},
            "six.x.io": {"allowed": True, "reason": "forwarded", "opens": []},
            "evil.y": {"allowed": False, "reason": "name not allowed", "opens": []},
        },
    },
}  # fmt: skip

RULES = ANSWERS["agent"]["names"]["rules"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with populated(tmp_path_factory.mktemp("node")) as made:
        yield made


@contextmanager
def answering(folder: Path, daemons: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Control sockets in a folder that answer as the daemons do: by daemon, the answer to each command."""
    sockets = []
    for name, answers in daemons.items():
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / f"{name}.sock"))
        listener.listen()
        sockets.append(listener)
        threading.Thread(target=_serve, args=(listener, answers), daemon=True).start()
    yield
    for listener in sockets:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    with answering(tmp_path, ANSWERS):
        yield tmp_path


def _serve(listener: socket.socket, answers: dict[str, Any]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, connection.makefile("rwb") as stream:
            request = json.loads(stream.readline())
            answer = answers[request["command"]]
            answer = answer[request["name"]] if request["command"] == "judge" else answer
            stream.write(json.dumps({"ok": answer}).encode() + b"\n")


def explain(node: Home, run: Path, source: str, to: str, protocol: str = "TCP") -> Any:
    with node.namespace.entered(), Inquiry(node.settings, run) as inquiry:
        return inquiry.explain(source, *parse_destination(to), protocol, "one")


def test_an_allowed_flow_names_its_rule(node: Home, run: Path) -> None:
    (found,) = explain(node, run, "pod/a", "192.0.2.1:443")
    assert found.allowed
    (stage,) = found.stages
    assert (stage.where, stage.rule) == ("leaves pod one/a", RULES[str(ALLOW)])


@pytest.mark.parametrize("protocol", ["ICMP", "TCP"])
def test_nobody_is_at_the_gateways_address(node: Home, run: Path, protocol: str) -> None:
    (found,) = explain(node, run, "pod/b", "169.254.1.1" if protocol == "ICMP" else "169.254.1.1:80", protocol)
    assert [stage.verdict for stage in found.stages] == [Verdict.UNSUPPORTED] and not found.allowed
    assert found.suggestion == {}


def test_a_denied_flow_names_its_rule(node: Home, run: Path) -> None:
    (found,) = explain(node, run, A, "192.0.2.66:443")
    (stage,) = found.stages
    assert (stage.verdict, stage.rule) == (Verdict.POLICY_DENIED, RULES[str(DENY)])
    assert found.suggestion == {}


def test_default_deny_names_the_policies_and_what_would_allow_it(node: Home, run: Path) -> None:
    (found,) = explain(node, run, "pod/one/a", "192.0.2.1:80")
    (stage,) = found.stages
    assert stage.notes == (
        "CiliumNetworkPolicy one/p selects it",
        "CiliumNetworkPolicy one/p: spec.egress[0] is for this peer, but for TCP 443",
    )
    assert found.suggestion["spec"]["egress"][0]["toCIDR"] == ["192.0.2.1/32"]


def test_a_service_is_translated_and_judged_by_its_backend(node: Home, run: Path) -> None:
    (found,) = explain(node, run, "pod/a", "10.96.0.1:443")
    assert found.allowed
    assert found.stages[0].notes == (f"service 10.96.0.1 port 443 -> {REMOTE} port 443",)
    there = "netstack explain pod/one/a --to pod/two/dns:443 --protocol TCP"
    assert found.beyond == f"what pod two/dns accepts, node n2 knows; there: {there}"


def test_both_pods_of_a_node_have_their_say(node: Home, run: Path) -> None:
    (found,) = explain(node, run, "pod/b", "pod/a:80")
    assert [(stage.where, stage.verdict) for stage in found.stages] == [
        ("leaves pod one/b", Verdict.FORWARDED),
        ("enters pod one/a", Verdict.DEFAULT_DENY),
    ]
    assert found.stages[1].notes == ("NetworkPolicy one/i selects it",)
    assert found.suggestion["spec"]["ingress"][0]["fromEndpoints"] == [{"matchLabels": {"app": "b"}}]


def test_the_lan_and_the_node_itself_are_asked_too(node: Home, run: Path) -> None:
    (found,) = explain(node, run, "192.168.86.50", "pod/a:80")
    assert [stage.verdict for stage in found.stages] == [Verdict.FORWARDED, Verdict.DEFAULT_DENY]
    (found,) = explain(node, run, NODE, "pod/a:80")
    assert found.allowed and [stage.where for stage in found.stages] == ["enters pod one/a"]


@contextmanager
def selected(node: Home, enforce: int) -> Iterator[None]:
    """Policies for nodes select this one."""
    with node.map("config") as config:
        before = config.get(l.Number(0).pack())
    assert before is not None
    node.put("config", l.Number(0), replace(l.Config.unpack(before), host=True))
    itself = l.Endpoint(l.HOST_ENDPOINT, 0, l.IDENTITY_HOST, enforce, bytes(6), bytes(6))
    node.put("endpoints", l.AddressKey(pack(NODE)), itself)
    try:
        yield
    finally:
        node.put("config", l.Number(0), l.Config.unpack(before))
        with node.map("endpoints") as endpoints:
            endpoints.delete(l.AddressKey(pack(NODE)).pack())


def test_what_policies_for_nodes_deny_is_not_blamed_on_the_pod(node: Home, run: Path) -> None:
    with selected(node, l.ENFORCE_INGRESS):
        (found,) = explain(node, run, "pod/b", f"{NODE}:22")
    (stage,) = found.stages
    assert (stage.where, stage.verdict) == ("enters node n1", Verdict.DEFAULT_DENY)
    assert stage.notes[0] == "CiliumClusterwideNetworkPolicy h selects it"
    assert found.suggestion == {}


def test_what_policies_for_nodes_say_of_what_it_sends_is_asked(node: Home, run: Path) -> None:
    with selected(node, l.ENFORCE_EGRESS):
        (denied,) = explain(node, run, NODE, "203.0.113.9:443")
        (inside,) = explain(node, run, NODE, "pod/b:443")
        (service,) = explain(node, run, NODE, "10.96.0.1:443")
    (stage,) = denied.stages
    assert (stage.where, stage.verdict, denied.allowed) == ("leaves node n1", Verdict.DEFAULT_DENY, False)
    assert inside.allowed and service.stages == ()
    (found,) = explain(node, run, NODE, "203.0.113.9:443")
    assert found.allowed and found.stages == ()


def test_the_lans_broadcast_is_not_this_node_to_itself(node: Home, run: Path) -> None:
    broadcast = "192.168.86.255"
    key = l.PrefixKey(128, pack(broadcast))
    node.namespace.ip("addr", "replace", f"{NODE}/24", "dev", "eth0")
    node.put("identities", key, l.Identity(l.IDENTITY_HOST, 0, pack(NODE)))
    try:
        with selected(node, l.ENFORCE_EGRESS):
            (found,) = explain(node, run, NODE, f"{broadcast}:9", "UDP")
    finally:
        with node.map("identities") as identities:
            identities.delete(key.pack())
    assert [(stage.where, stage.verdict) for stage in found.stages] == [("leaves node n1", Verdict.DEFAULT_DENY)]
    assert found.destination.kind == "world"


def test_a_name_that_has_expired_is_none_that_the_pod_knows(node: Home, run: Path) -> None:
    """It may still be noted, for the connections that it allowed."""
    selector, to = (3 << 30) + 5, "203.0.113.77"
    key = l.FqdnKey(11, pack(to)).pack()
    rule = l.PolicyKey(96, 11, selector, l.DIRECTION_EGRESS, 6, 8443)
    node.put("policy", rule, l.PolicyRule(ASK, l.ACTION_ALLOW))
    notes = []
    try:
        for seconds, port in ((60, 8444), (-60, 8443)):
            with node.map("fqdn") as learned:
                learned.put(key, l.Fqdn.packed({selector: int(time.monotonic()) + seconds}))
            (found,) = explain(node, run, "pod/a", f"{to}:{port}")
            notes.append(next(note for note in found.stages[0].notes if note.startswith(RULES["9"])))
    finally:
        for name, raw in (("policy", rule.pack()), ("fqdn", key)):
            with node.map(name) as table:
                table.delete(raw)
    assert notes == [
        f"{RULES['9']} is for this peer, but for TCP 8443",
        f"{RULES['9']} is for names; the pod has learned {to} for none of them lately",
    ]


def test_another_node_is_asked_with_the_mac_that_the_kernel_knows(node: Home, run: Path) -> None:
    with node.namespace.entered():
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    node.namespace.ip("addr", "replace", f"{NODE}/24", "dev", "eth0")
    (found,) = explain(node, run, OTHER, "pod/a", "ICMP")
    assert [stage.verdict for stage in found.stages] == [Verdict.NO_NEIGHBOUR]
    node.namespace.ip("neigh", "replace", OTHER, "lladdr", "02:00:00:00:00:22", "dev", "eth0")
    (found,) = explain(node, run, OTHER, "pod/a", "ICMP")
    assert [stage.verdict for stage in found.stages] == [Verdict.FORWARDED, Verdict.DEFAULT_DENY]


@pytest.fixture
def asking(node: Home) -> Iterator[socket.socket]:
    """Pod a may ask the DNS server through the proxy, whose socket is there."""
    rule = l.PolicyRule(ASK, l.ACTION_REDIRECT_DNS)
    node.put("policy", l.PolicyKey(96, 11, IDENTITY[REMOTE], l.DIRECTION_EGRESS, 17, 53), rule)
    node.put("backends", l.Number(2), l.Backend(pack(REMOTE), pack(OTHER), 53, 0))
    node.put("slots", l.Number(17), l.Number(2))
    node.put("services", l.ServiceKey(pack(SERVER), 53, 17, l.SCOPE_CLUSTER), l.Service(2, 17, 1, 0, 0, 1))
    node.put("services", l.ServiceKey(pack(SERVER), 0, 0, l.SCOPE_CLUSTER), l.Service())
    node.namespace.ip("addr", "add", "169.254.1.53/32", "dev", "lo")
    with node.namespace.entered():
        proxy = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with proxy:
        proxy.bind(("169.254.1.53", 53))
        yield proxy
    node.namespace.ip("addr", "del", "169.254.1.53/32", "dev", "lo")


def test_a_name_is_asked_for_and_means_what_the_pod_has_learned_for_it(
    node: Home, run: Path, asking: socket.socket
) -> None:
    question, found = explain(node, run, "pod/a", "API.x.io:443")
    assert (question.asked, question.allowed, question.destination.service) == ("api.x.io", True, True)
    assert [(stage.where, stage.verdict, stage.rule) for stage in question.stages] == [
        ("leaves pod one/a", Verdict.REDIRECTED_DNS, RULES[str(ASK)]),
        ("asks netstack-dns for api.x.io", Verdict.FORWARDED, "matchName: api.x.io"),
    ]
    assert "netstack explain pod/one/a --to pod/two/dns:53 --protocol UDP" in question.beyond
    assert (found.asked, found.destination.name) == ("", "api.x.io")
    assert "address shared, name not proven: pods have learned it for api.x.io, evil.y" in found.notes


def test_an_address_of_a_family_that_the_pod_does_not_have_is_no_answer(
    node: Home, run: Path, asking: socket.socket
) -> None:
    """Resolvers ask for both, and the proxy notes both."""
    assert [end.destination.address for end in explain(node, run, "pod/a", "api.x.io:443")[1:]] == [pack("192.0.2.10")]
    (question,) = explain(node, run, "pod/a", "six.x.io:443")
    assert question.asked == "six.x.io"


def test_a_name_that_is_refused_and_one_that_is_not_learned(node: Home, run: Path, asking: socket.socket) -> None:
    (question,) = explain(node, run, "pod/a", "evil.y:443")
    assert question.stages[-1].verdict is Verdict.DEFAULT_DENY
    assert question.stages[-1].notes == ("netstack-dns: name not allowed", "CiliumNetworkPolicy one/p selects it")
    (rule,) = question.suggestion["spec"]["egress"]
    assert rule == {
        "toFQDNs": [{"matchName": "evil.y"}],
        "toPorts": [{"ports": [{"port": "443", "protocol": "TCP"}]}],
    }
    (question,) = explain(node, run, "pod/a", "new.x.io:443")
    assert question.allowed and question.stages[-1].notes == (
        "no toFQDNs in force has this name: the addresses learned are opened by no name",
    )
    asking.close()
    (question,) = explain(node, run, "pod/a", "new.x.io:443")
    assert [stage.verdict for stage in question.stages] == [Verdict.NO_PROXY]


def test_who_has_no_names_and_what_has_no_port(node: Home, run: Path) -> None:
    with pytest.raises(Unanswerable, match=r"and 192\.0\.2\.1 no pod of this node"):
        explain(node, run, "192.0.2.1", "api.x.io:443")
    with pytest.raises(Unanswerable, match=r"which port of 192\.0\.2\.1"):
        explain(node, run, "pod/a", "192.0.2.1")
    with pytest.raises(Unanswerable, match=r"ICMP has no ports: it is asked with 192\.0\.2\.1 alone"):
        explain(node, run, "pod/a", "192.0.2.1:443", "ICMP")


@pytest.mark.parametrize("to", ["192.0.2.1:7", f"{REMOTE}:7"])
def test_sctp_passes_between_pods_and_does_not_leave_the_cluster(node: Home, run: Path, to: str) -> None:
    (found,) = explain(node, run, "pod/b", to, "SCTP")
    verdicts = [(stage.where, stage.verdict) for stage in found.stages]
    leaves = [("leaves the node by eth0", Verdict.UNSUPPORTED)] * (not to.startswith(REMOTE))
    assert verdicts == [("leaves pod one/b", Verdict.FORWARDED), *leaves]
    assert found.suggestion == {}


def test_without_daemons_numbers_stand_for_names(node: Home, tmp_path: Path) -> None:
    (found,) = explain(node, tmp_path / "nowhere", A, "192.0.2.66:443")
    assert found.stages[0].rule == f"rule {DENY}"
    with pytest.raises(Unanswerable, match="pod one/a is not known"):
        explain(node, tmp_path / "nowhere", "pod/a", "192.0.2.1:443")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.7:443", ("10.0.0.7", 443)),
        ("10.0.0.7", ("10.0.0.7", 0)),
        ("[fd00::7]:443", ("fd00::7", 443)),
        ("fd00::7", ("fd00::7", 0)),
        ("pod/ns/name:80", ("pod/ns/name", 80)),
        ("api.x.io:443", ("api.x.io", 443)),
    ],
)
def test_destinations(text: str, expected: tuple[str, int]) -> None:
    assert parse_destination(text) == expected


@pytest.mark.parametrize(
    "text", [":443", "x:70000", "x:http", "x:", "[fd00::7]:70000", "[fd00::7", "[]:1", "[fd00::7]1"]
)
def test_what_is_no_destination(text: str) -> None:
    with pytest.raises(ValueError, match="has no host, or a port that is none"):
        parse_destination(text)


def test_a_policy_on_trial_is_named_and_decides_nothing(node: Home, run: Path) -> None:
    with node.namespace.entered(), Inquiry(node.settings, run) as inquiry:
        (found,) = inquiry.explain("pod/one/a", "192.0.2.1", 443, "TCP")
    assert found.allowed
    assert "CiliumNetworkPolicy one/t selects pod one/a, but is on trial: it denies and allows nothing" in found.notes


@pytest.mark.parametrize(
    ("to", "port", "notes"),
    [
        ("192.0.2.1", 443, ()),
        ("192.0.2.1", 80, ("policies on trial would deny it: for want of a rule that allows it",)),
        (REMOTE, 443, ("policies on trial would deny it: CiliumNetworkPolicy one/p: spec.egressDeny[0]",)),
    ],
)
def test_what_policies_on_trial_would_say(node: Home, run: Path, to: str, port: int, notes: tuple[str, ...]) -> None:
    with node.namespace.entered(), Inquiry(node.settings, run) as inquiry:
        (found,) = inquiry.explain("pod/one/b", to, port, "TCP")
    assert found.allowed and found.stages[0].notes == notes

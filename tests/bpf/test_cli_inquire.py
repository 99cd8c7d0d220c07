"""`netstack explain` on a node with the real programs in force."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf.home import Home
from bpf.populated import ALLOW, DENY, IDENTITY, NODE, OTHER, REMOTE, A, B, populated
from netstack.cli.inquire import Inquiry, Unanswerable, parse_destination
from netstack.core.verdict import Verdict

pytestmark = pytest.mark.root

ANSWERS: dict[str, dict[str, Any]] = {
    "agent": {
        "status": {
            "endpoints": [
                {"pod": "one/a", "id": 11, "address": A, "policies": ["CiliumNetworkPolicy one/p"],
                 "on_trial": ["CiliumNetworkPolicy one/t"]},
                {"pod": "one/b", "id": 12, "address": B, "policies": [], "on_trial": []},
            ]
        },
        "rules": {
            "7": "CiliumNetworkPolicy one/p: spec.egress[0]",
            "8": "CiliumNetworkPolicy one/p: spec.egressDeny[0]",
        },
        "identities": [{"identity": IDENTITY[B], "labels": {"app": "b"}}],
    },
    "dns": {"names": [
        {"endpoint": 11, "address": "192.0.2.10", "names": ["api.x.io."]},
        {"endpoint": 12, "address": "192.0.2.10", "names": ["evil.y."]},
    ]},
}  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with populated(tmp_path_factory.mktemp("node")) as made:
        yield made


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """Control sockets that answer as the daemons do."""
    folder = tmp_path / "run"
    folder.mkdir()
    sockets = []
    for name, answers in ANSWERS.items():
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / f"{name}.sock"))
        listener.listen()
        sockets.append(listener)
        threading.Thread(target=_serve, args=(listener, answers), daemon=True).start()
    yield folder
    for listener in sockets:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _serve(listener: socket.socket, answers: dict[str, Any]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, connection.makefile("rwb") as stream:
            request = json.loads(stream.readline())
            stream.write(json.dumps({"ok": answers[request["command"]]}).encode() + b"\n")


def explain(node: Home, run: Path, source: str, to: str, protocol: str = "TCP") -> Any:
    with node.namespace.entered(), Inquiry(node.settings, run) as inquiry:
        return inquiry.explain(source, *parse_destination(to), protocol, "one")


def test_an_allowed_flow_names_its_rule(node: Home, run: Path) -> None:
    (found,) = explain(node, run, "pod/a", "192.0.2.1:443")
    assert found.allowed
    (stage,) = found.stages
    assert (stage.where, stage.rule) == ("leaves pod one/a", ANSWERS["agent"]["rules"][str(ALLOW)])


def test_a_denied_flow_names_its_rule(node: Home, run: Path) -> None:
    (found,) = explain(node, run, A, "192.0.2.66:443")
    (stage,) = found.stages
    assert (stage.verdict, stage.rule) == (Verdict.POLICY_DENIED, ANSWERS["agent"]["rules"][str(DENY)])
    assert found.suggestion == {}


def test_default_deny_names_the_policies_and_what_would_allow_it(node: Home, run: Path) -> None:
    (found,) = explain(node, run, "pod/one/a", "192.0.2.1:80")
    (stage,) = found.stages
    assert stage.notes == (
        "CiliumNetworkPolicy one/p selects it",
        "CiliumNetworkPolicy one/p: spec.egress[0] is for this peer, but for TCP 443",
    )
    assert found.suggestion["egress"][0]["toCIDR"] == ["192.0.2.1/32"]


def test_a_service_is_translated_and_judged_by_its_backend(node: Home, run: Path) -> None:
    (found,) = explain(node, run, "pod/a", "10.96.0.1:443")
    assert found.allowed
    assert found.stages[0].notes == (f"service 10.96.0.1 port 443 -> {REMOTE} port 443",)
    assert f"what {REMOTE} accepts is for its node {OTHER} to say: ask there" in found.notes


def test_both_pods_of_a_node_have_their_say(node: Home, run: Path) -> None:
    (found,) = explain(node, run, "pod/b", "pod/a:80")
    assert [(stage.where, stage.verdict) for stage in found.stages] == [
        ("leaves pod one/b", Verdict.FORWARDED),
        ("enters pod one/a", Verdict.DEFAULT_DENY),
    ]
    assert found.suggestion["ingress"][0]["fromEndpoints"] == [{"matchLabels": {"app": "b"}}]


def test_the_lan_and_the_node_itself_are_asked_too(node: Home, run: Path) -> None:
    (found,) = explain(node, run, "192.168.86.50", "pod/a:80")
    assert [stage.verdict for stage in found.stages] == [Verdict.FORWARDED, Verdict.DEFAULT_DENY]
    (found,) = explain(node, run, NODE, "pod/a:80")
    assert found.allowed and [stage.where for stage in found.stages] == ["enters pod one/a"]


def test_another_node_is_asked_with_the_mac_that_the_kernel_knows(node: Home, run: Path) -> None:
    with node.namespace.entered():
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    node.namespace.ip("addr", "add", f"{NODE}/24", "dev", "eth0")
    (found,) = explain(node, run, OTHER, "pod/a", "ICMP")
    assert [stage.verdict for stage in found.stages] == [Verdict.NO_NEIGHBOUR]
    node.namespace.ip("neigh", "replace", OTHER, "lladdr", "02:00:00:00:00:22", "dev", "eth0")
    (found,) = explain(node, run, OTHER, "pod/a", "ICMP")
    assert [stage.verdict for stage in found.stages] == [Verdict.FORWARDED, Verdict.DEFAULT_DENY]


def test_a_name_means_what_the_pod_has_learned_for_it(node: Home, run: Path) -> None:
    (found,) = explain(node, run, "pod/a", "api.x.io:443")
    assert found.destination.name == "api.x.io"
    assert "address shared, name not proven: pods have learned it for api.x.io., evil.y." in found.notes
    with pytest.raises(Unanswerable, match=r"pod one/a has learned no address of evil\.y"):
        explain(node, run, "pod/a", "evil.y:443")


def test_without_daemons_numbers_stand_for_names(node: Home, tmp_path: Path) -> None:
    (found,) = explain(node, tmp_path / "nowhere", A, "192.0.2.66:443")
    assert found.stages[0].rule == f"rule {DENY}"
    with pytest.raises(Unanswerable, match="pod one/a is not on this node"):
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


@pytest.mark.parametrize("text", [":443", "x:70000", "x:http"])
def test_what_is_no_destination(text: str) -> None:
    with pytest.raises(ValueError, match=r"port that is none|invalid literal"):
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

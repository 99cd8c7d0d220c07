"""The module on a node whose command line and agent are stand-ins: they say what the test has written down."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kubelab.netstack.plugins.module_utils import _node
from ansible_collections.kubelab.netstack.plugins.modules import network_policy

Run = Callable[..., dict[str, Any]]
NAME = "NetworkPolicy one/p"
COMMAND = """#!/usr/bin/python3
import json, pathlib, sys
here = pathlib.Path(__file__).parent
(here / "asked").write_text(json.dumps([sys.argv[1:], json.load(sys.stdin)]))
print((here / "told").read_text())
"""


class Node:
    """`told`: what `netstack effect` answers; the agent has in force what lies in `folder`."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin, self.folder = root, root / "current/bin", root / "manifests"
        for folder in (self.bin, self.folder):
            folder.mkdir(parents=True)
        (self.bin / "netstack").write_text(COMMAND)
        (self.bin / "netstack").chmod(0o755)
        self.state = "enforced"
        self.reason = ""
        self.not_enforced: list[str] = []
        self.isolated: list[str] = []
        self.told: dict[str, Any] = {
            "policy": NAME, "problems": [], "notes": [], "digest": "", "selects": ["one/a"], "flows": [], "pairs": [],
            "trial_flows": [], "trial_pairs": [], "lines": ["denies one/a -> world: everything"],
            "source": "directory", "file": str(self.folder / "p.yaml"), "elsewhere": [], "beside": [],
        }  # fmt: skip

    @property
    def file(self) -> Path:
        return self.folder / "p.yaml"

    def tell(self, after: str, **fields: Any) -> None:
        before = self.file.read_text() if self.file.exists() else ""
        place = {"changed": before != after, "before": before, "after": after, "digest": after.strip()}
        (self.bin / "told").write_text(json.dumps(self.told | place | fields))

    def asked(self) -> Any:
        return json.loads((self.bin / "asked").read_text())

    def policy(self) -> dict[str, Any]:
        if not self.file.exists():
            return {"generation": 1, "policy": None, "unready": []}
        view = {"policy": NAME, "state": self.state, "digest": self.file.read_text().strip(), "selects": 1}
        view |= {"not_enforced": self.not_enforced, "isolated": self.isolated} | (
            {"reason": self.reason} if self.reason else {}
        )
        return {"generation": 1, "policy": view, "unready": []}

    def answer(self, server: socket.socket) -> None:
        while True:
            try:
                connection = server.accept()[0]
            except OSError:
                return
            with connection, connection.makefile("rb") as asked:
                assert json.loads(asked.readline()) == {"command": "policy", "policy": NAME}
                connection.sendall(json.dumps({"ok": self.policy()}).encode() + b"\n")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    made = Node(tmp_path)
    monkeypatch.setattr(_node, "RUN", str(tmp_path))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "agent.sock"))
        server.listen()
        thread = threading.Thread(target=made.answer, args=(server,), daemon=True)
        thread.start()
        yield made
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(network_policy.AnsibleModule, "warn", lambda _module, text: texts.append(text))
    return texts


def play(run: Run, node: Node, check: bool = False, **options: Any) -> dict[str, Any]:
    definition = {"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "one"}}
    options = {"definition": definition, "root": str(node.root), "wait_timeout": 0} | options
    return run(network_policy, **options, _ansible_check_mode=check, _ansible_diff=True)


def test_the_twelve_steps(run: Run, node: Node) -> None:
    for after, state in (("one\n", "present"), ("two\n", "present"), ("", "absent")):
        said = []
        for check in (True, False, True, False):
            node.tell(after)
            said.append(play(run, node, check, state=state))
        assert [one["changed"] for one in said] == [True, True, False, False], after
        assert said[0]["diff"] == said[1]["diff"] != said[3]["diff"]
        assert "denies one/a -> world" in said[0]["diff"]["after"]
        assert said[0]["effect"]["lines"] == node.told["lines"]
        assert [one.get("enforced") is not None for one in said] == [False, bool(after), False, bool(after)]
        assert (node.file.read_text() if node.file.exists() else "") == after
    assert list(node.folder.iterdir()) == []


def test_the_command_gets_the_definition_as_it_is(run: Run, node: Node) -> None:
    definition = {"kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": {"podSelector": {}}, "any": None}
    node.tell("one\n")
    play(run, node, True, definition=definition)
    assert node.asked() == [["effect", "-", "--json"], definition]
    node.tell("")
    play(run, node, True, definition=definition, state="absent")
    assert node.asked()[0] == ["effect", "-", "--json", "--absent"]


def test_a_policy_that_would_be_refused_is_not_written(run: Run, node: Node) -> None:
    problem = {"object": NAME, "field": "spec.egress", "reason": "must be a list"}
    (node.bin / "told").write_text(json.dumps({"policy": NAME, "problems": [problem]}))
    said = play(run, node)
    assert (said["failed"], said["msg"]) == (True, f"{NAME}: spec.egress: must be a list")
    assert said["problems"] == [problem]
    assert not node.file.exists()


def test_an_object_that_stands_elsewhere_is_left_alone(run: Run, node: Node) -> None:
    node.tell("one\n", elsewhere=["/m/mine.yaml"])
    assert play(run, node)["msg"].startswith(f"{NAME} is defined in /m/mine.yaml already")
    assert not node.file.exists()


def test_what_cannot_be_written_fails_and_what_is_gone_already_does_not(run: Run, node: Node) -> None:
    node.tell("one\n", file=str(node.folder / "none/p.yaml"))
    assert play(run, node)["msg"].startswith(f"{node.folder}/none/p.yaml: ")
    node.tell("", changed=True)
    assert play(run, node, state="absent")["changed"] is True


def test_with_an_api_server_nothing_is_written_but_waited(run: Run, node: Node) -> None:
    node.tell("one\n", source="kubernetes", changed=False)
    assert "kubeconfig is required" in play(run, node)["msg"]
    said = play(run, node, kubeconfig="/k")
    assert said["msg"] == f"not known that this node enforces {NAME}: the agent does not have it"
    assert not node.file.exists()
    node.file.write_text("one\n")
    said = play(run, node, kubeconfig="/k")
    assert (said["changed"], said["enforced"]["digest"]) == (False, "one")


def test_a_node_that_does_something_else_is_reported(run: Run, node: Node) -> None:
    node.tell("one\n")
    node.state, node.reason = "refused, denying", "spec: its release knows no such field"
    said = play(run, node)
    assert said["failed"] and said["changed"], "the file was written"
    assert said["msg"] == f"not known that this node enforces {NAME}: {node.state}: {node.reason}"


def test_an_agent_that_is_down_is_reported_and_nobody_need_wait_for_it(run: Run, node: Node, warned: list[str]) -> None:
    node.tell("one\n")
    play(run, node, check=True)
    assert not warned
    (node.root / "agent.sock").unlink()
    play(run, node, check=True)
    (warning,) = warned
    assert "netstack-agent does not answer" in warning and warning.endswith("this node keeps the rules that it has")
    assert "netstack-agent does not answer" in play(run, node)["msg"]
    node.tell("two\n")
    assert play(run, node, wait=False)["changed"] is True


def test_pods_beyond_reach_are_warned_of(run: Run, node: Node, warned: list[str]) -> None:
    node.not_enforced = ["one/host"]
    node.tell("one\n")
    assert play(run, node)["changed"] is True
    assert warned == [f"{NAME} is not enforced on one/host, whose network is its node's or another plugin's"]
    warned.clear()
    node.not_enforced, node.isolated = [], ["one/old"]
    node.tell("two\n")
    assert play(run, node)["changed"] is True
    assert warned == [f"one/old has no network: {NAME} selects it, and netstack did not connect it"]


@pytest.mark.parametrize("answer", ["echo no folder >&2; exit 2", "echo nothing"])
def test_a_node_that_cannot_tell_fails(answer: str, run: Run, node: Node) -> None:
    (node.bin / "netstack").write_text(f"#!/bin/sh\ncat > /dev/null\n{answer}\n")
    assert play(run, node)["msg"].startswith("netstack effect")
    (node.bin / "netstack").unlink()
    assert play(run, node)["msg"].startswith("netstack is not installed: ")

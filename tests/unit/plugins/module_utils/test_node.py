from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from ansible_collections.kubelab.netstack.plugins.module_utils import _node


def test_a_node_that_serves_is_returned_as_it_speaks() -> None:
    node = _node.parse_status(0, '{"ready": true, "reasons": [], "release": "0.1.0-1", "broken": ["x"]}', "", "0.1.0-1")
    assert (node["ready"], node["broken"], node["policies"]) == (True, ["x"], [])


def test_a_node_that_is_not_ready_says_why_with_exit_status_1() -> None:
    node = _node.parse_status(1, '{"ready": false, "reasons": ["dns: no answer"]}', "", "0.1.0-1")
    assert (node["ready"], node["reasons"], node["release"]) == (False, ["dns: no answer"], "0.1.0-1")


@pytest.mark.parametrize(
    ("out", "err", "reason"),
    [
        ("", "Traceback\nValueError: boom\n", "netstack status ended with 1: ValueError: boom"),
        ("not json", "", "netstack status ended with 1: not json"),
        ("", "", "netstack status ended with 1: no output"),
        ("{}", "", "netstack status --json: 'ready' is missing"),
    ],
)
def test_an_answer_that_is_none_is_a_reason(out: str, err: str, reason: str) -> None:
    node = _node.parse_status(1, out, err, None)
    assert (node["ready"], node["reasons"]) == (False, [reason])


def test_the_release_is_read_where_the_switch_points(tmp_path: Path) -> None:
    assert _node.current_release(str(tmp_path)) is None
    (tmp_path / "releases/one").mkdir(parents=True)
    (tmp_path / "releases/one/release").write_text("one\n")
    (tmp_path / "current").symlink_to("releases/one")
    assert _node.current_release(str(tmp_path)) == "one"


@pytest.mark.parametrize(
    ("code", "out", "err", "reason"),
    [
        (2, "", "agent.yaml: node: is required\n", "netstack effect ended with 2: agent.yaml: node: is required"),
        (2, "", "", "netstack effect ended with 2: no output"),
        (0, "nonsense", "", "netstack effect --json: no JSON"),
    ],
)
def test_a_command_that_does_not_answer(code: int, out: str, err: str, reason: str) -> None:
    with pytest.raises(_node.Silent, match=reason):
        _node.parse_answer("effect", code, out, err)
    assert _node.parse_answer("effect", 1, '{"a": 1}', "") == {"a": 1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"error": "no such command"}', "netstack-agent does not answer: no such command"),
        (b"", "netstack-agent does not answer: it hung up"),
        (b"nonsense", "netstack-agent does not answer: Expecting value"),
    ],
)
def test_a_daemon_that_does_not_answer(
    line: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_node, "RUN", str(tmp_path))
    with pytest.raises(_node.Silent, match=r"netstack-agent does not answer: .*No such file"):
        _node.ask("agent", {"command": "policy"})
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "agent.sock"))
        server.listen()

        def answer() -> None:
            connection = server.accept()[0]
            with connection, connection.makefile("rb") as asked:
                asked.readline()
                connection.sendall(line and line + b"\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(_node.Silent, match=reason):
            _node.ask("agent", {"command": "policy"})
        thread.join(5)

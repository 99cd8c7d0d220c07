"""The module network_policy beside a real agent that hangs, has stopped, or cannot put a policy in force.

Ansible reports a module's failure for the host on which it ran; tests/e2e/test_module.py has it on all nodes at once.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instruments.board import ROOT, Board

pytestmark = pytest.mark.root
POLICY: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "shut", "namespace": "default"},
    "spec": {"podSelector": {}, "policyTypes": ["Egress"]},
}
NAME = "NetworkPolicy default/shut"
RUN = """
import sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.kubelab.netstack.plugins.modules import network_policy
import json
with patch_module_args(json.loads(sys.argv[1])):
    network_policy.main()
"""
CLI = """#!{python}
import sys
from pathlib import Path
sys.path.insert(0, {source!r})
from netstack.cli import collect
collect.CONFIG = Path({config!r})
from netstack.cli.__main__ import main
main()
"""


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    with Board(tmp_path) as board:
        board.load()
        board.start()
        binary = tmp_path / "root/current/bin/netstack"
        binary.parent.mkdir(parents=True)
        binary.write_text(CLI.format(python=sys.executable, source=str(ROOT / "daemons/src"), config=str(tmp_path)))
        binary.chmod(0o755)
        yield board


def play(board: Board, **options: Any) -> dict[str, Any]:
    tree = subprocess.run([str(ROOT / "tests/collection-tree.sh")], capture_output=True, text=True, check=True)
    arguments = {"definition": POLICY, "root": str(board.folder / "root"), "wait_timeout": 1, **options}
    path = f"PYTHONPATH={tree.stdout.strip()}"
    done = board.run("env", path, sys.executable, "-c", RUN, json.dumps(arguments))
    assert done.stdout, done.stderr
    return dict(json.loads(done.stdout))


def test_a_node_that_does_not_enforce_fails_in_its_time(board: Board) -> None:
    board.add("default/one")
    assert board.agent is not None
    done = play(board, wait_timeout=20)
    assert (done["changed"], done["enforced"]["state"], done["enforced"]["selects"]) == (True, "enforced", 1)
    board.agent.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        frozen = play(board, state="absent")
    finally:
        board.agent.send_signal(signal.SIGCONT)
    assert frozen["failed"] and "netstack-agent" in frozen["msg"], frozen
    assert time.monotonic() - began < 30
    board.stop()
    stopped = play(board, state="absent")
    assert stopped["failed"] and "netstack-agent" in stopped["msg"], stopped
    board.start()
    assert play(board, wait_timeout=20)["enforced"]["state"] == "enforced", "nothing was taken away"


def test_a_policy_that_the_kernel_does_not_take_fails_with_the_reason(board: Board) -> None:
    board.add("default/one")
    ports = [{"port": port} for port in range(1, 10_000, 2)]
    spec = {**POLICY["spec"], "egress": [{"ports": ports}]}
    told = play(board, definition={**POLICY, "spec": spec}, wait_timeout=5)
    assert told["failed"], told
    assert told["msg"].startswith(f"not known that this node enforces {NAME}: ")
    assert "map policy is too small" in told["msg"]

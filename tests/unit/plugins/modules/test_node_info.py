from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.kubelab.netstack.plugins.modules import node_info

Run = Callable[..., dict[str, Any]]


def test_a_bare_node_is_not_ready_and_the_module_does_not_fail(run: Run, tmp_path: Path) -> None:
    said = run(node_info, root=str(tmp_path))
    assert said["changed"] is False
    assert said["node"]["ready"] is False
    assert said["node"]["reasons"] == [f"netstack is not installed: {tmp_path}/current/bin/netstack does not exist"]


def test_the_command_of_the_current_release_is_asked(run: Run, tmp_path: Path) -> None:
    command = tmp_path / "current/bin/netstack"
    command.parent.mkdir(parents=True)
    command.write_text('#!/bin/sh\n[ "$*" = "status --json" ] && echo \'{"ready": true, "release": "1-a"}\'\n')
    command.chmod(0o755)
    said = run(node_info, root=str(tmp_path))
    assert (said["node"]["ready"], said["node"]["release"], said["node"]["maps"]) == (True, "1-a", {})

"""A node gets another release, and the one before again, while an agent's pod works: nobody notices, nothing opens.

The other release has other programs in the kernel and another build of every daemon, and comes by the playbook.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from e2e.demo import ROOT, Home, site
from lab.node import Node
from lab.pods import CLUSTER_DNS, Pod
from lab.router import ATTACKER

pytestmark = [pytest.mark.root, pytest.mark.lab]

NAMES = ("api.anthropic.com", "api.github.com", "gateway.discord.gg")
DENIED = "evil.example.com"
UNITS = ("netstack-agent", "netstack-dns", "netstack-observer")
GAP_MS = 1000
"""Longest silence of a stream with a message every 10 ms: far below what a lost packet and its repetition by TCP would
take twice; the machine of the tests builds a release meanwhile."""


def newer(folder: Path) -> Path:
    """A collection that differs in a program and in the daemons."""
    skipped = shutil.ignore_patterns(".git", ".venv", ".cache", "__pycache__", ".*_cache")
    tree = Path(shutil.copytree(ROOT, folder / "newer", symlinks=True, ignore=skipped))
    (tree / ".venv").symlink_to((ROOT / ".venv").resolve())
    package, conntrack = tree / "daemons/src/netstack/__init__.py", tree / "files/bpf/lib/conntrack.h"
    package.write_text(package.read_text() + "# another build\n")
    conntrack.write_text(conntrack.read_text().replace("(60 * NANOSECONDS)", "(61 * NANOSECONDS)"))
    return tree


def running(node: Node) -> dict[str, Any]:
    """What an upgrade changes: the release, the process of each unit, the program at pods' devices."""
    facts = {unit: node.run(f"systemctl show -P MainPID {unit}").stdout.strip() for unit in UNITS}
    shown = node.run("bpftool -j prog show pinned /sys/fs/bpf/netstack/progs/pod_ingress").stdout
    facts["release"] = json.loads(node.run("netstack status --json").stdout)["release"]
    return facts | {"program": json.loads(shown)["id"]}


@contextmanager
def steady(pod: Pod) -> Iterator[dict[str, Any]]:
    """steady.py runs in the pod; after it, what it has seen."""
    script = Path(__file__).with_name("steady.py").read_text()
    argv = pod.enter(["python3", "-c", script, ATTACKER, DENIED, CLUSTER_DNS, *NAMES])
    seen: dict[str, Any] = {}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "steady\n"
            yield seen
            assert process.poll() is None, "the stream was interrupted"
            process.stdin.close()
            seen |= json.loads(process.stdout.read())
        finally:
            process.kill()


def test_an_upgrade_under_an_agent_at_work_is_not_noticed_and_opens_nothing(home: Home, tmp_path: Path) -> None:
    lab = home.lab
    node = next(node for node in lab.nodes if node.name != home.assistant_node)
    pod = lab.pod(node.name, "openclaw", "steady", {"app": "openclaw"})
    other, before = newer(tmp_path), running(node)
    with (
        lab.capture(node.name, f"host {ATTACKER}") as wire,
        lab.capture(node.name, "port 53") as questions,
        steady(pod) as seen,
    ):
        site(lab, "--limit", node.name, root=other)
        upgraded = running(node)
        site(lab, "--limit", node.name)
        back = running(node)
    pod.delete()
    assert all(upgraded[fact] not in (before[fact], back[fact]) for fact in before), (before, upgraded, back)
    assert back["release"] == before["release"]
    assert wire.frames() == []
    asked = questions.lines()
    assert [line for line in asked if DENIED in line] == []
    assert sum(any(name in line for name in NAMES) for line in asked) > 500, "the name server is on another node"
    assert (seen["failures"], seen["reached"], seen["told"]) == ([], 0, 0)
    assert seen["gap_ms"] < GAP_MS, seen
    assert min(seen[what] for what in ("echoes", "probes", "refused", "connections", "look_ups")) > 500, seen

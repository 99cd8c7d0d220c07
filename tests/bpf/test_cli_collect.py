"""What `netstack status` finds on a node whose kernel carries everything and whose daemons are down."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from bpf.home import Home, home
from bpf.namespaces import Namespace
from bpf.packet import SETTINGS
from netstack.cli.collect import collect
from netstack.cli.status import Facts, reasons
from netstack.core.address import pack
from netstack.kernel import layout as l
from netstack.kernel.attach import TrafficControl

pytestmark = pytest.mark.root


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Home]:
    namespace = Namespace()
    try:
        namespace.link("eth0", "lan")
        with home(tmp_path, namespace) as made:
            (tmp_path / "etc").mkdir()
            (tmp_path / "etc/agent.yaml").write_text(yaml.safe_dump({"datapath": asdict(made.settings)}))
            yield made
    finally:
        namespace.close()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("status", r"query the cgroup for .*: Operation not permitted \(errno 1\)"),
        ("dns", "netstack-dns is not running"),
        ("identities", "netstack-agent is not running"),
    ],
)
def test_who_cannot_be_answered_is_told_why(asked: str, told: str) -> None:
    """As one who may not look at the kernel, where no daemon runs."""
    command = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "netstack.cli", asked)
    path = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run(command, env=path, capture_output=True, text=True, check=False)
    assert run.returncode == 2 and run.stdout == ""
    assert re.fullmatch(f"{told}\n", run.stderr)


def look(node: Home, tmp_path: Path) -> Facts:
    with node.namespace.entered():
        return collect(config=tmp_path / "etc", current=tmp_path / "current", run=tmp_path)


def test_what_the_kernel_carries_is_found_without_a_daemon(node: Home, tmp_path: Path) -> None:
    node.load()
    (tmp_path / "0.1.0-abc").mkdir()
    (tmp_path / "current").symlink_to(tmp_path / "0.1.0-abc")
    with node.namespace.entered(), TrafficControl() as traffic:
        link = traffic.link("eth0")
    assert link is not None
    key = l.VipKey(pack("192.168.86.18"), link.index)
    node.put("vips", key, l.Vip(time.monotonic_ns() - 2 * 10**9, 1, bytes(6)))
    node.flows().add(7)
    facts = look(node, tmp_path)
    assert facts.maps["flows"] == (0, SETTINGS.definition("flows").entries)
    assert facts.release == "0.1.0-abc"
    assert facts.missing_programs == ()
    assert "uplink_ingress at eth0" in facts.programs and len(facts.programs) == 10
    assert facts.maps["vips"] == (1, l.MAPS["vips"].entries) and "slots" not in facts.maps
    (vip,) = facts.vips
    assert (vip.address, vip.interface, vip.ever) == ("192.168.86.18", "eth0", True) and -3 < vip.left_s < -1
    assert reasons(facts) == ["agent: it does not run"]


def test_a_program_that_was_taken_off_is_missed(node: Home, tmp_path: Path) -> None:
    node.load()
    with node.namespace.entered(), TrafficControl() as traffic:
        link = traffic.link("eth0")
        assert link is not None and traffic.detach(link.index)
    facts = look(node, tmp_path)
    assert facts.missing_programs == ("uplink_ingress at eth0", "uplink_egress at eth0")


def test_a_node_that_was_never_loaded_misses_everything(node: Home, tmp_path: Path) -> None:
    facts = look(node, tmp_path)
    assert facts.release is None and facts.maps == {} and facts.programs == ()
    assert len(facts.missing_programs) == 10

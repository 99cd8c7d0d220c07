"""What the audit makes of what the kernel says; with real devices: tests/integration/test_agent_cni.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from netstack.agent import cni
from netstack.agent.cni import Cni
from netstack.agent.register import Register
from netstack.agent.settings import AgentSettings
from netstack.core.address import Prefix
from netstack.kernel.netlink import SAME, Link

CIDR = "10.244.1.0/24"
VETH = Link(7, "nst-a", bytes(6), 1500, True, "veth", 2, SAME, "")


class Forgetful:
    """A kernel whose dumps leave devices out."""

    def links(self) -> list[Link]:
        return []

    def link(self, name: str) -> Link | None:
        return VETH if name == VETH.name else None

    def delete_link(self, name: str) -> bool:
        return False


def test_a_device_that_a_dump_left_out_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of the boards do that while other devices go."""
    monkeypatch.setattr(cni, "pinned_ids", lambda pins: {})
    monkeypatch.setattr(cni, "guarded", lambda traffic, pinned, index: True)
    settings = AgentSettings("n1", "192.168.86.21", CIDR, state=tmp_path, conflist=tmp_path / "net.d/05.conflist")
    register = Register("boot")
    for name in "ab":
        register = register.reserve(Prefix.parse(CIDR), name, "eth0", f"nst-{name}", "default", name)
    for number, record in enumerate(register.records):
        register = register.put(replace(record, ifindex=7 + number))
    (tmp_path / "endpoints.json").write_text(register.dump())
    agent = Cni(settings, "boot", Forgetful(), lambda: None, lambda: True)  # type: ignore[arg-type, return-value]
    list(agent.audit())
    assert [record.device for record in agent.register.records] == ["nst-a"]

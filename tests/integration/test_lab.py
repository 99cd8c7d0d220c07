"""The lab keeps its promises: clean boots, real failures, nothing left behind."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import InUse, Lab, cgroups
from lab.names import Names
from lab.router import ATTACKER, FOREIGN_DNS
from lab.shell import run, wait_until

pytestmark = [pytest.mark.root, pytest.mark.lab]

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TESTS)}

# Loads what netstack would: a tc program, a socket hook at the node's root cgroup, a pinned map, a route and a rule.
DIRT = r"""
set -e
python3 - <<'PROGRAM'
import os, ctypes
from bcc import BPF, lib
programs = BPF(text='BPF_HASH(seen, u32, u64); int tc(struct __sk_buff *skb) { return 0; }'
                    'int hook(struct bpf_sock_addr *ctx) { return 1; }', cflags=['-w'])
tc = programs.load_func('tc', BPF.SCHED_CLS)
hook = programs.load_func('hook', BPF.CGROUP_SOCK_ADDR, attach_type=10)
assert lib.bpf_obj_pin(tc.fd, b'/sys/fs/bpf/tc') == 0
assert lib.bpf_obj_pin(programs['seen'].map_fd, b'/sys/fs/bpf/seen') == 0
programs.attach_func(hook, os.open('/sys/fs/cgroup', os.O_RDONLY), 10)
PROGRAM
tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress bpf da object-pinned /sys/fs/bpf/tc
ip route add 10.244.9.0/24 via 192.168.86.1
ip rule add fwmark 0x53000000/0xff000000 lookup 1053
ip netns add pod-left-behind
nft add table inet left-behind
"""


def state(lab: Lab, node: str) -> dict[str, str]:
    """Whatever a boot must not inherit from the boot before."""
    asked = {
        "tc": "tc filter show dev eth0 ingress; tc filter show dev eth0 egress; tc qdisc show dev eth0 clsact",
        "hooks": "bpftool cgroup tree /sys/fs/cgroup | grep -E 'sock|connect|bind|sendmsg|recvmsg|peername' || true",
        # maps.debug and progs.debug are the kernel's own, in every bpffs (CONFIG_BPF_PRELOAD)
        "pins": "find /sys/fs/bpf -mindepth 1 ! -name '*.debug'",
        "routes": "ip -4 route show table all | grep -v '^local\\|^broadcast'",
        "rules": "ip -4 rule",
        "pods": "ls /run/netns 2>/dev/null || true",
        "nft": "nft list ruleset",
        "links": "ip -o link | cut -d' ' -f2",
    }
    return {what: lab.node(node).run(command).stdout.strip() for what, command in asked.items()}


CLEAN = {
    "tc": "",
    "hooks": "",
    "pins": "",
    "routes": "default via 192.168.86.1 dev eth0 \n192.168.86.0/24 dev eth0 proto kernel scope link src 192.168.86.21",
    "rules": "0:\tfrom all lookup local\n32766:\tfrom all lookup main\n32767:\tfrom all lookup default",
    "pods": "",
    "nft": "",
}


def is_clean(found: dict[str, str]) -> bool:
    links = [link.partition("@")[0].rstrip(":") for link in found["links"].split()]
    return {what: found[what] for what in CLEAN} == CLEAN and links == ["lo", "eth0"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("tlab", nodes=3) as lab:
        yield lab


# Members


def test_nodes_run_a_whole_debian_that_is_healthy(lab: Lab) -> None:
    for node in lab.nodes:
        assert node.run(["systemctl", "is-system-running"]).stdout.strip() == "running"
        assert node.run("hostname").stdout.strip() == node.name


def test_no_service_of_the_image_competes_with_ours(lab: Lab) -> None:
    listening = lab.node("n1").run("ss -Hltun | awk '{print $5}'").stdout.split()
    assert sorted(listening) == ["0.0.0.0:22", "[::]:22"]


def test_nodes_see_one_cgroup_hierarchy_and_commands_run_below_its_root(lab: Lab) -> None:
    assert lab.node("n1").run("stat -f -c %T /sys/fs/cgroup").stdout.strip() == "cgroup2fs"
    assert "0::/lab\n" in lab.node("n1").run("cat /proc/self/cgroup").stdout


def test_everybody_reaches_everybody(lab: Lab) -> None:
    members = [*lab.nodes, *lab.clients, lab.controller, lab.router]
    for one in (lab.node("n1"), lab.client(2), lab.router):
        for other in members:
            one.run(["ping", "-q", "-c", "1", "-W", "1", other.address])


def test_ansible_manages_the_nodes(lab: Lab, tmp_path: Path) -> None:
    lab.write_inventory(tmp_path / "hosts.yml")
    ansible = [str(Path(sys.executable).with_name("ansible")), "-i", str(tmp_path / "hosts.yml"), "netstack_nodes"]
    said = run([*ansible, "-m", "command", "-a", "hostname"]).stdout
    assert all(f"\n{node.name}\n" in said for node in lab.nodes)


# Internet


@pytest.mark.parametrize("name", ["api.anthropic.com", "gateway.discord.gg", "evil.example.com"])
def test_the_internet_serves_names_over_tls(lab: Lab, name: str) -> None:
    for member in (lab.client(1), lab.router):
        answer = member.get(f"https://{name}/v1?x=y", headers={"X-Test": "1"})
        assert answer.status == 200, answer.error
        seen = answer.json()
        assert (seen["host"], seen["sni"], seen["path"], seen["headers"]["x-test"]) == (name, name, "/v1?x=y", "1")
    assert lab.client(1).get(f"https://{name}/").json()["client"] == lab.client(1).address


def test_nodes_trust_the_internet(lab: Lab) -> None:
    assert '"sni": "api.github.com"' in lab.node("n1").run(["curl", "-sS", "https://api.github.com/"]).stdout


def test_a_certificate_is_only_good_for_its_names(lab: Lab) -> None:
    answer = lab.client(1).get("https://bank.example/", resolve=ATTACKER)
    assert answer.status == 0
    assert "no alternative certificate subject name matches" in answer.error


def test_name_servers(lab: Lab) -> None:
    def ask(server: str, name: str) -> str:
        lines = lab.client(1).run(["dig", "+noall", "+comments", "+answer", f"@{server}", name, "A"]).stdout
        status = lines.partition("status: ")[2].partition(",")[0]
        answers = [line.split()[-1] for line in lines.splitlines() if line and not line.startswith(";")]
        return " ".join([status, *answers])

    assert ask("192.168.86.1", "api.anthropic.com") == "NOERROR 203.0.113.10"
    assert ask("192.168.86.1", "ha.home.lab") == "NOERROR 192.168.86.18"
    assert ask("192.168.86.1", "no-such.example.org") == "NXDOMAIN"
    assert ask(FOREIGN_DNS, "no-such.example.org") == f"NOERROR {ATTACKER}"
    lab.router.serve("moving.example.org", ["203.0.113.90", "203.0.113.91"])
    assert lab.client(1).get("https://moving.example.org/").remote in {"203.0.113.90", "203.0.113.91"}
    lab.router.serve("moving.example.org", [])
    assert ask("192.168.86.1", "moving.example.org") == "NXDOMAIN"


# Failures


def test_a_power_cut_leaves_nothing_of_the_boot_before(lab: Lab) -> None:
    node = lab.node("n1")
    assert is_clean(state(lab, "n1"))
    node.run(DIRT)
    node.run("echo kept > /var/lib/kept")
    dirty = state(lab, "n1")
    assert [what for what in CLEAN if dirty[what] == CLEAN[what]] == [], "the dirt is not where this test looks"
    start = time.monotonic()
    when = lab.powercut("n1")
    assert 0 <= when - start < 0.5
    assert lab.client(1).run(["ping", "-c", "1", "-W", "1", node.address], check=False).returncode == 1
    assert node.boot_state() is None
    lab.boot("n1")
    found = state(lab, "n1")
    assert is_clean(found), found
    assert node.run("cat /var/lib/kept").stdout == "kept\n"
    assert lab.client(1).arp(node.address) == {node.mac}


def test_a_reboot_leaves_nothing_of_the_boot_before(lab: Lab) -> None:
    lab.node("n1").run(DIRT)
    lab.reboot("n1")
    found = state(lab, "n1")
    assert is_clean(found), found


def test_a_pulled_cable_is_seen_by_the_node(lab: Lab) -> None:
    node = lab.node("n2")
    lab.unplug("n2")
    assert node.run("cat /sys/class/net/eth0/carrier").stdout == "0\n"
    assert lab.client(1).run(["ping", "-c", "1", "-W", "1", node.address], check=False).returncode == 1
    lab.plug("n2")
    assert node.run("cat /sys/class/net/eth0/carrier").stdout == "1\n"
    lab.client(1).run(["ping", "-c", "1", "-W", "5", node.address])


def test_a_frozen_node_answers_as_kernel_but_not_as_program(lab: Lab) -> None:
    banner = ["socat", "-T1", "-u", f"TCP:{lab.node('n2').address}:22", "STDOUT"]
    assert lab.client(1).run(banner, check=False).stdout.startswith("SSH-2.0")
    lab.freeze("n2")
    try:
        lab.client(1).run(["ping", "-c", "1", "-W", "1", lab.node("n2").address])
        assert lab.client(1).run(banner, check=False).stdout == ""
    finally:
        lab.thaw("n2")
    assert lab.client(1).run(banner, check=False).stdout.startswith("SSH-2.0")


def test_loss_is_on_one_cable_and_as_high_as_said(lab: Lab) -> None:
    def received(node: str) -> int:
        ping = ["ping", "-q", "-i", "0.002", "-c", "200", "-W", "1", lab.node(node).address]
        return int(lab.client(1).run(ping, check=False).stdout.partition(" received")[0].split()[-1])

    lab.loss("n2", 30)
    try:
        # both ways: 200 * 0.7 * 0.7 = 98, standard deviation 7
        assert 50 < received("n2") < 150
        assert received("n3") == 200
    finally:
        lab.loss("n2", 0)
    assert received("n2") == 200


def test_a_capture_holds_every_packet_of_its_time_on_its_cable(lab: Lab) -> None:
    with lab.capture("n2", "icmp") as wire, lab.capture("n3", "icmp") as other:
        lab.client(1).run(["ping", "-q", "-i", "0.002", "-c", "50", lab.node("n2").address])
    assert len(wire.lines()) == len(wire.frames()) == 100
    assert other.lines() == []
    assert wire.frames()[0][6:12] == bytes.fromhex(lab.client(1).mac.replace(":", ""))
    assert lab.client(1).mac in wire.lines("-e")[0]


# Life


def remains(prefix: str) -> list[str]:
    names = Names(prefix)
    places = [names.run, *(root / names.cgroup for root in cgroups.hierarchies())]
    namespaces = list(Path("/run/netns").glob(f"{prefix}-*"))
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"netstack-lab/{prefix}" in line]
    return [str(place) for place in [*places, *namespaces] if place.exists()] + mounts


def command(prefix: str, *words: str, inventory: Path) -> list[str]:
    return [sys.executable, "-m", "lab", "--prefix", prefix, "--inventory", str(inventory), *words]


def test_two_labs_run_side_by_side_in_time(lab: Lab) -> None:
    start = time.monotonic()
    with Lab("tlabb", nodes=3) as second:
        assert time.monotonic() - start < 15
        for one in (lab, second):
            one.client(1).run(["ping", "-q", "-c", "1", "-W", "1", "192.168.86.23"])
        lab.unplug("n3")
        second.client(1).run(["ping", "-q", "-c", "1", "-W", "1", "192.168.86.23"])
        lab.plug("n3")
        start = time.monotonic()
    assert time.monotonic() - start < 5
    assert remains("tlabb") == []
    lab.client(1).run(["ping", "-q", "-c", "1", "-W", "5", "192.168.86.23"])


def test_a_lab_in_use_is_not_taken_over(lab: Lab) -> None:
    with pytest.raises(InUse, match="another process holds the lab 'tlab'"):
        Lab("tlab").up()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_up_leaves_nothing_or_is_swept(how: signal.Signals, tmp_path: Path) -> None:
    argv = command("tlabi", "up", inventory=tmp_path / "hosts.yml")
    # a shell's background jobs ignore SIGINT, and hand that down
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    starting = subprocess.Popen(argv, cwd=TESTS, stderr=subprocess.DEVNULL, preexec_fn=heed)
    try:
        # in the middle: the first node's supervisor has begun, none has booted
        wait_until(Names("tlabi").netns_path("n1").exists, "the first node's namespace", step_s=0.002)
        os.kill(starting.pid, how)
        assert starting.wait(20) != 0
        if how is signal.SIGKILL:
            assert remains("tlabi") != []
            run(command("tlabi", "down", inventory=tmp_path / "hosts.yml"), env=ENVIRONMENT)
    finally:
        starting.kill()
        starting.wait()
    assert remains("tlabi") == []


def test_a_lab_of_a_killed_owner_is_swept_by_the_next_up() -> None:
    program = (
        "import signal; from lab import Lab; lab = Lab('tlabk', 1); lab.up(); print('up', flush=True); signal.pause()"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], cwd=TESTS, stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        with pytest.raises(InUse):
            Lab("tlabk", 1).up()
    finally:
        owner.kill()
        owner.communicate()
    assert remains("tlabk") != []
    with Lab("tlabk", 1) as second:
        assert second.node("n1").run("hostname").stdout == "n1\n"
    assert remains("tlabk") == []


def test_a_kept_lab_is_opened_by_its_prefix(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    try:
        run(command("tlabc", "up", "--nodes", "1", inventory=inventory), env=ENVIRONMENT)
        assert inventory.exists()
        assert [node.name for node in Lab.open("tlabc").nodes] == ["n1"]
        assert run(command("tlabc", "enter", "n1", "hostname", inventory=inventory), env=ENVIRONMENT).stdout == "n1\n"
        with pytest.raises(InUse, match="the lab 'tlabc' is up"):
            Lab("tlabc").up()
    finally:
        run(command("tlabc", "down", inventory=inventory), env=ENVIRONMENT)
    assert remains("tlabc") == []
    with pytest.raises(FileNotFoundError):
        Lab.open("tlabc")

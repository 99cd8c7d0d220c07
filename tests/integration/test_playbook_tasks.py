"""Tasks of the playbooks, with this machine as controller and node. /etc/netstack is a folder of the test's own, which
nothing outside of the play sees."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "playbooks/tasks"
pytestmark = pytest.mark.root
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
NODES: dict[str, dict[str, str]] = {
    "n1": {"ansible_host": "192.0.2.1"},
    "n2": {"ansible_host": "192.0.2.2"},
    "n3": {
        "ansible_host": "n3.lan",
        "netstack_node_address": "192.0.2.3",
        "agent_node": "board-3",
    },
}
MOUNTS = """
mount -t tmpfs none {0}/over && mkdir {0}/over/upper {0}/over/work &&
mount -t overlay none /etc -o lowerdir=/etc,upperdir={0}/over/upper,workdir={0}/over/work &&
mkdir -p /etc/netstack && mount --bind {0}/netstack /etc/netstack &&
mount --bind {0}/opt /opt && mount --bind {0}/run /run &&
exec ansible-playbook -i {0}/hosts.yml {0}/play.yml
"""
SYSTEMCTL = """#!/bin/sh
case $1 in
show) printf 'LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nNeedDaemonReload=no\n' ;;
*) echo "$*" >> {0}/systemctl && [ ! -e {0}/broken ] ;;
esac
"""
Play = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """play(tasks, hosts, variables): for these nodes. What is /etc/netstack there is netstack/ here, what systemctl was
    told is in systemctl; it fails while there is a file broken."""
    tree = subprocess.run([str(ROOT / "tests/collection-tree.sh")], capture_output=True, text=True, check=True)
    bin = tmp_path / "opt/netstack/current/bin"
    for folder in (bin, *(tmp_path / name for name in ("over", "netstack", "run"))):
        folder.mkdir(parents=True)
    (tmp_path / "templates").symlink_to(ROOT / "playbooks/templates")
    netstack = f'#!/bin/sh\nPYTHONPATH={ROOT}/daemons/src exec {sys.executable} -m netstack.cli "$@"\n'
    for command, text in (("netstack", netstack), ("systemctl", SYSTEMCTL.format(tmp_path))):
        (bin / command).write_text(text)
        (bin / command).chmod(0o755)
    nodes = {name: LOCAL | node | {"netstack_pod_cidr": f"10.244.{name[1:]}.0/24"} for name, node in NODES.items()}
    inventory = {"all": {"hosts": {"localhost": LOCAL}, "children": {"netstack_nodes": {"hosts": nodes}}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))

    def run(tasks: Path, hosts: str, **variables: object) -> subprocess.CompletedProcess[str]:
        import_tasks = {"ansible.builtin.import_tasks": str(tasks)}
        play = {"hosts": hosts, "gather_facts": False, "vars": variables, "tasks": [import_tasks]}
        (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", MOUNTS.format(tmp_path)],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "PATH": f"{bin}:{ROOT}/.venv/bin:{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "ANSIBLE_COLLECTIONS_PATH": tree.stdout.strip(),
            },
            check=False,
        )

    return run


def test_a_node_has_the_objects_that_the_controller_has(play: Play, tmp_path: Path) -> None:
    """Links as what they lead to, and nothing else; a folder below the home directory may be written with a tilde."""
    site = tmp_path / "netstack/manifests/site"
    for path in ("objects/own.yaml", "shared/shared.yaml", "netstack/manifests/site/gone.yaml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    (tmp_path / "objects/linked.yaml").symlink_to(tmp_path / "shared/shared.yaml")
    (tmp_path / "objects/below").symlink_to(tmp_path / "shared")
    done = play(TASKS / "manifests.yml", "n1", netstack_manifests="~/objects", __site_members=["n1", "n3"])
    assert done.returncode == 0, done.stdout
    copied = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert copied == {"own.yaml", "linked.yaml", "below/shared.yaml"}
    assert {path.stat().st_mode & 0o777 for path in site.rglob("*.yaml")} == {0o600}, "Secrets may be among them"
    nodes = list(yaml.safe_load_all((tmp_path / "netstack/manifests/nodes.yaml").read_text()))
    assert [node["metadata"]["name"] for node in nodes] == ["n1", "board-3"]


def test_nodes_know_one_another_by_the_names_and_addresses_that_they_go_by(play: Play, tmp_path: Path) -> None:
    """Not by those at which Ansible reaches them: the node of a run (n1) as one that is left out (n2). Beats bear the
    name; who does not know it answers for its addresses."""
    settings, peers = tmp_path / "netstack/announcer.yaml", tmp_path / "netstack/peers.json"
    settings.write_text(yaml.safe_dump({"node": "n2", "node_address": "192.0.2.2", "key_file": "/key", "peers": {}}))
    tasks = [
        {"ansible.builtin.import_tasks": str(TASKS / "introduce.yml")},
        {"ansible.builtin.include_vars": str(ROOT / "roles/announcer/vars/main.yml")},
        {
            "ansible.builtin.copy": {"content": "{{ __announcer_peers }}", "dest": "/etc/netstack/peers.json"},
            "run_once": True,
        },
    ]
    (tmp_path / "tasks.yml").write_text(yaml.safe_dump(tasks))
    done = play(tmp_path / "tasks.yml", "n1,n3", __site_members=["n1", "n3"])
    assert done.returncode == 0, done.stdout
    assert yaml.safe_load(settings.read_text())["peers"] == {"n1": "192.0.2.1", "board-3": "192.0.2.3"}
    assert yaml.safe_load(peers.read_text()) == {"n2": "192.0.2.2", "board-3": "192.0.2.3"}


def test_peers_that_the_inventory_names_are_those_that_a_node_is_told(play: Play, tmp_path: Path) -> None:
    """Also where a run leaves it out."""
    settings = tmp_path / "netstack/announcer.yaml"
    settings.write_text(yaml.safe_dump({"node": "n2", "node_address": "192.0.2.2", "key_file": "/key", "peers": {}}))
    hosts = yaml.safe_load((tmp_path / "hosts.yml").read_text())
    hosts["all"]["children"]["netstack_nodes"]["hosts"]["n2"]["announcer_peers"] = {"n1": "198.51.100.1"}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(hosts))
    done = play(TASKS / "introduce.yml", "n1,n3", __site_members=["n1", "n3"])
    assert done.returncode == 0, done.stdout
    assert yaml.safe_load(settings.read_text())["peers"] == {"n1": "198.51.100.1"}


def test_an_announcer_that_did_not_hear_of_its_peers_hears_of_them_in_the_next_run(play: Play, tmp_path: Path) -> None:
    """Nodes that do not know one another answer for the same address. A run can end between the two tasks."""
    settings, broken = tmp_path / "netstack/announcer.yaml", tmp_path / "broken"
    settings.write_text(yaml.safe_dump({"node": "n2", "node_address": "192.0.2.2", "key_file": "/key", "peers": {}}))
    broken.touch()
    assert play(TASKS / "introduce.yml", "n1,n3", __site_members=["n1", "n3"]).returncode == 2
    assert yaml.safe_load(settings.read_text())["peers"].keys() == {"n1", "board-3"}
    broken.unlink()
    (tmp_path / "systemctl").unlink()
    assert play(TASKS / "introduce.yml", "n1,n3", __site_members=["n1", "n3"]).returncode == 0
    assert (tmp_path / "systemctl").read_text() == "restart -- netstack-announcer.service\n"
    assert list((tmp_path / "run/netstack").iterdir()) == []


def test_a_controller_without_the_secret_takes_that_of_the_nodes(play: Play, tmp_path: Path) -> None:
    """Also of those that a run leaves out. With two secrets no node of one hears any of the other."""
    key, there = tmp_path / ".secrets/announcer.key", tmp_path / "netstack/announcer.key"
    tasks = [
        {"ansible.builtin.include_vars": str(ROOT / "roles/announcer/vars/main.yml")},
        {"ansible.builtin.import_tasks": str(ROOT / "roles/announcer/tasks/key.yml")},
    ]
    (tmp_path / "tasks.yml").write_text(yaml.safe_dump(tasks))
    there.write_text("of the nodes")
    done = play(tmp_path / "tasks.yml", "n1", announcer_key_file=str(key))
    assert done.returncode == 0, done.stdout
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("of the nodes", 0o600)
    for file in (key, there):
        file.unlink()
    done = play(tmp_path / "tasks.yml", "n1", announcer_key_file=str(key))
    assert done.returncode == 0, done.stdout
    assert len(key.read_text()) == 64


def test_a_node_that_is_off_ends_no_run_that_leaves_it_out(play: Play, tmp_path: Path) -> None:
    """n2 is. The others are told, and who joins goes on."""
    settings, key = tmp_path / "netstack/announcer.yaml", tmp_path / ".secrets/announcer.key"
    settings.write_text(yaml.safe_dump({"node": "n3", "node_address": "192.0.2.3", "key_file": "/key", "peers": {}}))
    hosts = yaml.safe_load((tmp_path / "hosts.yml").read_text())
    off = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    hosts["all"]["children"]["netstack_nodes"]["hosts"]["n2"] |= off
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(hosts))
    tasks = [
        {"ansible.builtin.import_tasks": str(TASKS / "introduce.yml")},
        {"ansible.builtin.include_vars": str(ROOT / "roles/announcer/vars/main.yml")},
        {"ansible.builtin.import_tasks": str(ROOT / "roles/announcer/tasks/key.yml")},
    ]
    (tmp_path / "tasks.yml").write_text(yaml.safe_dump(tasks))
    done = play(tmp_path / "tasks.yml", "n1", __site_members=["n1", "n2"], announcer_key_file=str(key))
    assert done.returncode == 0, done.stdout
    assert yaml.safe_load(settings.read_text())["peers"] == {"n1": "192.0.2.1", "n2": "127.0.0.1"}
    assert len(key.read_text()) == 64


def test_sysctls_may_be_written_as_numbers(play: Play, tmp_path: Path) -> None:
    """Else each run sets them again, and says that it has changed the node."""
    seen = {"sysctls": {"net.ipv4.ip_forward": {"value": "1", "writable": True}}}
    tasks = [
        {"ansible.builtin.set_fact": {"netstack_kernel": seen, "cacheable": True}},
        {"ansible.builtin.include_vars": str(ROOT / "roles/kernel/vars/main.yml")},
        {"ansible.builtin.assert": {"that": "__kernel_sysctls_now == __kernel_sysctls_wanted"}},
    ]
    (tmp_path / "tasks.yml").write_text(yaml.safe_dump(tasks))
    done = play(tmp_path / "tasks.yml", "n1", kernel_sysctls={"net.ipv4.ip_forward": 1})
    assert done.returncode == 0, done.stdout


IP = """#!/bin/sh
# As with ipv6.disable=1 on the kernel's command line.
echo "$*" >> {0}/ip
case "$*" in
-6*) echo 'RTNETLINK answers: Address family not supported by protocol' >&2; exit 2 ;;
'-4 route show'*) echo 'unreachable 10.244.0.0/16' ;;
'-4 rule show') echo '32765: from all fwmark 0x35000000 lookup 78 proto 78' ;;
esac
"""


def test_a_node_without_ipv6_is_asked_to_forget_what_it_has(play: Play, tmp_path: Path) -> None:
    names = ("Look for what is left", "Remove our routes and rules")
    (remove,) = yaml.safe_load((ROOT / "playbooks/remove.yml").read_text())
    tasks = [task for task in remove["tasks"] if task["name"] in names]
    (tmp_path / "tasks.yml").write_text(yaml.safe_dump(tasks))
    (tmp_path / "files").symlink_to(ROOT / "playbooks/files")
    command = tmp_path / "opt/netstack/current/bin/ip"
    command.write_text(IP.format(tmp_path))
    command.chmod(0o755)
    done = play(tmp_path / "tasks.yml", "n1")
    assert done.returncode == 0, done.stdout
    flushed = [line for line in (tmp_path / "ip").read_text().splitlines() if "flush" in line]
    assert flushed == ["-4 route flush table all proto 78", "-4 rule flush proto 78"]

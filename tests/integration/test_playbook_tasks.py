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
pytestmark = pytest.mark.root
HOST = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
MOUNTS = """
mount -t tmpfs none {0}/over && mkdir {0}/over/upper {0}/over/work &&
mount -t overlay none /etc -o lowerdir=/etc,upperdir={0}/over/upper,workdir={0}/over/work &&
mkdir -p /etc/netstack && mount --bind {0}/netstack /etc/netstack &&
exec ansible-playbook -i {0}/hosts.yml {0}/play.yml
"""
Play = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """play(a file of tasks, variables): the tasks for the node n1. What is /etc/netstack there is netstack/ here."""
    for folder in ("over", "netstack"):
        (tmp_path / folder).mkdir()
    (tmp_path / "templates").symlink_to(ROOT / "playbooks/templates")
    hosts = {"n1": {"netstack_pod_cidr": "10.244.1.0/24", "ansible_host": "192.0.2.1", **HOST}, "localhost": HOST}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))

    def run(tasks: str, **variables: object) -> subprocess.CompletedProcess[str]:
        play = {
            "hosts": "n1",
            "gather_facts": False,
            "vars": variables,
            "tasks": [{"ansible.builtin.import_tasks": str(ROOT / "playbooks/tasks" / tasks)}],
        }
        (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", MOUNTS.format(tmp_path)],
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}", "HOME": str(tmp_path)},
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
    done = play("manifests.yml", netstack_manifests="~/objects", __site_members=["n1"])
    assert done.returncode == 0, done.stdout
    copied = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert copied == {"own.yaml", "linked.yaml", "below/shared.yaml"}

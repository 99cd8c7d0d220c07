"""What each role says of itself in several places, compared: Ansible compares none of it."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROOT = Path(__file__).parents[4]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
DAEMONS = ("agent", "announcer", "dns", "ingress", "observer")


def read(role: str, path: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "roles" / role / path).read_text()))


def templated(value: Any) -> bool:
    return "{{" in yaml.safe_dump(value)


@pytest.mark.parametrize("role", ROLES)
def test_defaults_are_the_defaults_of_the_argument_specs(role: str) -> None:
    """A default that is a template is told in the description's words instead."""
    defaults = read(role, "defaults/main.yml")
    options = read(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    said = {name: option.get("default") for name, option in options.items()}
    assert said == {name: None if templated(value) else value for name, value in defaults.items()}


@pytest.mark.parametrize("role", ROLES)
def test_public_variables_carry_the_roles_name_and_internal_ones_two_underscores(role: str) -> None:
    assert all(name.startswith(f"{role}_") for name in read(role, "defaults/main.yml"))
    assert all(name.startswith(f"__{role}_") for name in read(role, "vars/main.yml"))


@pytest.mark.parametrize("role", DAEMONS)
def test_the_configuration_has_only_fields_that_the_daemon_knows(role: str) -> None:
    settings = pytest.importorskip(f"netstack.{role}.settings")
    known = {field.name for field in dataclasses.fields(getattr(settings, f"{role.capitalize()}Settings"))}
    assert set(read(role, "vars/main.yml")[f"__{role}_config"]) <= known


def test_networks_that_no_name_opens_are_those_of_the_daemon() -> None:
    settings = pytest.importorskip("netstack.dns.settings")
    assert tuple(read("dns", "defaults/main.yml")["dns_never_open"]) == settings.DnsSettings().never_open


@pytest.mark.parametrize("role", DAEMONS)
def test_daemons_start_from_the_current_release_and_restart_when_it_changes(role: str) -> None:
    for unit in sorted((ROOT / "roles" / role / "templates").glob(f"netstack-{role}.service.j2")):
        text = unit.read_text()
        assert f"ExecStart=/opt/netstack/current/bin/netstack-{role} --config /etc/netstack/{role}.yaml\n" in text
        assert f"Environment=NETSTACK_RELEASE={{{{ {role}_release }}}}\n" in text
        for line in ("Type=notify", "WatchdogSec=10", "Restart=always", "ProtectSystem=strict", "NoNewPrivileges=yes"):
            assert f"{line}\n" in text, f"{unit.name} lacks {line}"


@pytest.mark.parametrize("role", DAEMONS)
def test_a_configuration_is_judged_by_the_release_that_will_read_it(role: str) -> None:
    """Not by the one of now, which in check mode is still the one before, and refuses fields that it does not know."""
    judge = jinja2.Template(read(role, "vars/main.yml")[f"__{role}_netstack"])
    assert judge.render({f"{role}_release": "1-a"}) == "/opt/netstack/releases/1-a/bin/netstack"
    assert judge.render({f"{role}_release": ""}) == "/opt/netstack/current/bin/netstack"


@pytest.mark.parametrize("role", ["agent", "announcer", "ingress"])
def test_check_mode_does_not_miss_credentials_that_it_has_not_written(role: str) -> None:
    """As before a run that turns from the folder of manifests to the API server."""
    judge = jinja2.Template(read(role, "vars/main.yml")[f"__{role}_judge"])
    for check, option in ((True, "--no-credentials "), (False, "")):
        said = judge.render({f"__{role}_netstack": "netstack", "ansible_check_mode": check})
        assert said == f"netstack check-config {option}{role} %s"


@pytest.mark.parametrize("unit", ["loader", "agent"])
def test_nothing_that_starts_pods_is_started_before_programs_and_agent(unit: str) -> None:
    text = (ROOT / f"roles/agent/templates/netstack-{unit}.service.j2").read_text()
    before = {name for names in re.findall("^Before=(.*)$", text, re.MULTILINE) for name in names.split()}
    kubelets = {"kubelet", "k3s", "k3s-agent", "rke2-server", "rke2-agent", "k0scontroller", "k0sworker"}
    assert {f"{name}.service" for name in {"containerd", "crio", *kubelets}} <= before


@pytest.mark.parametrize("role", DAEMONS)
def test_a_loader_that_fails_once_keeps_no_daemon_from_starting(role: str) -> None:
    """It is tried again. A unit that requires it would not be: systemd fails its start for good."""
    for unit in (ROOT / "roles" / role / "templates").glob("*.service.j2"):
        assert not re.search(r"^(Requires|Requisite|BindsTo)=.*netstack-loader", unit.read_text(), re.MULTILINE)


@pytest.mark.parametrize("role", DAEMONS)
def test_what_a_broken_off_run_left_to_its_handlers_is_left_to_the_next(role: str) -> None:
    tasks = yaml.safe_load((ROOT / "roles" / role / "tasks/main.yml").read_text())
    (laid,) = (task for task in tasks if "notify" in task)
    (started,) = (task for task in tasks if "kubelab.netstack.units" in task)
    assert laid["kubelab.netstack.files"]["pending"] == f"/run/netstack/{role}.pending"
    assert started["kubelab.netstack.units"]["settles"] == f"/run/netstack/{role}.pending"


def test_networkd_hears_of_it_in_the_next_run_if_one_is_broken_off() -> None:
    """As by a release that cannot be built. Until it hears, it takes away routes and rules."""
    tasks = yaml.safe_load((ROOT / "roles/kernel/tasks/main.yml").read_text())
    (laid,) = (task for task in tasks if "notify" in task)
    handlers = yaml.safe_load((ROOT / "roles/kernel/handlers/main.yml").read_text())
    assert laid["notify"] == [handler["name"] for handler in handlers], "it is forgotten after the restart"
    assert handlers[-1]["kubelab.netstack.files"]["absent"] == [laid["kubelab.netstack.files"]["pending"]]


def test_the_plugin_is_where_runtimes_look_for_it_and_goes_with_netstack() -> None:
    """Debian's own containerd looks in /usr/lib/cni alone."""
    tasks = yaml.safe_load((ROOT / "roles/agent/tasks/cni.yml").read_text())
    links = [link["path"] for task in tasks for link in task.get("kubelab.netstack.files", {}).get("links", ())]
    assert links == ["/opt/cni/bin/netstack", "/usr/lib/cni/netstack"]
    for path in ("remove.yml", "files/leftovers.sh"):
        assert set(links) <= set((ROOT / "playbooks" / path).read_text().split()), path


def test_an_archive_that_a_broken_off_run_leaves_is_replaced_or_goes_with_netstack() -> None:
    archive = read("release", "vars/main.yml")["__release_archive"]
    assert not templated(archive), "another for each release"
    for path in ("remove.yml", "files/leftovers.sh"):
        assert archive in (ROOT / "playbooks" / path).read_text().split(), path


def test_the_action_group_has_every_module() -> None:
    groups = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["action_groups"]
    modules = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
    assert sorted(groups["netstack"]) == modules


def test_the_constraints_cover_what_the_daemons_need() -> None:
    tomllib = importlib.import_module("tomllib")
    needed = tomllib.loads((ROOT / "daemons/pyproject.toml").read_text())["project"]["dependencies"]
    pinned = {line.partition("==")[0] for line in (ROOT / "roles/release/files/constraints.txt").read_text().split()}
    assert {word.partition(">")[0] for word in needed} <= pinned

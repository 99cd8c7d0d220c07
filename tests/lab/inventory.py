"""The Ansible inventory of a lab, with the variables that inventory/example explains.

ansible runs in the machine's own namespaces (molecule must), and only the bytes of ssh cross into the lab: they enter
its LAN at the controller's namespace, through socat. That socat is a process of the lab, so ssh's shared connections
(ControlPersist) end with the lab.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from . import cgroups, network, objects
from .image import ssh_key
from .names import Names
from .node import Node

GROUP = "netstack_nodes"
CONTROLLER = "ctl"


PROXY = """#!/bin/sh
# $1 = address, $2 = port: standard input and output to there, from the lab's controller
echo $$ > {procs}
exec nsenter --net={netns} socat - "TCP:$1:$2"
"""


def write_proxy(names: Names) -> None:
    """Make the script that ssh reaches nodes through."""
    procs = cgroups.unified() / names.cgroup / CONTROLLER / "cgroup.procs"
    _proxy(names).write_text(PROXY.format(procs=procs, netns=names.netns_path(CONTROLLER)))
    _proxy(names).chmod(0o755)


def _proxy(names: Names) -> Path:
    return names.run / "proxy"


def ssh_options(names: Names) -> str:
    # Two labs have the same addresses, so each has its own shared connections; %C keeps the socket's path short.
    control = f"-o ControlMaster=auto -o ControlPersist=60s -o ControlPath={names.run}/ssh-%C"
    hosts = "-o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR"
    return f'{hosts} {control} -o ProxyCommand="{_proxy(names)} %h %p"'


Kubeconfigs = Mapping[str, Mapping[str, Path]]
"""Node -> variable of the inventory -> file; no node with the directory source."""


def inventory(names: Names, nodes: Sequence[Node], kubeconfigs: Kubeconfigs) -> dict[str, Any]:
    hosts = {node.name: {"ansible_host": node.address, "netstack_pod_cidr": node.pod_cidr} for node in nodes}
    for name, files in kubeconfigs.items():
        hosts[name] |= {variable: str(path) for variable, path in files.items()}
    connection = {
        "ansible_user": "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_private_key_file": str(ssh_key()),
        "ansible_ssh_common_args": ssh_options(names),
        "ansible_ssh_pipelining": True,
    }
    cluster = {
        "netstack_uplink": "eth0",
        "netstack_gateway": network.GATEWAY,
        "netstack_cluster_cidr": objects.CLUSTER_CIDR,
        "netstack_service_cidr": objects.SERVICE_CIDR,
    }
    if kubeconfigs:
        cluster["netstack_source"] = "kubernetes"
    return {GROUP: {"hosts": hosts, "vars": {**connection, **cluster}}}


def write(names: Names, nodes: Sequence[Node], kubeconfigs: Kubeconfigs, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(inventory(names, nodes, kubeconfigs), sort_keys=False, width=1000)
    path.write_text(f"# Written by the lab {names.prefix!r}.\n{text}")

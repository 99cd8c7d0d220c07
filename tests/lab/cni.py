"""Calling CNI plugins as a container runtime does (CNI specification 1.0, sections 2-4; libcni).

The first *.conflist of /etc/cni/net.d, by name, is in force; its plugins run in order for ADD and backwards for DEL,
each with the list's name and version, and the result of the one before, on standard input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .node import Node

CONFIGURATIONS = "/etc/cni/net.d"
PLUGINS = "/opt/cni/bin"
INTERFACE = "eth0"


class CniError(Exception):
    """A plugin refused. `code` is its error code (specification section 5), or its exit code if it said none."""

    def __init__(self, plugin: str, command: str, code: int, message: str) -> None:
        super().__init__(f"{plugin} {command}: {message} (code {code})")
        self.code = code


@dataclass(frozen=True, slots=True)
class Attachment:
    """What identifies one sandbox to the plugins."""

    container_id: str
    netns: str  # path in the node; empty if it is gone
    namespace: str
    pod: str
    uid: str

    def environment(self, command: str) -> dict[str, str]:
        arguments = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": self.namespace,
            "K8S_POD_NAME": self.pod,
            "K8S_POD_INFRA_CONTAINER_ID": self.container_id,
            "K8S_POD_UID": self.uid,
        }
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.container_id,
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": INTERFACE,
            "CNI_PATH": PLUGINS,
            "CNI_ARGS": ";".join(f"{name}={value}" for name, value in arguments.items()),
        }


def configuration(node: Node) -> dict[str, Any]:
    """The conflist in force on the node. Raises FileNotFoundError: the node's network is not ready for pods."""
    first = node.run(f'set -- {CONFIGURATIONS}/*.conflist; cat "$1"', check=False)
    if first.returncode:
        raise FileNotFoundError(f"{node.name}: no *.conflist in {CONFIGURATIONS}")
    found: dict[str, Any] = json.loads(first.stdout)
    return found


def add(node: Node, attachment: Attachment) -> dict[str, Any]:
    """ADD by every plugin of the list; returns the last one's result. Raises CniError."""
    conflist, result = configuration(node), None
    for plugin in conflist["plugins"]:
        result = _call(node, conflist, plugin, attachment, "ADD", result)
    return result or {}


def delete(node: Node, attachment: Attachment, result: Mapping[str, Any] | None) -> None:
    """DEL by every plugin, last first; `result` is what ADD returned. Raises CniError."""
    conflist = configuration(node)
    for plugin in reversed(conflist["plugins"]):
        _call(node, conflist, plugin, attachment, "DEL", result)


def _call(
    node: Node,
    conflist: Mapping[str, Any],
    plugin: Mapping[str, Any],
    attachment: Attachment,
    command: str,
    previous: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    request = {**plugin, "name": conflist["name"], "cniVersion": conflist["cniVersion"]}
    if previous:
        request["prevResult"] = previous
    environment = [f"{name}={value}" for name, value in attachment.environment(command).items()]
    argv = ["env", *environment, f"{PLUGINS}/{plugin['type']}"]
    done = node.run(argv, stdin=json.dumps(request), check=False)
    if done.returncode == 0:
        answer: dict[str, Any] | None = json.loads(done.stdout) if done.stdout.strip() else None
        return answer
    try:
        said = json.loads(done.stdout)
        raise CniError(plugin["type"], command, said["code"], f"{said['msg']} {said.get('details', '')}".strip())
    except (json.JSONDecodeError, KeyError):
        said = f"{done.stdout}{done.stderr}".strip()
        raise CniError(plugin["type"], command, done.returncode, said) from None

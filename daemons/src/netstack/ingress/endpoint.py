"""HAProxy's network namespace: an endpoint like a pod, with an address of the node's PodCIDR and policy in front.

    netstack-ingress --config /etc/netstack/ingress.yaml --endpoint add
    netstack-ingress --config /etc/netstack/ingress.yaml --endpoint del

A oneshot unit runs these before and after netstack-haproxy.service, whose NetworkNamespacePath is the namespace:

    # netstack-ingress-endpoint.service
    [Unit]
    After=netstack-agent.service
    [Service]
    Type=oneshot
    RemainAfterExit=yes
    ExecStart=/opt/netstack/current/bin/netstack-ingress --config /etc/netstack/ingress.yaml --endpoint add
    ExecStop=/opt/netstack/current/bin/netstack-ingress --config /etc/netstack/ingress.yaml --endpoint del
    CapabilityBoundingSet=CAP_SYS_ADMIN CAP_NET_ADMIN

ADD is repeated for a while, because the agent behind the plugin may still be starting. What is already wired stays.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netstack.core.address import pack
from netstack.core.files import write_atomic
from netstack.ingress.settings import IngressSettings

NAMESPACE = "netstack-ingress"
INTERFACE = "eth0"
CONFLIST = Path("/etc/cni/net.d/05-netstack.conflist")
PLUGINS = Path("/opt/cni/bin")
NAMESPACES = Path("/run/netns")
TRIES = 60
PAUSE_S = 1.0

log = logging.getLogger("endpoint")


class EndpointError(Exception):
    """The namespace could not be wired; the text is the plugin's."""


def add(settings: IngressSettings, *, conflist: Path = CONFLIST, sleep: Callable[[float], None] = time.sleep) -> str:
    """Wire the namespace unless it is; the endpoint's address. EndpointError after the last try."""
    address = _wired(settings)
    if address:
        return address
    _ip("netns", "del", NAMESPACE, check=False)  # half-made, or older than this boot of the agent
    _ip("netns", "add", NAMESPACE)
    _ip("-n", NAMESPACE, "link", "set", "lo", "up")
    for attempt in range(1, TRIES + 1):
        try:
            result = _plugin("ADD", settings, conflist)
            break
        except EndpointError as error:
            if attempt == TRIES:
                raise
            log.warning("try %d of %d: %s", attempt, TRIES, error)
            sleep(PAUSE_S)
    address = read_address(json.dumps(result))
    write_atomic(settings.endpoint, json.dumps(result, indent=2) + "\n")
    return address


def delete(settings: IngressSettings, *, conflist: Path = CONFLIST) -> None:
    """Give the address back and remove the namespace. Nothing to do is success, as the CNI asks for DEL."""
    try:
        if (NAMESPACES / NAMESPACE).exists():
            _plugin("DEL", settings, conflist)
    finally:
        settings.endpoint.unlink(missing_ok=True)
        _ip("netns", "del", NAMESPACE, check=False)


def address_of(settings: IngressSettings) -> str:
    """The endpoint's address as `add` recorded it; "" while there is none."""
    try:
        return read_address(settings.endpoint.read_text(encoding="utf-8"))
    except (FileNotFoundError, EndpointError):
        return ""


def read_address(text: str) -> str:
    """The first address of a CNI result (CNI spec 1.0.0, section 5)."""
    try:
        address = str(json.loads(text)["ips"][0]["address"]).partition("/")[0]
        pack(address)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EndpointError(f"is no CNI result with an address: {text[:200]!r}") from error
    return address


def request(conflist: str, plugins: Path) -> tuple[Path, str]:
    """The binary of the conflist's first plugin and its configuration for stdin (CNI spec 1.0.0, section 3)."""
    try:
        whole = json.loads(conflist)
        plugin: dict[str, Any] = dict(whole["plugins"][0])
        name, version, binary = whole["name"], whole["cniVersion"], plugin["type"]
    except (ValueError, LookupError, TypeError) as error:
        raise EndpointError(f"{CONFLIST.name} is no CNI network configuration list: {error!r}") from error
    return plugins / str(binary), json.dumps(plugin | {"name": name, "cniVersion": version})


def environment(command: str, settings: IngressSettings, plugins: Path) -> dict[str, str]:
    namespace, _ = settings.service_key
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": NAMESPACE,
        "CNI_NETNS": str(NAMESPACES / NAMESPACE),
        "CNI_IFNAME": INTERFACE,
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={NAMESPACE}",
        "CNI_PATH": str(plugins),
    }


def _plugin(command: str, settings: IngressSettings, conflist: Path) -> dict[str, Any]:
    try:
        binary, config = request(conflist.read_text(encoding="utf-8"), PLUGINS)
        done = subprocess.run(
            [str(binary)],
            input=config,
            env=os.environ | environment(command, settings, PLUGINS),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EndpointError(f"{command}: {error}") from error
    if done.returncode:
        raise EndpointError(f"{command}: {_message(done.stdout) or done.stderr.strip() or done.returncode}")
    return json.loads(done.stdout) if done.stdout.strip() else {}


def _message(stdout: str) -> str:
    """A plugin's error, which it writes as JSON to stdout (CNI spec 1.0.0, section 5)."""
    try:
        error = json.loads(stdout)
        return " ".join(filter(None, (error.get("msg"), error.get("details"))))
    except (ValueError, AttributeError):
        return stdout.strip()


def _wired(settings: IngressSettings) -> str:
    """The address, if the namespace has its interface and the record says which address it has."""
    address = address_of(settings)
    if not address or not (NAMESPACES / NAMESPACE).exists():
        return ""
    shown = _ip("-n", NAMESPACE, "-json", "address", "show", "dev", INTERFACE, check=False)
    return address if f'"{address}"' in shown.replace(" ", "") else ""


def _ip(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=10, check=False)
    if check and done.returncode:
        raise EndpointError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout

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
from dataclasses import dataclass
from pathlib import Path

from netstack.core.address import pack
from netstack.core.files import write_atomic
from netstack.ingress.settings import IngressSettings

NAME = "netstack-ingress"
"""CNI_CONTAINERID and K8S_POD_NAME."""
INTERFACE = "eth0"
TRIES = 60
PAUSE_S = 1.0

log = logging.getLogger("endpoint")


@dataclass(frozen=True, slots=True)
class Wiring:
    """Where things are on a node."""

    namespace: Path = Path("/run/netns") / NAME
    conflist: Path = Path("/etc/cni/net.d/05-netstack.conflist")
    plugins: Path = Path("/opt/cni/bin")


NODE = Wiring()


class EndpointError(Exception):
    """The namespace could not be wired; the text is the plugin's."""


def add(settings: IngressSettings, wiring: Wiring = NODE, *, sleep: Callable[[float], None] = time.sleep) -> str:
    """Wire the namespace unless it is; the endpoint's address. EndpointError after the last try."""
    address = _wired(settings, wiring)
    if address:
        return address
    name = wiring.namespace.name
    _ip("netns", "del", name, check=False)  # half-made by an earlier attempt
    _ip("netns", "add", name)
    _ip("-n", name, "link", "set", "lo", "up")
    for attempt in range(1, TRIES + 1):
        try:
            _plugin("DEL", settings, wiring)  # what the agent may remember from before a power cut
            result = _plugin("ADD", settings, wiring)
            break
        except EndpointError as error:
            if attempt == TRIES:
                raise
            log.warning("try %d of %d: %s", attempt, TRIES, error)
            sleep(PAUSE_S)
    address = read_address(result)
    write_atomic(settings.endpoint, result)
    return address


def delete(settings: IngressSettings, wiring: Wiring = NODE) -> None:
    """Give the address back and remove the namespace. Nothing to do is success, as the CNI asks for DEL."""
    try:
        if wiring.namespace.exists():
            _plugin("DEL", settings, wiring)
    finally:
        settings.endpoint.unlink(missing_ok=True)
        _ip("netns", "del", wiring.namespace.name, check=False)


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


def request(conflist: str) -> tuple[str, str]:
    """The name of the conflist's first plugin and its configuration for stdin (CNI spec 1.0.0, section 3)."""
    try:
        whole = json.loads(conflist)
        plugin = dict(whole["plugins"][0])
        plugin |= {"name": whole["name"], "cniVersion": whole["cniVersion"]}
        return str(plugin["type"]), json.dumps(plugin)
    except (ValueError, LookupError, TypeError) as error:
        raise EndpointError(f"is no CNI network configuration list: {error!r}") from error


def environment(command: str, settings: IngressSettings, wiring: Wiring = NODE) -> dict[str, str]:
    """What the plugin is told beside its configuration (CNI spec 1.0.0, section 2)."""
    namespace, _ = settings.service_key
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": NAME,
        "CNI_NETNS": str(wiring.namespace),
        "CNI_IFNAME": INTERFACE,
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={NAME}",
        "CNI_PATH": str(wiring.plugins),
    }


def _plugin(command: str, settings: IngressSettings, wiring: Wiring) -> str:
    """What the plugin wrote to stdout."""
    try:
        binary, config = request(wiring.conflist.read_text(encoding="utf-8"))
        done = subprocess.run(
            [str(wiring.plugins / binary)],
            input=config,
            env=os.environ | environment(command, settings, wiring),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EndpointError(f"{command}: {error}") from error
    except EndpointError as error:
        raise EndpointError(f"{wiring.conflist} {error}") from error
    if done.returncode:
        raise EndpointError(f"{command}: {_message(done.stdout) or done.stderr.strip() or done.returncode}")
    return done.stdout


def _message(stdout: str) -> str:
    """A plugin's error, which it writes as JSON to stdout (CNI spec 1.0.0, section 5)."""
    try:
        error = json.loads(stdout)
        return " ".join(filter(None, (error.get("msg"), error.get("details"))))
    except (ValueError, AttributeError):
        return stdout.strip()


def _wired(settings: IngressSettings, wiring: Wiring) -> str:
    """The address, if the namespace has its interface with the address that the record names."""
    address = address_of(settings)
    if not address or not wiring.namespace.exists():
        return ""
    shown = _ip("-n", wiring.namespace.name, "-json", "address", "show", "dev", INTERFACE, check=False)
    return address if f'"{address}"' in shown else ""


def _ip(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=10, check=False)
    if check and done.returncode:
        raise EndpointError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout

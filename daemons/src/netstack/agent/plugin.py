"""netstack-cni: the CNI plugin (specification 1.0.0), the short-lived veth helper of the agent.

It alone enters the pod's network namespace; what is decided, the agent decides (cni.py has the sequence). Errors go to
stdout as the specification's JSON. It runs once for every pod, so it imports no asyncio and no YAML.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from netstack.core.address import Prefix, pack
from netstack.kernel.netlink import Link, Netlink, Route

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0")
SOCKET = "/run/netstack/agent.sock"
TIMEOUT_S = 30.0
GATEWAY = "169.254.1.1"
SWITCHES = (("ipv4", "rp_filter", "0"), ("ipv4", "forwarding", "1"), ("ipv6", "disable_ipv6", "1"))
"""Of the host side: the programs check sources themselves; it forwards; it has no addresses of its own."""
CLONE_NEWNET = 0x40000000
BAD_VERSION, BAD_ENVIRONMENT, IO_FAILURE, BAD_JSON, BAD_CONFIG, TRY_AGAIN = 1, 4, 5, 6, 7, 11
"""Specification, section 5."""


class CniError(Exception):
    """What is printed when a command fails."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code, self.msg, self.details = code, msg, details


def main() -> None:
    """Exit status 0 with the result, 1 with the error, on stdout."""
    version = "1.0.0"
    try:
        command = _variable(os.environ, "CNI_COMMAND")
        config = _config(sys.stdin.read())
        version = config.get("cniVersion", version)
        result = run(command, config, os.environ)
    except CniError as error:
        print(json.dumps({"cniVersion": version, "code": error.code, "msg": error.msg, "details": error.details}))
        sys.exit(1)
    if result is not None:
        print(json.dumps(result))


def run(command: str, config: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any] | None:
    """One CNI command; its result, None if it has none. CniError."""
    if command == "VERSION":
        return {"cniVersion": "1.0.0", "supportedVersions": list(VERSIONS)}
    if command not in COMMANDS:
        raise CniError(BAD_ENVIRONMENT, f"CNI_COMMAND is {command!r}, not one of {', '.join((*COMMANDS, 'VERSION'))}")
    version = config.get("cniVersion")
    if version not in VERSIONS:
        raise CniError(BAD_VERSION, f"cniVersion {version!r} is not supported; {', '.join(VERSIONS)} are")
    if not config.get("name"):
        raise CniError(BAD_CONFIG, "the network configuration has no name")
    try:
        return COMMANDS[command](Sandbox(environment, needs_netns=command != "DEL"), config)
    except OSError as error:
        raise CniError(IO_FAILURE, f"{command} failed: {error}") from error


class Sandbox:
    """Which container and interface this is about (specification, section 2)."""

    def __init__(self, environment: Mapping[str, str], *, needs_netns: bool) -> None:
        self.container = _variable(environment, "CNI_CONTAINERID")
        self.interface = _variable(environment, "CNI_IFNAME")
        self.netns = _variable(environment, "CNI_NETNS") if needs_netns else environment.get("CNI_NETNS", "")
        pairs = (item.partition("=") for item in environment.get("CNI_ARGS", "").split(";") if item)
        self.arguments = {name: value for name, _, value in pairs}
        self.device = device_name(self.container, self.interface)

    def pod(self) -> dict[str, str]:
        for name in ("K8S_POD_NAMESPACE", "K8S_POD_NAME"):
            if not self.arguments.get(name):
                raise CniError(BAD_ENVIRONMENT, f"CNI_ARGS has no {name}")
        names = {"namespace": "K8S_POD_NAMESPACE", "pod": "K8S_POD_NAME", "uid": "K8S_POD_UID"}
        return {field: self.arguments.get(name, "") for field, name in names.items()}

    def request(self, command: str, **more: str) -> dict[str, str]:
        return {"command": command, "container": self.container, "interface": self.interface, **more}


def add(sandbox: Sandbox, config: dict[str, Any]) -> dict[str, Any]:
    """Reserve, make, attach, open; repeated for the same container, the same result."""
    reserved = _agent(sandbox.request("reserve", device=sandbox.device, **sandbox.pod()), config)
    address = pack(reserved["address"])
    with _namespace(sandbox.netns) as netns, Netlink() as node, _inside(netns) as pod:
        there = pod.link(sandbox.interface)
        here = node.link(sandbox.device)
        if not (reserved["attached"] and here and there and address in pod.addresses(there.index)):
            node.delete_link(sandbox.device)  # left by an attempt that failed half-way
            here, there = _make(node, pod, sandbox, netns, int(config.get("mtu") or reserved["mtu"]))
            pod.put_address(there.index, address)
            _agent(sandbox.request("attach", mac=there.mac.hex()), config)
        _open(pod, there, here)
        return _result(config, sandbox, reserved["address"], here, there)


def _make(node: Netlink, pod: Netlink, sandbox: Sandbox, netns: int, mtu: int) -> tuple[Link, Link]:
    """A veth pair, both ends down, with nothing that IPv6 or reverse path filtering would do by itself."""
    try:
        node.create_veth(sandbox.device, sandbox.interface, netns, mtu)
    except FileExistsError as error:
        raise CniError(
            BAD_CONFIG, f"the namespace {sandbox.netns} has an interface {sandbox.interface} already"
        ) from error
    for family, name, value in SWITCHES:
        path = Path("/proc/sys/net", family, "conf", sandbox.device, name)
        if path.exists():  # a kernel without IPv6 has none of its switches
            path.write_text(value, encoding="ascii")
    here, there = node.link(sandbox.device), pod.link(sandbox.interface)
    if here is None or there is None:
        raise CniError(IO_FAILURE, f"{sandbox.device} vanished while it was made")
    return here, there


def _open(pod: Netlink, there: Link, here: Link) -> None:
    """The pod's end: up, everything through a gateway that is always there and has the host side's MAC."""
    gateway = pack(GATEWAY)
    loopback = pod.link("lo")
    if loopback is not None and not loopback.up:
        pod.set_up(loopback.index)
    with suppress(OSError):  # a kernel without IPv6
        pod.set_no_link_local(there.index)  # it would look for routers and report groups, all of which is dropped
    pod.set_up(there.index)
    pod.put_route(Route(Prefix(gateway, 128), there.index))
    pod.put_route(Route(Prefix.parse("0.0.0.0/0"), there.index, gateway, onlink=True))
    pod.put_neighbour(there.index, gateway, here.mac)


def _result(config: dict[str, Any], sandbox: Sandbox, address: str, here: Link, there: Link) -> dict[str, Any]:
    """Specification, section 5: Success."""
    return {
        "cniVersion": config["cniVersion"],
        "interfaces": [
            {"name": here.name, "mac": here.mac.hex(":")},
            {"name": there.name, "mac": there.mac.hex(":"), "sandbox": sandbox.netns},
        ],
        "ips": [
            {"address": f"{address}/32", "gateway": GATEWAY, "interface": 1}
            | ({} if config["cniVersion"] == "1.0.0" else {"version": "4"})
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": GATEWAY}],
        "dns": {},
    }


def delete(sandbox: Sandbox, config: dict[str, Any]) -> None:
    """Always succeeds: what the agent does not hear of now, its audit finds (the device is gone)."""
    try:
        _agent(sandbox.request("release"), config)
    except CniError as error:
        print(f"netstack-cni: the agent did not hear of DEL: {error.msg}", file=sys.stderr)
    with Netlink() as node:
        node.delete_link(sandbox.device)


def check(sandbox: Sandbox, config: dict[str, Any]) -> None:
    """Programs on the host side, the interface up inside."""
    _agent(sandbox.request("check"), config)
    with _namespace(sandbox.netns) as netns, _inside(netns) as pod:
        link = pod.link(sandbox.interface)
    if link is None or not link.up:
        raise CniError(IO_FAILURE, f"{sandbox.interface} in {sandbox.netns} is missing or down")


COMMANDS: dict[str, Callable[[Sandbox, dict[str, Any]], dict[str, Any] | None]] = {
    "ADD": add,
    "DEL": delete,
    "CHECK": check,
}


def device_name(container: str, interface: str) -> str:
    """The host side's name: 15 characters, the same for the same container."""
    return f"nst{hashlib.blake2b(f'{container} {interface}'.encode(), digest_size=6).hexdigest()}"


def _config(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise CniError(BAD_JSON, "the network configuration on stdin is not JSON", str(error)) from error
    if not isinstance(config, dict):
        raise CniError(BAD_JSON, "the network configuration on stdin is not a JSON object")
    return config


def _variable(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise CniError(BAD_ENVIRONMENT, f"{name} is not set")
    return value


def _agent(request: dict[str, str], config: dict[str, Any]) -> dict[str, Any]:
    """One request to the agent; CniError if it is not there (try again later) or refuses."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(TIMEOUT_S)
            sock.connect(config.get("socket", SOCKET))
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as answers:
                line = answers.readline()
        answer = json.loads(line)
    except (OSError, ValueError) as error:
        raise CniError(TRY_AGAIN, "netstack-agent does not answer", str(error)) from error
    if "error" in answer:
        raise CniError(TRY_AGAIN, "netstack-agent failed", answer["error"])
    found: dict[str, Any] = answer["ok"]
    if "refused" in found:
        raise CniError(**found["refused"])
    return found


@contextmanager
def _namespace(path: str) -> Iterator[int]:
    """A descriptor of a network namespace."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CniError(BAD_ENVIRONMENT, f"CNI_NETNS {path} cannot be opened", str(error)) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _inside(netns: int) -> Iterator[Netlink]:
    """A route socket of that namespace. This process is there only while the socket is made."""
    libc = ctypes.CDLL(None, use_errno=True)
    with _namespace("/proc/self/ns/net") as own:
        if libc.setns(netns, CLONE_NEWNET):
            raise CniError(BAD_ENVIRONMENT, "CNI_NETNS is no network namespace", os.strerror(ctypes.get_errno()))
        try:
            netlink = Netlink()
        finally:
            libc.setns(own, CLONE_NEWNET)
    with netlink:
        yield netlink


if __name__ == "__main__":
    main()

"""Pods as kubelet and container runtime make them, with a node's own Debian in place of container images.

A sandbox is a network namespace, wired by the CNI plugin that the node's conflist names. The process is a systemd
service in kubepods.slice that joins that namespace and sees the pod's resolv.conf; the cgroup is where a kubelet with
the systemd driver would put it, so socket hooks at the node's root see it as on metal. Then the pod's address and
readiness go to the API.

Sandboxes are written down, as containerd does: after a power cut the old ones are deleted (their namespaces are gone
then) before new ones are added.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cgroups, cni, http
from .node import ENVIRONMENT, Node, NotRunning
from .objects import Object, ObjectApi, condition
from .shell import alive, run, wait_until

CLUSTER_DNS = "10.96.0.10"
SHARED = "/opt/lab/shared"  # the lab's shared folder, in the nodes

# What a container runtime leaves to a container by default: it may use raw sockets but not change its network.
CAPABILITIES = (
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_MKNOD CAP_NET_BIND_SERVICE CAP_NET_RAW CAP_SETFCAP"
    " CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYS_CHROOT"
)

# The stand-in for CoreDNS. No cache: a name that changed is changed at once.
DNS_SERVER = (
    *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--no-hosts"),
    *("--no-resolv", "--cache-size=0", "--local-ttl=5", "--local=/cluster.local/", f"--hostsdir={SHARED}/names"),
)
KUBE_DNS: Object = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}},
    "spec": {
        "clusterIP": CLUSTER_DNS,
        "selector": {"k8s-app": "kube-dns"},
        "ports": [
            {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": "dns"},
            {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": "dns-tcp"},
        ],
    },
}


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod's running instance."""

    container_id: str
    uid: str  # of the Pod object; here too, so that a pod is reached while there is no API server
    boot: int  # the node's boot that it belongs to
    address: str
    pid: int  # of the pod's process, as the machine numbers it
    result: dict[str, Any]  # what the CNI plugin answered


def pod_object(
    node: str,
    namespace: str,
    name: str,
    labels: Mapping[str, str],
    command: Sequence[str],
    ports: Mapping[str, int | str],
    host_network: bool,
) -> Object:
    """`ports`: name -> number (TCP) or "number/PROTOCOL"."""
    numbers = {port_name: str(port).partition("/") for port_name, port in ports.items()}
    container_ports = [
        {"name": port_name, "containerPort": int(number), "protocol": protocol or "TCP"}
        for port_name, (number, _, protocol) in numbers.items()
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": {
            "nodeName": node,
            "hostNetwork": host_network,
            "serviceAccountName": "default",
            "containers": [{"name": name, "image": "lab", "command": list(command), "ports": container_ports}],
        },
        "status": {"phase": "Pending"},
    }


class Pod:
    """One pod, bound to a node. `node` is the node's name."""

    def __init__(self, node: Node, api: ObjectApi, namespace: str, name: str) -> None:
        self._node, self._api = node, api
        self.node, self.namespace, self.name = node.name, namespace, name

    # What it is

    @property
    def object(self) -> Object:
        """The Pod object. Raises KeyError if it has been deleted."""
        found = self._api.get("Pod", self.namespace, self.name)
        if found is None:
            raise KeyError(f"Pod {self.namespace}/{self.name}")
        return found

    @property
    def sandbox(self) -> Sandbox:
        """The running instance. Raises NotRunning."""
        try:
            return Sandbox(**json.loads(self._record.read_text()))
        except FileNotFoundError:
            raise NotRunning(f"pod {self.namespace}/{self.name}") from None

    @property
    def address(self) -> str:
        return self.sandbox.address

    @property
    def netns(self) -> Path:
        """Its network namespace, for nsenter --net on the machine."""
        return Path(f"/proc/{self.sandbox.pid}/ns/net")

    @property
    def cgroup(self) -> Path:
        """Its cgroup in the machine's unified hierarchy."""
        uid = self.sandbox.uid.replace("-", "_")
        slices = f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice"
        return cgroups.unified() / self._node.payload / slices / self._unit

    @property
    def _unit(self) -> str:
        return f"pod-{self.namespace}-{self.name}.service"

    @property
    def _record(self) -> Path:
        return self._node.names.run / "pods" / f"{self.namespace}.{self.name}.json"

    @property
    def _host_network(self) -> bool:
        return bool(self.object["spec"].get("hostNetwork"))

    # Its life

    def start(self) -> None:
        """Make the sandbox, start the process, wait until its TCP ports listen, and tell the API.

        Raises CniError: then nothing is left of the attempt, and the pod is Pending.
        """
        boot = self._node.boot_state()
        if boot is None:
            raise NotRunning(self.node)
        if self._record.exists():
            self._remove(self.sandbox)
        attachment = self._attachment(secrets.token_hex(32))
        result = {} if self._host_network else self._wire(attachment)
        address = result["ips"][0]["address"].partition("/")[0] if result else self._node.address
        sandbox = Sandbox(attachment.container_id, attachment.uid, boot.count, address, 0, result)
        self._write(sandbox)
        self._run_process(attachment)
        self._write(dataclasses.replace(sandbox, pid=self._main_process()))
        self._wait_listening()
        addresses = {"podIP": address, "podIPs": [{"ip": address}], "hostIP": self._node.address}
        self._set_status(phase="Running", ready=True, **addresses)

    def stop(self) -> None:
        """End the process and the sandbox, as a kubelet does when the pod shall go."""
        sandbox = self.sandbox
        self._set_status(ready=False)
        self._remove(sandbox)

    def delete(self) -> None:
        """Stop it and delete the object."""
        self.stop()
        self._api.delete("Pod", self.namespace, self.name)

    def set_ready(self, ready: bool) -> None:
        """What a readiness probe would report."""
        self._set_status(ready=ready)

    # What it does

    def enter(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs argv in the pod: its namespaces and cgroup. It has all of root's capabilities."""
        environment = (f"{name}={value}" for name, value in ENVIRONMENT.items())
        inside = ["nsenter", f"--target={self.sandbox.pid}", "--all", "--", "env", "-i", "-C", "/", *environment, *argv]
        return cgroups.joined([self.cgroup / "cgroup.procs"], inside)

    def exec(
        self, command: str | Sequence[str], *, stdin: str | None = None, check: bool = False, timeout_s: float = 30.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell line, or an argument list, in the pod. Not checked by default: refusal is often the point."""
        argv = ["sh", "-c", command] if isinstance(command, str) else command
        return run(self.enter(argv), stdin=stdin, check=check, timeout_s=timeout_s)

    def get(
        self,
        url: str,
        *,
        resolve: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 3.0,
        options: tuple[str, ...] = (),
    ) -> http.Response:
        """GET an URL from inside the pod."""
        return http.get(self.exec, url, resolve=resolve, headers=headers, timeout_s=timeout_s, options=options)

    # The steps of its life

    def _attachment(self, container_id: str, netns: str | None = None) -> cni.Attachment:
        path = f"/run/netns/cni-{container_id[:32]}" if netns is None else netns
        return cni.Attachment(container_id, path, self.namespace, self.name, self.object["metadata"]["uid"])

    def _remove(self, sandbox: Sandbox) -> None:
        """Remove a sandbox. One of an earlier boot has neither process nor namespace any more."""
        boot = self._node.boot_state()
        exists = boot is not None and boot.count == sandbox.boot
        if exists:
            self._node.run(["systemctl", "stop", self._unit], check=False)  # it may have ended by itself
        if not self._host_network:
            attachment = self._attachment(sandbox.container_id, netns=None if exists else "")
            cni.delete(self._node, attachment, sandbox.result)
            if exists:
                self._node.run(["ip", "netns", "del", Path(attachment.netns).name])
        self._record.unlink()

    def _wire(self, attachment: cni.Attachment) -> dict[str, Any]:
        netns = Path(attachment.netns).name
        self._node.run(f"ip netns add {netns} && ip -n {netns} link set lo up")
        try:
            return cni.add(self._node, attachment)
        except cni.CniError:
            with contextlib.suppress(cni.CniError):  # a runtime asks for DEL after a failed ADD, and ignores the answer
                cni.delete(self._node, attachment, None)
            self._node.run(["ip", "netns", "del", netns])
            raise

    def _run_process(self, attachment: cni.Attachment) -> None:
        uid = self.object["metadata"]["uid"].replace("-", "_")
        properties = {
            "BindReadOnlyPaths": f"{self._write_resolv_conf()}:/etc/resolv.conf",
            "CapabilityBoundingSet": CAPABILITIES,
        }
        if not self._host_network:
            properties["NetworkNamespacePath"] = attachment.netns
        self._node.run(
            [
                *("systemd-run", "--quiet", "--collect", "--service-type=exec", f"--unit={self._unit}"),
                f"--slice=kubepods-burstable-pod{uid}.slice",
                *(f"--property={name}={value}" for name, value in properties.items()),
                "--",
                *self.object["spec"]["containers"][0]["command"],
            ]
        )

    def _main_process(self) -> int:
        """The pod's process, as the machine numbers it. Raises NotRunning, with what it said, if it has ended."""
        try:
            return int((self.cgroup / "cgroup.procs").read_text().split()[0])
        except (FileNotFoundError, IndexError):
            raise self._ended() from None

    def _ended(self) -> NotRunning:
        journal = self._node.run(["journalctl", "-o", "cat", "-n", "20", "-u", self._unit]).stdout
        return NotRunning(f"pod {self.namespace}/{self.name}:\n{journal}")

    def _write_resolv_conf(self) -> str:
        """The resolv.conf of dnsPolicy ClusterFirst (Default on the host's network), as a path in the node."""
        if self._host_network:
            return f"{SHARED}/resolv.conf"
        name = f"resolv-{self.namespace}.conf"
        search = f"{self.namespace}.svc.cluster.local svc.cluster.local cluster.local"
        text = f"search {search}\nnameserver {CLUSTER_DNS}\noptions ndots:5\n"
        (self._node.names.run / "shared" / name).write_text(text)
        return f"{SHARED}/{name}"

    def _wait_listening(self) -> None:
        """A readiness probe of each TCP port that the pod names."""
        ports = self.object["spec"]["containers"][0].get("ports", [])
        wanted = {port["containerPort"] for port in ports if port["protocol"] == "TCP"}

        def listening() -> bool:
            if not alive(self.sandbox.pid):
                raise self._ended()
            sockets = self.exec(["ss", "-Hltn"]).stdout.splitlines()
            return wanted <= {int(line.split()[3].rpartition(":")[2]) for line in sockets}

        if wanted:
            wait_until(listening, f"pod {self.namespace}/{self.name} to listen on {sorted(wanted)}")

    def _write(self, sandbox: Sandbox) -> None:
        self._record.parent.mkdir(exist_ok=True)
        self._record.write_text(json.dumps(dataclasses.asdict(sandbox)))

    def _set_status(self, *, ready: bool, **fields: Any) -> None:
        conditions = [condition(kind, ready) for kind in ("ContainersReady", "Ready")]
        self._api.set_status("Pod", self.namespace, self.name, {**fields, "conditions": conditions})

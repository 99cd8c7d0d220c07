"""Board: one node of network namespaces with the real loader, the real agent and the real CNI binary.

    board.put(POLICY)
    board.start()
    pod = board.add("default/web", {"app": "web"})
    board.connects(pod, "10.96.0.1", 80)

A namespace `node` with an uplink `eth0` (192.168.86.21) to a namespace `lan` (192.168.86.50 and the gateway .1); a
process that holds a mount namespace with a bpffs and a /run/netstack of its own, so that several boards do not meet;
a cgroup of its own, in which everything that starts on the board runs. All names begin with `nsta<pid>`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lab import image
from netstack.core.unit import ask
from netstack.ingress.endpoint import request

ROOT = Path(__file__).parents[2]
NODE, LAN, ROUTER = "192.168.86.21", "192.168.86.50", "192.168.86.1"
POD_CIDR = "10.244.1.0/24"
PATIENCE_S = 20.0
SERVE = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])), reuse_port=False)
print("listening", flush=True)
while True:
    connection, peer = server.accept()
    connection.sendall((sys.argv[3] + " " + peer[0]).encode())
    connection.close()
"""
CONNECT = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3]))
print(sock.makefile().read(), end="")
"""


class Pod:
    """One sandbox: a namespace of its own, as a container runtime makes it."""

    def __init__(self, board: Board, name: str) -> None:
        self.namespace, _, self.name = name.rpartition("/")
        self.container = f"{board.name}-{self.namespace}-{self.name}"
        self.netns = f"{board.name}-{self.name}"
        self.result: dict[str, Any] = {}
        ip("netns", "add", self.netns)

    @property
    def address(self) -> str:
        return str(self.result["ips"][0]["address"].partition("/")[0])

    @property
    def device(self) -> str:
        return str(self.result["interfaces"][0]["name"])


class CniFailure(Exception):
    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['msg']} {error['details']}".strip())
        self.code = error["code"]


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def wait_for(what: str, condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """The first true value of `condition()`; AssertionError with `what` when patience ends."""
    deadline = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {patience_s:g} s for {what}"
        time.sleep(0.02)


class Board:
    def __init__(self, folder: Path, number: int = 0, sizes: dict[str, int] | None = None, **settings: Any) -> None:
        """`sizes`: of maps; `settings`: of agent.yaml."""
        self.folder = folder
        self.name = f"nsta{os.getpid()}-{number}"
        self.node, self.lan = f"{self.name}-node", f"{self.name}-lan"
        self.pods: dict[str, Pod] = {}
        self.agent: subprocess.Popen[bytes] | None = None
        self.dns: subprocess.Popen[bytes] | None = None
        self._children: list[subprocess.Popen[Any]] = []
        self._holder: subprocess.Popen[bytes] | None = None
        unified = Path("/sys/fs/cgroup/unified")
        self.cgroup = (unified if unified.is_dir() else Path("/sys/fs/cgroup")) / self.name
        for part in ("manifests", "status", "state", "run", "bpf", "bin", "net.d"):
            (folder / part).mkdir()
        self._config(settings, sizes or {})

    def _config(self, settings: dict[str, Any], sizes: dict[str, int]) -> None:
        config = {
            "node": "n1",
            "node_address": NODE,
            "pod_cidr": POD_CIDR,
            "manifests": str(self.folder / "manifests"),
            "status": str(self.folder / "status"),
            "state": str(self.folder / "state"),
            "conflist": str(self.folder / "net.d/05-netstack.conflist"),
            "pod_wait_s": 0.5,
            "audit_s": 0.2,
            "datapath": {
                "bpf_source": str(ROOT / "files/bpf"),
                "cache": str(image.cache() / "programs"),
                "cgroup": str(self.cgroup),
                "pins": str(self.folder / "bpf/netstack"),
                "sizes": dict.fromkeys(("slots", "nat", "nat_pods", "policy", "identities"), 4096) | sizes,
            },
        } | settings
        (self.folder / "agent.yaml").write_text(yaml.safe_dump(config))

    # life ------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Board:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self) -> None:
        self.cgroup.mkdir()
        for netns in (self.node, self.lan):
            ip("netns", "add", netns)
            ip("-n", netns, "link", "set", "lo", "up")
        self.plug()
        steps = [
            f"mount -t bpf bpf {self.folder}/bpf",
            "mkdir -p /run/netstack",
            f"mount --bind {self.folder}/run /run/netstack",
            "sysctl -qw net.ipv4.ip_forward=1",
            "echo ready",
            "exec sleep infinity",
        ]
        own_mounts = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", " && ".join(steps)]
        enter = ["nsenter", f"--net=/run/netns/{self.node}"]
        self._holder = subprocess.Popen([*enter, *own_mounts], stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"

    def plug(self) -> None:
        """The uplink: a new one, if there was one."""
        subprocess.run(["ip", "-n", self.node, "link", "del", "eth0"], capture_output=True, check=False)
        ip("link", "add", "eth0", "netns", self.node, "type", "veth", "peer", "name", "eth0", "netns", self.lan)
        ip("-n", self.node, "addr", "add", f"{NODE}/24", "dev", "eth0")
        for address in (LAN, ROUTER):
            ip("-n", self.lan, "addr", "add", f"{address}/24", "dev", "eth0")
        for netns in (self.node, self.lan):
            ip("-n", netns, "link", "set", "eth0", "up")
        ip("-n", self.node, "route", "add", "default", "via", ROUTER)

    def occupy(self, device: str) -> None:
        """Somebody else's program at a device of the node, where ours belongs. It lets everything pass."""
        pin = f"{self.folder}/bpf/foreign"
        instructions = "b7000000000000009500000000000000"  # r0 = 0; exit
        script = (
            "from netstack.kernel.bpf import SCHED_CLS, Program\n"
            f"Program.load('foreign', SCHED_CLS, bytes.fromhex({instructions!r})).pin({pin!r})\n"
        )
        self.run(*self.python("-c", script), check=True)
        self.run("tc", "qdisc", "add", "dev", device, "clsact", check=True)
        words = f"tc filter add dev {device} ingress pref 1 handle 1 bpf da object-pinned {pin}"
        self.run(*words.split(), check=True)

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.stop_dns()
        for child in self._children:
            child.kill()
            child.wait()
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
        for netns in (*(pod.netns for pod in self.pods.values()), self.lan, self.node):
            subprocess.run(["ip", "netns", "del", netns], capture_output=True, check=False)
        if self.cgroup.is_dir():
            self.cgroup.rmdir()

    def _command(self, words: list[str], netns: str = "") -> list[str]:
        """`words` in the board's mounts and cgroup, in one of its network namespaces."""
        assert self._holder is not None
        enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", f"--net=/run/netns/{netns or self.node}"]
        return [*enter, "sh", "-c", f'echo $$ > {self.cgroup}/cgroup.procs; exec "$@"', "sh", *words]

    def run(self, *words: str, netns: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._command(list(words), netns), capture_output=True, text=True, **more)

    def python(self, *words: str) -> list[str]:
        return ["env", f"PYTHONPATH={ROOT / 'daemons/src'}", sys.executable, *words]

    def load(self, *options: str) -> str:
        """The loader, once; what it said."""
        loader = self.python("-m", "netstack.kernel.loader", "--config", str(self.folder / "agent.yaml"))
        done = self.run(*loader, *options)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def start(self) -> None:
        """The agent, until it answers."""
        with (self.folder / "agent.log").open("ab") as output:
            self.agent = subprocess.Popen(
                self._command(self.python("-m", "netstack.agent", "--config", str(self.folder / "agent.yaml"))),
                stdout=output,
                stderr=output,
            )
        wait_for("the agent", lambda: self.agent and (self.agent.poll() is not None or self._answers()))
        assert self.agent.poll() is None, self.log()

    def start_dns(self, **settings: Any) -> None:
        """netstack-dns, with sockets of its own, until it answers."""
        chosen = {
            "rules": str(self.folder / "state/dns-rules.json"),
            "state": str(self.folder / "dns"),
            "maps": str(self.folder / "bpf/netstack/maps"),
        }
        (self.folder / "dns.yaml").write_text(yaml.safe_dump(chosen | settings))
        with (self.folder / "dns.log").open("ab") as output:
            self.dns = subprocess.Popen(
                self._command(self.python("-m", "netstack.dns", "--config", str(self.folder / "dns.yaml"))),
                stderr=output,
            )
        log = self.folder / "dns.log"
        wait_for("netstack-dns", lambda: self.dns and (self.dns.poll() is not None or self.ask_dns("status")))
        assert self.dns.poll() is None, log.read_text()

    def ask_dns(self, command: str) -> Any:
        """Its answer; None if it does not run."""
        try:
            return ask("dns", {"command": command}, run=self.folder / "run")
        except (ConnectionError, FileNotFoundError):
            return None

    def stop_dns(self, number: int = signal.SIGTERM) -> None:
        if self.dns is not None:
            self.dns.send_signal(number)
            self.dns.wait(timeout=PATIENCE_S)
            self.dns = None

    def _answers(self) -> bool:
        try:
            return bool(self.ask("status"))
        except (ConnectionError, FileNotFoundError, TimeoutError, RuntimeError):  # it reads much, or the disk is slow
            return False

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.agent is not None:
            self.agent.send_signal(number)
            self.agent.wait(timeout=PATIENCE_S)
            self.agent = None

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def ask(self, command: str, **more: Any) -> Any:
        return ask("agent", {"command": command, **more}, run=self.folder / "run", timeout_s=30)

    # objects and pods ------------------------------------------------------------------------------------------------

    def put(self, name: str, *objects: dict[str, Any] | str) -> None:
        """A manifest file, in one step."""
        texts = [item if isinstance(item, str) else yaml.safe_dump(item) for item in objects]
        path = self.folder / "manifests" / f".{name}"
        path.write_text("\n---\n".join(texts))
        path.rename(self.folder / "manifests" / f"{name}.yaml")

    def pod_object(self, name: str, labels: dict[str, str], address: str = "", **metadata: Any) -> None:
        namespace, _, short = name.rpartition("/")
        metadata |= {"name": short, "namespace": namespace, "labels": labels}
        self.put(
            f"pod-{namespace}-{short}",
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": "n1"}}
            | ({"status": {"phase": "Running", "podIP": address}} if address else {}),
        )

    def sandbox(self, name: str) -> Pod:
        if name not in self.pods:
            self.pods[name] = Pod(self, name)
        return self.pods[name]

    def add(self, name: str, labels: dict[str, str] | None = None) -> Pod:
        """The Pod's object and its sandbox, wired by ADD."""
        self.pod_object(name, labels or {})
        pod = self.sandbox(name)
        pod.result = self.cni("ADD", pod)
        return pod

    def runtime_adds(self, pod: Pod) -> dict[str, Any]:
        """ADD as a container runtime does it: by the first plugin of the configuration that is first by name."""
        listed = (path for path in (self.folder / "net.d").iterdir() if path.suffix in (".conf", ".conflist", ".json"))
        plugin, config = request(min(listed).read_text())
        return self.cni("ADD", pod, config, plugin)

    def cni(
        self, command: str, pod: Pod, config: str | None = None, plugin: str = "netstack", **environment: str
    ) -> dict[str, Any]:
        """The plugin's answer; CniFailure with what it printed. One that is not ours is a program in `bin`."""
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.container,
            "CNI_NETNS": f"/run/netns/{pod.netns}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name}",
        } | environment
        if config is None:
            config = json.dumps({"cniVersion": "1.0.0", "name": "netstack", "type": "netstack"})
        words = [
            "env",
            *(f"{name}={value}" for name, value in variables.items()),
            *(
                self.python("-m", "netstack.agent.plugin")
                if plugin == "netstack"
                else [str(self.folder / "bin" / plugin)]
            ),
        ]
        done = self.run(*words, input=config)
        if done.returncode:
            assert done.stdout, done.stderr
            raise CniFailure(json.loads(done.stdout))
        return json.loads(done.stdout) if done.stdout.strip() else {}

    # traffic ---------------------------------------------------------------------------------------------------------

    def serve(self, where: Pod | str, port: int, word: str = "hello", address: str = "0.0.0.0") -> None:
        """A TCP server in a pod (or the namespace `where`) that says `word` and the client's address."""
        netns = where.netns if isinstance(where, Pod) else where
        child = subprocess.Popen(
            self._command([sys.executable, "-c", SERVE, address, str(port), word], netns),
            stdout=subprocess.PIPE,
        )
        self._children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"listening\n"

    def connect(self, where: Pod | str, address: str, port: int, timeout_s: float = 2.0, *, hooked: bool = True) -> str:
        """What the server said; "" if there was no connection. Not `hooked`: from outside the cgroup, so that no
        program sees the socket and only the packets are translated.
        """
        netns = where.netns if isinstance(where, Pod) else where
        words = [sys.executable, "-c", CONNECT, address, str(port), str(timeout_s)]
        if hooked:
            return self.run(*words, netns=netns).stdout
        enter = ["nsenter", f"--net=/run/netns/{netns}"]
        return subprocess.run([*enter, *words], capture_output=True, text=True, check=False).stdout

    def counter(self, verdict: int) -> int:
        """Packets that ended in this verdict."""
        counters = str(self.folder / "bpf/netstack/maps/counters")
        script = f"from netstack.kernel.bpf import Map; print(Map.open({counters!r}).sums()[{verdict}])"
        return int(self.run(*self.python("-c", script), check=True).stdout)

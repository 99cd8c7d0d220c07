"""One control plane as processes of this machine: etcd, API server, controller manager and scheduler.

Everything that is known about it lies in its folder: certificates, etcd's data (without fsync; a folder on a tmpfs
suits it), logs, and the process ids. So whoever has the folder can stop, kill, restart or wipe it, not only its maker.
With a `cgroup` its processes live until that is killed (the lab's way); without one they die with their maker, even
if that is killed, because the kernel kills them then (prctl(2), PR_SET_PDEATHSIG).

etcd and the API server talk over a socket file, relative to the folder in which both run, so that no port but the API
server's is taken, and any number of control planes run side by side in namespaces or on ports of their own.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType

import yaml

from lab import cgroups
from lab.objects import CLUSTER_CIDR, SERVICE_CIDR
from lab.shell import TimedOut, alive, wait_until

from .binaries import API_SERVER, CONTROLLERS, ETCD, SCHEDULER, programs
from .certificates import YEAR_S, Authority, new_key, write_private
from .client import ApiError, Client

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "roles/agent/files"  # crds/*.yaml and rbac.yaml of the product

ETCD_SOCKET = "unix://localhost:2379"  # the file "localhost:2379" in the folder
ETCD_PEER_SOCKET = "unix://localhost:2380"
ADMIN = "admin"
ADMINISTRATORS = "system:masters"
ISSUER = "https://kubernetes.default.svc.cluster.local"
SERVICE_ADDRESS = "10.96.0.1"  # of Service default/kubernetes, the first of SERVICE_CIDR
SERVER_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    ISSUER.removeprefix("https://"),
)

# Those that make a cluster's network what it is; none that would make pods, because the lab has no kubelet.
CONTROLLER_LOOPS = (
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "node-ipam-controller",
    "node-lifecycle-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
)

# A process that asked for its parent's death dies with the thread that made it; this one lives as long as we do.
SPAWNER = ThreadPoolExecutor(1)

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 15.0


class ControlPlane:
    """As a context manager it is up inside, and gone after."""

    def __init__(
        self,
        folder: Path,
        *,
        netns: str | None = None,
        address: str = "127.0.0.1",
        port: int = 6443,
        cgroup: str | None = None,
        node_grace_s: int = 40,
        api_server_flags: Sequence[str] = (),
    ) -> None:
        """`netns` is a namespace by name, with `address` in it; `node_grace_s`: how long a node may be silent before
        the node lifecycle controller takes it for lost."""
        self.folder, self.address, self.port = folder, address, port
        self._netns = None if netns is None else Path("/run/netns") / netns
        self._cgroup, self._node_grace_s, self._api_server_flags = cgroup, node_grace_s, api_server_flags
        self._authority = Authority(folder)
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.port}"

    @property
    def ca(self) -> Path:
        """The certificate of the authority that signed the API server's, as a PEM file."""
        return self._authority.certificate

    # Life

    def start(self) -> None:
        """Start what does not run, and return when the API server is ready and the controllers work.

        Raises TimedOut with the end of a program's log, and binaries.Unavailable.
        """
        self._prepare()
        etcd_socket = self.folder / ETCD_SOCKET.removeprefix("unix://")
        if self._pid(ETCD) is None:
            etcd_socket.unlink(missing_ok=True)  # one that was killed left it
        self._start(ETCD, self._etcd())
        self._wait(ETCD, etcd_socket.is_socket, "to listen")
        self._start(API_SERVER, self._api_server())
        self._wait(API_SERVER, self._ready, "to be ready")
        for name in (CONTROLLERS, SCHEDULER):
            self._start(name, self._controller(name))
        client = self.client()
        account = ("ServiceAccount", "default", "default")
        self._wait(CONTROLLERS, lambda: client.get(*account) is not None, "to make the first service account")
        client.close()

    def stop(self) -> None:
        """End everything in order; what does not end in time is killed."""
        for name in (SCHEDULER, CONTROLLERS, API_SERVER, ETCD):
            self._end(name, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to everything."""
        for name in (API_SERVER, SCHEDULER, CONTROLLERS, ETCD):
            self._end(name, signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start; the data stays."""
        self.stop()
        self.start()

    def wipe(self) -> None:
        """Start again with another history: no object of before, resource versions from the beginning. Certificates
        and kubeconfigs stay good."""
        self.kill()
        shutil.rmtree(self.folder / "etcd", ignore_errors=True)
        self.start()

    def __enter__(self) -> ControlPlane:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    def running(self) -> dict[str, int]:
        """Name -> process id of the programs that run."""
        found = ((name, self._pid(name)) for name in (ETCD, API_SERVER, CONTROLLERS, SCHEDULER))
        return {name: pid for name, pid in found if pid is not None}

    # Users

    def client(self, user: str = ADMIN, *, netns: Path | None = None, timeout_s: float = 30.0) -> Client:
        """A client with all rights, or with those of a user that got a kubeconfig; from where the control plane is, or
        from another network namespace."""
        folder = self.user(user)
        return Client(
            self.address,
            self.port,
            ca=self.ca,
            certificate=folder / "client.pem",
            key=folder / "client.key",
            netns=netns or self._netns,
            timeout_s=timeout_s,
        )

    def kubeconfig(self, user: str, groups: Sequence[str] = (), valid_s: int = 3600, *, inline: bool = False) -> Path:
        """A kubeconfig with a new certificate for the user; called again, it replaces that of before (in place, each
        file by rename). inline: the file holds the certificates itself, so that it can be copied to another machine;
        otherwise it names files beside it."""
        folder = self.user(user)
        folder.mkdir(parents=True, exist_ok=True)
        certificate, key = folder / "client.pem", folder / "client.key"
        self._authority.admit(certificate, key, user, groups, valid_s)
        files = {"certificate-authority": self.ca, "client-certificate": certificate, "client-key": key}
        if inline:
            facts = {f"{name}-data": base64.b64encode(path.read_bytes()).decode() for name, path in files.items()}
        else:
            facts = {name: str(path) for name, path in files.items()}
        about_server = {name: value for name, value in facts.items() if name.startswith("certificate-authority")}
        about_user = {name: value for name, value in facts.items() if name not in about_server}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {"server": self.url, **about_server}}],
            "users": [{"name": user, "user": about_user}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
            "current-context": "lab",
        }
        path = folder / "kubeconfig"
        write_private(path, yaml.safe_dump(config, sort_keys=False).encode())
        return path

    def user(self, user: str) -> Path:
        """The folder of a user's kubeconfig, client.pem and client.key."""
        return self.folder / "users" / re.sub(r"[^A-Za-z0-9.-]", "_", user)

    def apply_crds(self) -> None:
        """Apply the custom resource definitions and the RBAC that the product ships, and wait until they are served."""
        client = self.client()
        definitions = [one for path in sorted(SHIPPED.glob("crds/*.yaml")) for one in client.apply(path)]
        for rbac in SHIPPED.glob("rbac.yaml"):
            client.apply(rbac)
        for definition in definitions:
            kind = definition["spec"]["names"]["kind"]
            wait_until(lambda kind=kind: _served(client, kind), f"the API server to serve {kind}")  # type: ignore[misc]
        client.close()

    # The programs

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._authority.create()
        if not (self.folder / "server.pem").exists():
            addresses = sorted({self.address, "127.0.0.1", SERVICE_ADDRESS})
            self._authority.serve(self.folder / "server.pem", self.folder / "server.key", SERVER_NAMES, addresses)
            new_key(self.folder / "accounts.key")
        for name in (ADMIN, CONTROLLERS, SCHEDULER):
            if not self.user(name).exists():
                self.kubeconfig(name, [ADMINISTRATORS], YEAR_S)

    def _etcd(self) -> Iterator[str]:
        yield f"--data-dir={self.folder}/etcd"
        yield "--unsafe-no-fsync"
        yield "--log-level=warn"
        for flag in ("listen-client-urls", "advertise-client-urls"):
            yield f"--{flag}={ETCD_SOCKET}"
        for flag in ("listen-peer-urls", "initial-advertise-peer-urls"):
            yield f"--{flag}={ETCD_PEER_SOCKET}"
        yield f"--initial-cluster=default={ETCD_PEER_SOCKET}"

    def _api_server(self) -> Iterator[str]:
        yield f"--etcd-servers={ETCD_SOCKET}"
        yield f"--bind-address={self.address}"
        yield f"--advertise-address={self.address}"
        yield f"--secure-port={self.port}"
        yield f"--tls-cert-file={self.folder}/server.pem"
        yield f"--tls-private-key-file={self.folder}/server.key"
        yield f"--client-ca-file={self.ca}"
        yield f"--service-account-key-file={self.folder}/accounts.key"
        yield f"--service-account-signing-key-file={self.folder}/accounts.key"
        yield f"--service-account-issuer={ISSUER}"
        yield f"--service-cluster-ip-range={SERVICE_CIDR}"
        if IPv4Address(self.address).is_loopback:  # which no endpoint may be
            yield "--endpoint-reconciler-type=none"
        yield "--authorization-mode=RBAC"
        yield "--allow-privileged=true"
        yield "--profiling=false"
        yield from self._api_server_flags

    def _controller(self, name: str) -> Iterator[str]:
        yield f"--kubeconfig={self.user(name)}/kubeconfig"
        yield "--leader-elect=false"
        yield "--secure-port=0"
        yield "--profiling=false"
        if name != CONTROLLERS:
            return
        yield "--kube-api-qps=200"  # a lab's hundred changes a second are no attack
        yield "--kube-api-burst=400"
        yield f"--controllers={','.join(CONTROLLER_LOOPS)}"
        yield f"--service-account-private-key-file={self.folder}/accounts.key"
        yield f"--root-ca-file={self.ca}"
        yield "--allocate-node-cidrs=true"
        yield f"--cluster-cidr={CLUSTER_CIDR}"
        yield f"--service-cluster-ip-range={SERVICE_CIDR}"
        yield f"--node-monitor-grace-period={self._node_grace_s}s"
        yield f"--node-monitor-period={max(1, self._node_grace_s // 8)}s"

    def _ready(self) -> bool:
        client = self.client()
        try:
            return bool(client.request("GET", "/readyz") == "ok")
        except (ApiError, OSError):
            return False
        finally:
            client.close()

    # Processes

    def _start(self, name: str, flags: Iterator[str]) -> None:
        if self._pid(name) is not None:
            return
        argv = ["env", "-C", str(self.folder), str(programs() / name), *flags]
        log = self._log(name)
        if self._cgroup is not None:
            pid = cgroups.spawn(argv, cgroup=self._cgroup, netns=self._netns, log=log)
        else:
            enter = [] if self._netns is None else ["nsenter", f"--net={self._netns}", "--"]
            dying = ["setpriv", "--pdeathsig", "KILL", *enter, *argv]
            child = SPAWNER.submit(_popen, dying, log).result()
            self._children[name], pid = child, child.pid
        write_private(self.folder / f"{name}.pid", f"{pid} {_started(pid)}".encode())

    def _end(self, name: str, how: signal.Signals) -> None:
        pid = self._pid(name)
        if pid is not None:
            _signal(pid, how)
            try:
                wait_until(lambda: not alive(pid), f"the end of {name}", STOP_TIMEOUT_S)
            except TimedOut:
                _signal(pid, signal.SIGKILL)
                wait_until(lambda: not alive(pid), f"the end of {name}, which was killed")
        child = self._children.pop(name, None)
        if child is not None:
            child.wait()
        (self.folder / f"{name}.pid").unlink(missing_ok=True)

    def _pid(self, name: str) -> int | None:
        """The process id of a program; None if it does not run. A process that took over its number is not it."""
        try:
            pid, started = map(int, (self.folder / f"{name}.pid").read_text().split())
        except FileNotFoundError:
            return None
        return pid if alive(pid) and _started(pid) == started else None

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _wait(self, name: str, condition: Callable[[], bool], what: str) -> None:
        """Raises TimedOut, at once if the program has ended, with the end of its log."""

        def met() -> bool:
            if self._pid(name) is None:
                raise TimedOut(f"{name} ended")
            return condition()

        try:
            wait_until(met, f"{name} {what}", START_TIMEOUT_S, step_s=0.05)
        except TimedOut as error:
            raise TimedOut(f"{error}\n{self._log(name).read_text(errors='replace')[-3000:]}") from None


def _popen(argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)


def _started(pid: int) -> int:
    """When a process began, in clock ticks since the machine's boot (proc(5), stat field 22); 0 if there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _signal(pid: int, number: signal.Signals) -> None:
    """It may have ended by itself meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _served(client: Client, kind: str) -> bool:
    try:
        client.list(kind)
    except (KeyError, ApiError):
        return False
    return True

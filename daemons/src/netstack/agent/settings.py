"""The agent's settings: one YAML file, /etc/netstack/agent.yaml, rendered by the role."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from netstack.agent.identities import RANGES_MATCH
from netstack.agent.policy.host import Kept
from netstack.agent.policy.names import LABELS, OWN_NAMESPACE
from netstack.core.address import Prefix, pack
from netstack.core.ref import Ref
from netstack.core.settings import checked
from netstack.kernel.loader import LoaderSettings
from netstack.source.choice import KUBECONFIG, check


@dataclass(frozen=True, slots=True)
class AgentSettings:
    node: str
    """This node's name, as its Node object and EndpointSlices write it."""

    node_address: str
    """This node's address on the LAN: routes of other nodes lead to it, and pods' traffic to the LAN bears it."""

    pod_cidr: str
    """Range of this node's pods (Node.spec.podCIDR). .1 is never given out, .2 is the ingress endpoint's."""

    cluster_cidr: str = "10.244.0.0/16"
    """Range of all pods of the cluster. Kubernetes' customary default (kubeadm with flannel, k3s alike)."""

    service_cidr: str = "10.96.0.0/12"
    """Range of ClusterIPs (kube-apiserver --service-cluster-ip-range; kubeadm's default)."""

    source: str = "directory"
    """Where the objects come from: `directory` (the folder `manifests`, and statuses to the folder `status`) or
    `kubernetes` (the API server, and statuses to its objects)."""

    kubeconfig: str = KUBECONFIG
    """File with the API server's address and this node's certificate or token. "" = the files of a pod's service
    account. Read again when it, or a file that it names, changes."""

    manifests: Path = Path("/etc/netstack/manifests")
    """Folder of the objects."""

    status: Path = Path("/var/lib/netstack/status")
    """Folder of what would be written to the objects' status."""

    state: Path = Path("/var/lib/netstack/agent")
    """Folder of what must outlive the agent: endpoints, last good policies; and of the DNS proxy's rules."""

    ingress_services: tuple[str, ...] = ("ingress-nginx/ingress-nginx-controller",)
    """Services (namespace/name) whose pods the nodes' ingress endpoints stand for. The first that exists lends them its
    namespace and its selector as labels, so policies that name those pods go on working."""

    dns_services: tuple[str, ...] = ("kube-system/kube-dns",)
    """Services (namespace/name) that are the cluster's DNS: pods with toFQDNs may ask them, through the proxy."""

    dns_caches: tuple[str, ...] = ()
    """Addresses of DNS caches on every node (NodeLocal DNSCache: 169.254.20.10) that pods ask at port 53 in place of
    the cluster's DNS. They are the node's: pods with toFQDNs may ask them for their names, and policies name them as
    the entity host."""

    dns_search: tuple[str, ...] = ()
    """Search domains of pods' resolv.conf, in which `<namespace>` stands for the pod's: <namespace>.svc.cluster.local,
    svc.cluster.local, cluster.local, home.lan. A question for a name that a pod may ask for, followed by one of these,
    is asked too, and what it leads to counts for the name before it: so CoreDNS' autopath works with toFQDNs, and musl
    does not stop at a name that is refused. Whoever answers for such a domain then sees the names asked, and says what
    they open; a name outside them stays refused. Empty, nothing is asked or opened but names as policies write them."""

    policy_cidr_match_mode: tuple[str, ...] = ()
    """What address ranges in policies (ipBlock, toCIDR, toCIDRSet ...) mean beside what is outside the cluster: `pods`,
    `nodes` or both. Neither is Cilium's default, whose option of that name knows `nodes`; Kubernetes leaves it to the
    network. `netstack check` lists what this would open and deny."""

    conflist: Path = Path("/etc/cni/net.d/05-netstack.conflist")
    """Our configuration of the CNI. Others beside it are moved aside: a pod that another plugin wires has no policy."""

    conflist_text: str = ""
    """What it says. Where the file says something else, that is put right; "" = it is not looked at."""

    host_protection: bool = True
    """Whether SSH, the API server and the kubelet stay reachable whatever policies for nodes (nodeSelector) deny. False
    lets a policy lock everybody out of its nodes."""

    host_ssh_ports: tuple[int, ...] = (22,)
    """TCP ports of SSH servers on nodes, for `host_protection`."""

    host_api_port: int = 6443
    """TCP port of API servers, for `host_protection`; kubeadm's default."""

    pod_wait_s: float = 10.0
    """How long ADD waits for the Pod object, seconds. The API server has usually sent it before the runtime asks; a
    kubelet gives up on a sandbox after minutes and tries again anyway."""

    audit_s: float = 5.0
    """Between two looks at the pods' interfaces, seconds: do they carry our programs, are they still there?"""

    datapath: LoaderSettings = field(default_factory=LoaderSettings)
    """What the loader reads; the agent needs its uplink and pins."""

    def __post_init__(self) -> None:
        check(self.source)
        for name in ("pod_cidr", "cluster_cidr", "service_cidr"):
            checked(name, getattr(self, name), partial(Prefix.parse, strict=True))
        checked("node_address", self.node_address, pack)
        if not Prefix.parse(self.cluster_cidr).covers(self.pods):
            raise ValueError(f"pod_cidr {self.pod_cidr} is not inside cluster_cidr {self.cluster_cidr}")
        if self.pods.bits > 125:
            raise ValueError(f"pod_cidr {self.pod_cidr} has no room for pods")
        for name in ("ingress_services", "dns_services"):
            for text in getattr(self, name):
                if len([part for part in text.split("/") if part]) != 2:
                    raise ValueError(f"{name}: {text!r} must be namespace/name")
        for address in self.dns_caches:
            checked("dns_caches", address, pack)
        for domain in self.dns_search:
            if not LABELS.fullmatch(domain.removeprefix(f"{OWN_NAMESPACE}.")):
                raise ValueError(f"dns_search: {domain!r} must be a domain in lower case, without a dot at its end")
        for mode in self.policy_cidr_match_mode:
            if mode not in RANGES_MATCH:
                raise ValueError(f"policy_cidr_match_mode: {mode!r} must be one of {', '.join(RANGES_MATCH)}")
        for port in (*self.host_ssh_ports, self.host_api_port):
            if not 0 < port < 65536:
                raise ValueError(f"host_ssh_ports and host_api_port must be from 1 to 65535, not {port}")
        for name in ("pod_wait_s", "audit_s"):
            if not 0 < getattr(self, name) <= 600:
                raise ValueError(f"{name} must be above 0 and at most 600, not {getattr(self, name)}")

    @property
    def pods(self) -> Prefix:
        return Prefix.parse(self.pod_cidr)

    @property
    def kept(self) -> Kept:
        return Kept(self.host_ssh_ports, self.host_api_port, self.host_protection)

    @property
    def caches(self) -> tuple[bytes, ...]:
        return tuple(map(pack, self.dns_caches))

    def services(self, name: str) -> tuple[Ref, ...]:
        """`ingress_services` or `dns_services` as references."""
        parts = (text.split("/") for text in getattr(self, name))
        return tuple(Ref("Service", namespace, short) for namespace, short in parts)

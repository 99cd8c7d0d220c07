"""The announcer's settings: one YAML file, /etc/netstack/announcer.yaml, rendered by the role.

The three times belong together. A peer may take an address over `takeover_s` after the last beat that it *received*;
the owner falls silent `fence_s` after it *sent* the newest beat that enough peers acknowledged. Receiving is never
before sending, so fence_s < takeover_s excludes two owners with no agreement between clocks; the difference covers
clocks that run at different rates. Precedents: BFD's detection time (RFC 5880, section 6.8.4), Raft's leases.
Failover takes takeover_s less up to one beat, plus a round trip: 300-400 ms by default. keepalived's default is 3-4
s, MetalLB's 5-8 s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from netstack.announcer.beat import NAMES_MAX
from netstack.core.address import pack
from netstack.core.settings import checked
from netstack.source.choice import KUBECONFIG, check


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. Every node of a cluster must have the same values."""

    beat_s: float = 0.1
    """Between two beats. Two in a row may be lost without any effect at the defaults."""

    fence_s: float = 0.35
    """How long an address is answered for on the strength of one acknowledged beat: two lost beats and some delay."""

    takeover_s: float = 0.4
    """Silence of an owner after which others may take its addresses. Above fence_s by more than clocks can drift."""

    alive_s: float = 0.5
    """Silence of a node after which its backends are passed over for new connections. One beat above takeover_s, so
    that a lost beat which delays a takeover does not yet empty a backend list, and still under half a second."""

    def __post_init__(self) -> None:
        if not 0.01 <= self.beat_s <= 1:
            raise ValueError(f"beat_s must be from 0.01 to 1, not {self.beat_s}")
        if self.fence_s < 3.3 * self.beat_s:
            raise ValueError(f"fence_s {self.fence_s} must be at least 3.3 beats of {self.beat_s}")
        if self.takeover_s < self.fence_s * 1.05:
            raise ValueError(f"takeover_s {self.takeover_s} must be above fence_s {self.fence_s} by 5 % or more")
        if self.alive_s < self.fence_s:
            raise ValueError(f"alive_s {self.alive_s} must not be under fence_s {self.fence_s}")

    @property
    def silence_s(self) -> float:
        """A peer silent for longer is not waited for: more than one lost beat, and early enough before the fence that
        an owner which leaned on that peer gathers other evidence in time. Its addresses do not blink."""
        return self.fence_s - 1.2 * self.beat_s

    @property
    def listen_s(self) -> float:
        """Listening after a start before the first claim."""
        return 3 * self.takeover_s


@dataclass(frozen=True, slots=True)
class AnnouncerSettings:
    node: str
    """This node's name, as in Node.metadata.name."""

    node_address: str
    """This node's own address on the LAN: key of its entry in `node_alive`, sender of its questions to the gateway."""

    key_file: Path
    """File with the cluster's secret, at least 16 bytes, the same on every node, readable by root only. Beats that
    are not sealed by it are not heard."""

    peers: dict[str, str] = field(default_factory=dict)
    """Name -> LAN address of every *other* node. The count decides what a majority is, so it lists all nodes, also
    those that are down. Default none: a cluster of one node, which owns everything."""

    interfaces: tuple[str, ...] = ("eth0",)
    """Interfaces that announce. Each is a LAN of its own with its own election: never list two that share one LAN."""

    gateway: str = ""
    """The LAN's router. Its ARP answers are the witness below, and it is told of moved addresses. "" = none."""

    witness: str = "gateway"
    """What a minority of nodes may lean on. "gateway": a node that hears its answers may own addresses as long as no
    node that it hears objects, so one board out of four keeps the addresses up. It assumes that nodes which both
    reach the gateway also hear each other. "none": a strict majority or silence; never two owners, however the LAN
    breaks."""

    timing: Timing = field(default_factory=Timing)

    refresh_s: float = 60.0
    """Between repeated gratuitous announcements of an owned address; 0 = none. Under the 300 s after which switches
    forget a MAC: routers that keep ARP entries for 20 minutes would otherwise send into the void."""

    load_balancer_class: str = ""
    """Services with this spec.loadBalancerClass get addresses; "" = those without a class."""

    ignore_exclude_label: bool = False
    """Announce also from nodes with the label node.kubernetes.io/exclude-from-external-load-balancers, which kubeadm
    gives to control planes; a small cluster may have no others."""

    source: str = "directory"
    """Where the objects come from: `directory` (the folder `manifests`, and statuses to the folder `status`) or
    `kubernetes` (the API server, and statuses to its objects)."""

    kubeconfig: str = KUBECONFIG
    """File with the API server's address and this node's certificate or token. "" = the files of a pod's service
    account. Read again when it, or a file that it names, changes."""

    manifests: Path = Path("/etc/netstack/manifests")
    """Folder of the directory source."""

    status: Path = Path("/var/lib/netstack/status")
    """Folder for status of Services, pools and announcements."""

    state: Path = Path("/var/lib/netstack/announcer")
    """Folder for the last good manifests."""

    bpffs: Path = Path("/sys/fs/bpf/netstack")
    """Where the loader has pinned the maps `vips` and `node_alive`."""

    def __post_init__(self) -> None:
        check(self.source)
        for name, text in (("node_address", self.node_address), ("gateway", self.gateway), *self.peers.items()):
            if text or name != "gateway":
                checked(f"peers.{name}" if name in self.peers else name, text, pack)
        if self.node in self.peers:
            raise ValueError(f"peers: {self.node} is this node itself")
        if self.witness not in ("gateway", "none"):
            raise ValueError(f"witness must be gateway or none, not {self.witness!r}")
        if not self.interfaces:
            raise ValueError("interfaces: at least one must announce")
        if self.refresh_s < 0:
            raise ValueError(f"refresh_s must not be negative: {self.refresh_s}")
        size = sum(len(name.encode()) + 1 for name in (self.node, *self.peers))
        if size > NAMES_MAX:
            raise ValueError(f"peers: the nodes' names are {size} bytes together; a beat has room for {NAMES_MAX}")

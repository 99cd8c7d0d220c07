"""Settings of netstack-dns, /etc/netstack/dns.yaml. Times in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from netstack.core.address import Prefix
from netstack.core.settings import checked
from netstack.dns.message import Rcode


@dataclass(frozen=True, slots=True)
class DnsSettings:
    rules: str = "/var/lib/netstack/agent/dns-rules.json"
    """Which pod may ask what, compiled by the agent."""

    state: str = "/var/lib/netstack/dns"
    """Folder of the proxy's own: the last rules that were whole."""

    maps: str = "/sys/fs/bpf/netstack/maps"
    """Folder of the pinned tables: fqdn, which is written here, and fqdn_use, which the programs write."""

    listen: tuple[str, ...] = ("169.254.1.53",)
    """Addresses of the transparent sockets, port 53 UDP and TCP, when systemd hands none over: the one to which the
    programs give questions, and fd6e:6574::53 where pods have IPv6."""

    min_ttl_s: int = 3600
    """A learned address stays open at least this long, whatever its TTL. CDNs answer with 20 to 300 s, while programs
    keep connecting to an address that they looked up once (JVMs for ever, connection pools for hours): with the
    record's own TTL their new connections would fail for no reason that anybody sees. Cilium honours the TTL (0) by
    default, and that is among its users' most frequent complaints. Below 20 it is 20: until then it is seen whether the
    address is in use."""

    max_ttl_s: int = 86400
    """... and at most this long. Records of days would otherwise keep addresses open that have long changed hands."""

    upstream_timeout_s: float = 5.0
    """How long an answer is waited for. Resolvers give up after 5 s (glibc, musl) and ask again: later answers find
    nobody, and each open question holds a socket."""

    refuse_with: str = "REFUSED"
    """Answer to a name that is not allowed: REFUSED, or NXDOMAIN. musl (Alpine) stops at REFUSED instead of trying the
    next name of the search list; glibc goes on with both."""

    max_in_flight_per_pod: int = 64
    """Questions of one pod that wait for an answer at once; one more gets SERVFAIL. glibc has two a look-up."""

    max_in_flight: int = 1024
    """... of all pods together: each is a socket."""

    max_connections_per_pod: int = 64
    """TCP connections that one pod may hold open; one more is reset. As many as questions may wait, because those of a
    restart come all at once."""

    tcp_idle_timeout_s: float = 10.0
    """A TCP connection without a question is closed after this long (RFC 7766, section 6.2.3: few seconds)."""

    finish_within_s: float = 5.0
    """When told to stop, how long to go on until nobody waits for an answer. Questions are served meanwhile; only then
    do they wait, in the sockets that systemd keeps, for the next daemon. As long as an answer may take."""

    max_addresses_per_answer: int = 256
    """An answer with more addresses is not passed on: the largest honest ones (S3, Akamai) have under 20."""

    max_addresses_per_pod: int = 4096
    """Addresses that one pod may have learned at once, so that one pod cannot fill the table of all."""

    max_addresses_per_name: int = 2048
    """... by one name, so that a name whose addresses rotate takes no room from the pod's other names. Half of a pod's,
    because large services (S3) rotate too, and each address stays open for an hour. Names that match one pattern
    count each for itself."""

    never_open: tuple[str, ...] = (
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "::/96",
        "fe80::/10",
        "ff00::/8",
    )
    """Networks that no name opens: an answer with such an address passes, but the address stays as closed as it was.
    The defaults are the node itself and its neighbours, for every pod; the role adds the cluster's own networks, so
    that whoever owns an allowed name cannot point it inwards (DNS rebinding)."""

    lan: tuple[str, ...] = (
        "10.0.0.0/8",
        "100.64.0.0/10",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "fc00::/7",
        "fec0::/10",
    )
    """Networks that a name opens only if its policy says so (`lan` in the rules). The defaults are all that is nobody's
    on the internet (RFC 6890), the home's LAN among it."""

    gone_after_s: float = 300.0
    """What a pod learned is removed when the rules have not named its endpoint for this long. Nothing can use it in the
    meantime (endpoint ids are never used again); the delay only forgives rules that are incomplete for a moment."""

    def __post_init__(self) -> None:
        if self.refuse_with not in ("REFUSED", "NXDOMAIN"):
            raise ValueError(f"refuse_with is REFUSED or NXDOMAIN, not {self.refuse_with!r}")
        if not 0 <= self.min_ttl_s <= self.max_ttl_s:
            raise ValueError(f"min_ttl_s {self.min_ttl_s} is not between 0 and max_ttl_s {self.max_ttl_s}")
        if self.upstream_timeout_s <= 0:
            raise ValueError(f"upstream_timeout_s must be above 0, not {self.upstream_timeout_s}")
        if self.tcp_idle_timeout_s <= self.upstream_timeout_s:
            raise ValueError(
                f"tcp_idle_timeout_s {self.tcp_idle_timeout_s} must be above upstream_timeout_s"
                f" {self.upstream_timeout_s}: a connection that waits for an answer is not idle"
            )
        for name in ("gone_after_s", "finish_within_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} cannot be negative: {getattr(self, name)}")
        limits = ("max_in_flight_per_pod", "max_in_flight", "max_connections_per_pod", "max_addresses_per_answer",
                  "max_addresses_per_pod", "max_addresses_per_name")  # fmt: skip
        for limit in limits:
            if getattr(self, limit) < 1:
                raise ValueError(f"{limit} must be at least 1, not {getattr(self, limit)}")
        for name in ("never_open", "lan"):
            for network in getattr(self, name):
                checked(name, network, partial(Prefix.parse, strict=True))

    @property
    def refusal(self) -> Rcode:
        return Rcode[self.refuse_with]

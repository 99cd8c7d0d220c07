"""The agent's settings, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest

from netstack.agent.settings import AgentSettings
from netstack.core.errors import BadConfig
from netstack.core.ref import Ref
from netstack.core.settings import parse

GOOD = {"node": "n1", "node_address": "192.168.86.21", "pod_cidr": "10.244.1.0/24"}


def test_three_fields_are_enough() -> None:
    settings = parse(AgentSettings, GOOD)
    assert settings.services("dns_services") == (Ref("Service", "kube-system", "kube-dns"),)
    assert str(settings.pods) == "10.244.1.0/24"
    assert settings.datapath.uplink == "eth0"


def test_search_domains_are_written_as_resolvers_have_them() -> None:
    domains = ["<namespace>.svc.cluster.local", "svc.cluster.local", "lan"]
    assert parse(AgentSettings, GOOD | {"dns_search": domains}).dns_search == tuple(domains)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pod_cidr": "10.244.1.5/24"}, "(file): pod_cidr: 10.244.1.5/24 has host bits set"),
        ({"pod_cidr": "10.9.1.0/24"}, "(file): pod_cidr 10.9.1.0/24 is not inside cluster_cidr 10.244.0.0/16"),
        ({"pod_cidr": "10.244.1.0/30"}, "(file): pod_cidr 10.244.1.0/30 has no room for pods"),
        ({"node_address": "eth0"}, "(file): node_address: 'eth0' does not appear to be an IPv4 or IPv6 address"),
        ({"dns_services": ["kube-dns"]}, "(file): dns_services: 'kube-dns' must be namespace/name"),
        ({"dns_caches": ["localhost"]}, "(file): dns_caches: 'localhost' does not appear to be an IPv4 or IPv6"),
        *(
            ({"dns_search": [domain]}, f"(file): dns_search: {domain!r} must be a domain in lower case, without a dot")
            for domain in ("", ".", "home.lan.", "Home.lan", "*.lan", "<namespace>", "svc.<namespace>.lan")
        ),
        (
            {"policy_cidr_match_mode": ["hosts"]},
            "(file): policy_cidr_match_mode: 'hosts' must be one of pods, nodes",
        ),
        ({"audit_s": 0}, "(file): audit_s must be above 0 and at most 600, not 0.0"),
        ({"node": None}, "node: must be a str, not nothing"),
        ({"podcidr": "x"}, "podcidr: unknown field"),
        ({"datapath": {"sizes": {"sluts": 1}}}, "datapath: sizes: there is no map 'sluts'"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig) as refused:
        parse(AgentSettings, GOOD | change)
    assert str(refused.value).startswith(message)

"""CiliumNetworkPolicy: what it allows, and what is refused with which words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from instruments.cluster import Cluster
from netstack.agent.policy.accept import TRIAL, read_policy
from netstack.agent.policy.entries import Server
from netstack.core.address import Prefix, pack
from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.dns.names import Matcher
from netstack.dns.rules import parse
from netstack.kernel import layout

SEED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: openclaw-egress-fqdn
spec:
  endpointSelector:
    matchLabels:
      app: openclaw
  egress:
    - toFQDNs:
        - matchName: "api.anthropic.com"
        - matchName: "discord.com"
        - matchName: "gateway.discord.gg"
        - matchName: "api.github.com"
        - matchName: "api.search.brave.com"
      toPorts:
        - ports:
            - port: "443"
              protocol: TCP
"""


def policy(spec: str, *, kind: str = "CiliumNetworkPolicy", name: str = "p") -> dict[str, Any]:
    return {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": {"name": name}, "spec": yaml.safe_load(spec)}


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.pod("default/openclaw", {"app": "openclaw"})
    cluster.pod("default/web", {"app": "web"}, ports=[("http", "TCP", 8080)])
    cluster.pod("default/far", {"app": "far"}, node="n2", ports=[("http", "TCP", 8081)])
    cluster.pod("other/web", {"app": "web"}, node="n2")
    cluster.pod("kube-system/dns", {"k8s-app": "kube-dns"}, node="n2", address="10.244.2.53")
    cluster.service("kube-system/kube-dns", ["10.244.2.53/n2"], port=53, target_port=53, clusterIP="10.96.0.10")
    return cluster


def test_the_seed_policy_denies_all_but_its_names_on_443(cluster: Cluster) -> None:
    cluster.put(SEED)
    cluster.compile()
    api = ("api.anthropic.com",)
    assert cluster.verdict("default/openclaw", "160.79.104.10", 443) == "DEFAULT_DENY"
    assert cluster.verdict("default/openclaw", "160.79.104.10", 443, learned=api) == "ALLOWED"
    assert cluster.verdict("default/openclaw", "160.79.104.10", 80, learned=api) == "DEFAULT_DENY"
    assert cluster.verdict("default/openclaw", "160.79.104.10", 443, "UDP", learned=api) == "DEFAULT_DENY"
    assert cluster.verdict("default/openclaw", "default/web", 80) == "DEFAULT_DENY"
    assert cluster.verdict("default/web", "160.79.104.10", 443) == "FREE"
    assert cluster.verdict("default/web", "default/openclaw", 80) == "FREE"


def test_the_seed_policy_may_ask_the_clusters_dns_for_its_names_through_the_proxy(cluster: Cluster) -> None:
    cluster.put(SEED)
    desired = cluster.compile()
    for protocol in ("UDP", "TCP"):
        assert cluster.verdict("default/openclaw", "10.244.2.53", 53, protocol) == "REDIRECTED"
        assert cluster.verdict("default/openclaw", "8.8.8.8", 53, protocol) == "DEFAULT_DENY"
    assert cluster.verdict("default/openclaw", "10.244.2.53", 443) == "DEFAULT_DENY"
    (endpoint,) = desired.policy.dns
    assert sorted(name.text for name in endpoint.names) == [
        "api.anthropic.com",
        "api.github.com",
        "api.search.brave.com",
        "discord.com",
        "gateway.discord.gg",
    ]
    (server,) = endpoint.queries
    assert (server.identity, server.port) == (cluster.identity("10.244.2.53"), 53)
    assert endpoint.queries[server] == set(endpoint.names)


def test_the_programs_know_for_which_pods_the_proxy_asks(cluster: Cluster) -> None:
    cluster.put(SEED)
    cluster.compile()
    found = {layout.Endpoint.unpack(value) for value in cluster.table("endpoints").entries.values()}
    assert {item.id: bool(item.enforce & layout.PROXIED) for item in found} == {1: True, 2: False}
    assert {item.enforce & ~layout.PROXIED for item in found} == {layout.ENFORCE_EGRESS, 0}


def test_dns_rules_file(cluster: Cluster) -> None:
    lan = ["192.168.86.0/24", "2001:db8:86::/64"]
    cluster.place = replace(cluster.place, lan=tuple(map(Prefix.parse, lan)))
    cluster.put(SEED)
    rules = yaml.safe_load(cluster.compile().dns_rules())
    assert (rules["generation"], rules["lan"]) == (1, lan)
    (endpoint,) = rules["endpoints"]
    assert endpoint["endpoint"] == 1
    assert endpoint["addresses"] == ["10.244.1.3"]
    assert endpoint["names"][0].keys() == {"selector", "matchName"}
    (query,) = endpoint["queries"]
    assert (query["to"], query["port"]) == (cluster.identity("10.244.2.53"), 53)
    assert [name.keys() for name in query["names"]] == [{"matchName"}] * 5


def test_the_dns_rules_say_which_names_open_the_same(cluster: Cluster) -> None:
    def rule(port: str, *names: str) -> dict[str, Any]:
        return {"toFQDNs": [{"matchName": name} for name in names], "toPorts": [{"ports": [{"port": port}]}]}

    egress = [rule("443", "a.io", "b.io"), rule("443", "c.io"), rule("80", "b.io")]
    metadata = {"name": "names", "namespace": "default"}
    spec = {"endpointSelector": {}, "egress": egress}
    cluster.put({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec})
    text = cluster.compile().dns_rules()
    told = next(item for item in yaml.safe_load(text)["endpoints"] if len(item["names"]) == 3)
    numbers = {item["matchName"]: item["selector"] for item in told["names"]}
    assert told["alike"] == [sorted((numbers["a.io"], numbers["c.io"]))]
    (read,) = (item for item in parse(text).endpoints.values() if item.id == told["endpoint"])
    assert read.alike == {frozenset((numbers["a.io"], numbers["c.io"]))}


def test_the_dns_rules_say_which_names_only_policies_on_trial_name(cluster: Cluster) -> None:
    for name, names, notes in (("p", ["a.io"], {}), ("t", ["a.io", "b.io"], {TRIAL: "true"})):
        metadata = {"name": name, "namespace": "default", "annotations": notes}
        spec = {"endpointSelector": {}, "egress": [{"toFQDNs": [{"matchName": item} for item in names]}]}
        cluster.put({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec})
    text = cluster.compile().dns_rules()
    told = next(item for item in yaml.safe_load(text)["endpoints"] if len(item["names"]) == 2)
    numbers = {item["matchName"]: item["selector"] for item in told["names"]}
    assert told["tried"] == [numbers["b.io"]]
    (read,) = (item for item in parse(text).endpoints.values() if item.id == told["endpoint"])
    assert read.tried == {numbers["b.io"]}


def test_the_dns_rules_say_where_only_policies_on_trial_bring_questions_to_the_proxy(cluster: Cluster) -> None:
    """Everything passes there; where an enforced policy asks for the proxy too, it does not."""
    servers = [cluster.pod(f"kube-system/{name}", {"k8s-app": name}) for name in ("one-dns", "other-dns")]

    def to(name: str, **rules: Any) -> dict[str, Any]:
        labels = {"k8s-app": name, "io.kubernetes.pod.namespace": "kube-system"}
        return {"toEndpoints": [{"matchLabels": labels}], "toPorts": [{"ports": [{"port": "53"}], **rules}]}

    def trials(*policies: tuple[str, dict[str, str], list[Any]]) -> list[Matcher | None]:
        for name, notes, egress in policies:
            metadata = {"name": name, "namespace": "default", "annotations": notes}
            spec = {"endpointSelector": {}, "egress": egress}
            kind = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy"}
            cluster.put({**kind, "metadata": metadata, "spec": spec})
        read = next(item for item in parse(cluster.compile().dns_rules()).endpoints.values() if item.passes)
        return [read.trial(cluster.identity(server), 53) for server in servers]

    named = {"rules": {"dns": [{"matchName": "b.io"}]}}
    for matcher in trials(("t", {TRIAL: "true"}, [to("one-dns", **named), to("other-dns", **named)])):
        assert matcher is not None and matcher((b"b", b"io")) and not matcher((b"a", b"io"))
    of_enforced, of_trial = trials(("p", {}, [to("one-dns", **named), to("other-dns")]))
    assert of_enforced is None and of_trial is not None


def test_the_dns_rules_name_the_search_domains_of_each_pod(cluster: Cluster) -> None:
    cluster.place = replace(cluster.place, dns_search=("<namespace>.svc.cluster.local", "home.lan"))
    cluster.pod("openclaw/second", {"app": "openclaw"})
    cluster.put(SEED, SEED.replace("-fqdn", "-fqdn\n  namespace: openclaw"))
    first, second = yaml.safe_load(cluster.compile().dns_rules())["endpoints"]
    assert first["search"] == ["default.svc.cluster.local", "home.lan"]
    assert second["search"] == ["openclaw.svc.cluster.local", "home.lan"]


def test_a_cache_on_the_node_is_the_nodes_and_asked_through_the_proxy(cluster: Cluster) -> None:
    cluster.put(SEED)
    cluster.compile()
    cache = "169.254.20.10"
    assert cluster.verdict("default/openclaw", cache, 53, "UDP") == "DEFAULT_DENY"
    cluster.place = replace(cluster.place, dns_caches=(pack(cache),))
    (endpoint,) = cluster.compile().policy.dns
    for protocol in ("UDP", "TCP"):
        assert cluster.verdict("default/openclaw", cache, 53, protocol) == "REDIRECTED"
        assert cluster.verdict("default/openclaw", cache, 8080, protocol) == "DEFAULT_DENY"
    assert cluster.identity(cache) == layout.IDENTITY_HOST
    asked = endpoint.queries[Server(layout.IDENTITY_HOST, 53)]
    assert asked == endpoint.queries[Server(cluster.identity("10.244.2.53"), 53)] == set(endpoint.names)


def test_dns_servers_outside_the_cluster_have_an_identity_of_their_own(cluster: Cluster) -> None:
    cluster.service("kube-system/kube-dns", ["192.168.86.1/none"], port=53, target_port=53, clusterIP="10.96.0.10")
    cluster.put(SEED)
    cluster.compile()
    assert cluster.verdict("default/openclaw", "192.168.86.1", 53, "UDP") == "REDIRECTED"
    assert cluster.verdict("default/openclaw", "192.168.86.2", 53, "UDP") == "DEFAULT_DENY"


def test_a_plain_rule_for_dns_keeps_every_question_allowed_but_sends_it_through_the_proxy(cluster: Cluster) -> None:
    allow_dns = {"toEndpoints": [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "kube-system"}}]}
    seed = yaml.safe_load(SEED)
    seed["spec"]["egress"].append(allow_dns)
    cluster.put(seed)
    cluster.compile()
    assert cluster.verdict("default/openclaw", "10.244.2.53", 53, "UDP") == "REDIRECTED"
    assert cluster.may_ask("default/openclaw", "10.244.2.53") == {"*"}


KUBE_SYSTEM = "toEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: kube-system}}]"
DNS_RULE = f"""
{KUBE_SYSTEM}
toPorts: [{{ports: [{{port: "53", protocol: ANY}}], rules: {{dns: [{{matchPattern: "*.lan"}}, {{matchName: x.io}}]}}}}]
"""


def openclaw(*egress: str) -> dict[str, Any]:
    return policy("{endpointSelector: {matchLabels: {app: openclaw}}, egress: []}") | {
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "openclaw"}},
            "egress": [yaml.safe_load(item) for item in egress],
        }
    }


def test_rules_dns_lets_its_names_be_asked_of_its_servers_and_nothing_else(cluster: Cluster) -> None:
    cluster.put(openclaw(DNS_RULE))
    cluster.compile()
    for protocol in ("UDP", "TCP"):
        assert cluster.verdict("default/openclaw", "10.244.2.53", 53, protocol) == "REDIRECTED"
    assert cluster.verdict("default/openclaw", "10.244.2.53", 54, "UDP") == "DEFAULT_DENY"
    assert cluster.verdict("default/openclaw", "8.8.8.8", 53, "UDP") == "DEFAULT_DENY"
    assert cluster.may_ask("default/openclaw", "10.244.2.53") == {"*.lan", "x.io"}
    assert cluster.may_ask("default/openclaw", "8.8.8.8") == set()


def test_with_rules_dns_the_names_of_tofqdns_are_learned_but_not_allowed_to_be_asked(cluster: Cluster) -> None:
    cluster.put(openclaw(DNS_RULE, "toFQDNs: [{matchName: api.anthropic.com}]"))
    (endpoint,) = cluster.compile().policy.dns
    assert [name.text for name in endpoint.names] == ["api.anthropic.com"]
    assert cluster.may_ask("default/openclaw", "10.244.2.53") == {"*.lan", "x.io"}


def test_names_of_one_server_may_not_be_asked_of_another(cluster: Cluster) -> None:
    second = DNS_RULE.replace(
        "toEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: kube-system}}]", "toCIDR: [9.9.9.9/32]"
    )
    cluster.put(openclaw(DNS_RULE, second.replace("*.lan", "*.world")))
    cluster.compile()
    assert cluster.may_ask("default/openclaw", "10.244.2.53") == {"*.lan", "x.io"}
    assert cluster.may_ask("default/openclaw", "9.9.9.9") == {"*.world", "x.io"}


def test_a_plain_rule_beside_rules_dns_allows_every_name_at_its_own_servers(cluster: Cluster) -> None:
    plain = '{toCIDR: [9.9.9.9/32], toPorts: [{ports: [{port: "53", protocol: UDP}]}]}'
    anyone = DNS_RULE.replace(KUBE_SYSTEM, "")
    cluster.put(openclaw(anyone, plain))
    cluster.compile()
    assert cluster.may_ask("default/openclaw", "9.9.9.9") == {"*", "*.lan", "x.io"}
    assert cluster.may_ask("default/openclaw", "8.8.8.8") == {"*.lan", "x.io"}
    assert cluster.verdict("default/openclaw", "9.9.9.9", 53, "UDP") == "REDIRECTED"


def test_every_server_that_a_pod_with_names_may_ask_is_reached_through_the_proxy(cluster: Cluster) -> None:
    cluster.put(openclaw("{toFQDNs: [{matchName: x.io}]}", "{toCIDR: [9.9.9.0/24]}"))
    cluster.compile()
    assert cluster.verdict("default/openclaw", "9.9.9.9", 53, "UDP") == "REDIRECTED"
    assert cluster.verdict("default/openclaw", "9.9.9.9", 54, "UDP") == "ALLOWED"
    assert cluster.may_ask("default/openclaw", "9.9.9.9") == {"*"}
    assert cluster.may_ask("default/openclaw", "10.244.2.53") == {"x.io"}


def test_without_default_deny_every_question_is_allowed_and_still_teaches(cluster: Cluster) -> None:
    relaxed = openclaw("toFQDNs: [{matchName: x.io}]", DNS_RULE)
    relaxed["spec"]["enableDefaultDeny"] = {"egress": False}
    cluster.put(relaxed)
    cluster.compile()
    for server in ("9.9.9.9", "10.244.2.53"):
        assert cluster.verdict("default/openclaw", server, 53, "UDP") == "REDIRECTED"
        assert "*" in cluster.may_ask("default/openclaw", server)
    assert cluster.verdict("default/openclaw", "9.9.9.9", 443) == "FREE"


def test_a_deny_of_dns_stands_above_rules_dns(cluster: Cluster) -> None:
    denying = openclaw(DNS_RULE)
    denying["spec"]["egressDeny"] = [{"toEntities": ["cluster"], "toPorts": [{"ports": [{"port": "53"}]}]}]
    cluster.put(denying)
    cluster.compile()
    assert cluster.verdict("default/openclaw", "10.244.2.53", 53, "UDP") == "POLICY_DENIED"


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (
            'ports: [{port: "53", protocol: SCTP}], rules: {dns: [{matchName: x}]}',
            "ports: with rules.dns each must",
        ),
        (
            'ports: [{port: "53", endPort: 54}], rules: {dns: [{matchName: x}]}',
            "ports: with rules.dns each must",
        ),
        ('ports: [{port: "0"}], rules: {dns: [{matchName: x}]}', "ports: with rules.dns each must be one port"),
        ('ports: [{port: "80"}], rules: {http: [{}]}', "rules.http: is not supported"),
        ('ports: [{port: "53"}], rules: {dns: []}', "rules.dns: must not be empty"),
        (
            'ports: [{port: "53"}], rules: {dns: [{matchName: "a b"}]}',
            "rules.dns[0].matchName: 'a b' is not a DNS",
        ),
    ],
)
def test_rules_that_cannot_be_enforced_refuse_the_whole_policy(cluster: Cluster, group: str, message: str) -> None:
    cluster.put(openclaw(f"toPorts: [{{{group}}}]"))
    (refusal,) = cluster.compile().accepted.refused.values()
    assert f"egress[0].toPorts[0].{message}" in str(refusal)
    assert cluster.verdict("default/openclaw", "8.8.8.8", 443) == "DEFAULT_DENY"


@pytest.mark.parametrize(
    ("spec", "allowed", "denied"),
    [
        (  # an endpoint selector means the policy's own namespace
            "{endpointSelector: {}, egress: [{toEndpoints: [{matchLabels: {app: web}}]}]}",
            ["default/web"],
            ["other/web", "8.8.8.8", "192.168.86.22", "default/far"],
        ),
        (
            "{endpointSelector: {}, egress: [{toEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: other}}]}]}",
            ["other/web"],
            ["default/web", "kube-system/dns"],
        ),
        (
            "{endpointSelector: {}, egress: [{toEndpoints: [{matchExpressions: [{operator: In, values: [other], "
            "key: 'k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name'}]}]}]}",
            ["other/web"],
            ["default/web", "kube-system/dns"],
        ),
        ("{endpointSelector: {}, egress: [{}]}", [], ["default/web", "8.8.8.8"]),
        ("{endpointSelector: {}, egress: []}", ["default/web", "8.8.8.8"], []),
        ("{endpointSelector: {}, egress: [{toEndpoints: []}]}", [], ["default/web", "8.8.8.8"]),
        ("{endpointSelector: {}, egress: [{toEndpoints: [{}]}]}", ["default/web", "default/far"], ["other/web"]),
        ("{endpointSelector: {}, egress: [{toEntities: [world]}]}", ["8.8.8.8"], ["default/web", "192.168.86.22"]),
        (
            "{endpointSelector: {}, egress: [{toEntities: [cluster]}]}",
            ["default/web", "192.168.86.22", "192.168.86.21", "10.244.2.99"],
            ["8.8.8.8"],
        ),
        ("{endpointSelector: {}, egress: [{toEntities: [host]}]}", ["192.168.86.21"], ["192.168.86.22"]),
        ("{endpointSelector: {}, egress: [{toEntities: [remote-node]}]}", ["192.168.86.22"], ["192.168.86.21"]),
        ("{endpointSelector: {}, egress: [{toEntities: [all]}]}", ["192.168.86.22", "8.8.8.8", "other/web"], []),
        ("{endpointSelector: {}, egress: [{toEntities: [none]}]}", [], ["192.168.86.22", "8.8.8.8", "other/web"]),
        (
            "{endpointSelector: {}, egress: [{toCIDR: [10.0.0.0/8]}]}",
            ["10.1.2.3"],
            ["default/web", "10.244.2.9", "8.8.8.8"],
        ),
        (
            "{endpointSelector: {}, egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}]}",
            ["10.2.0.1"],
            ["10.1.0.1"],
        ),
        ("{endpointSelector: {}, egress: [{toCIDR: [192.168.86.0/24]}]}", ["192.168.86.40"], ["192.168.86.22"]),
        (
            "{endpointSelector: {}, egress: [{toEndpoints: [], toCIDR: [192.168.86.0/24], toFQDNs: []}]}",
            ["192.168.86.40"],
            ["192.168.86.22", "default/web"],
        ),
        ("{endpointSelector: {}, egress: [{toEndpoints: [], toCIDR: []}]}", [], ["8.8.8.8", "default/web"]),
        ("{endpointSelector: {}, egress: [{toCIDR: [0.0.0.0/0]}]}", ["8.8.8.8"], ["default/web", "2001:db8::8"]),
        ("{endpointSelector: {}, egress: [{toCIDR: ['::/0']}]}", ["2001:db8::8"], ["8.8.8.8", "default/web"]),
        ("{endpointSelector: {}, egress: [{toCIDR: ['::/64']}]}", ["::8"], ["8.8.8.8", "2001:db8::8"]),
        ("{endpointSelector: {}, egress: [{toEntities: [world-ipv4]}]}", ["8.8.8.8"], ["2001:db8::8", "default/web"]),
        ("{endpointSelector: {}, egress: [{toEntities: [world-ipv6]}]}", ["2001:db8::8"], ["8.8.8.8", "default/web"]),
        (
            "{endpointSelector: {}, egress: [{toCIDRSet: [{cidr: 0.0.0.0/0, except: [192.168.0.0/16]}]}, "
            "{toCIDR: ['::/0']}]}",
            ["8.8.8.8", "2001:db8::8"],
            ["192.168.86.50"],
        ),
        (
            "{endpointSelector: {}, egress: [{toEntities: [world]}], egressDeny: [{toCIDR: [8.8.0.0/16]}]}",
            ["8.9.0.1"],
            ["8.8.8.8"],
        ),
        (
            "{endpointSelector: {}, egress: [{toEntities: [all], icmps: []}], "
            "egressDeny: [{toCIDR: [8.8.0.0/16], icmps: []}]}",
            ["8.9.0.1"],
            ["8.8.8.8"],
        ),
        (
            "{endpointSelector: {}, egressDeny: [{toEndpoints: [{matchLabels: {app: web}}]}], "
            "enableDefaultDeny: {egress: false}}",
            ["8.8.8.8", "default/far"],
            ["default/web"],
        ),
        (
            "{endpointSelector: {}, egress: [{toEntities: [world], toPorts: [{ports: [{port: '80'}], rules: {}}]}]}",
            ["8.8.8.8"],
            ["default/web"],
        ),
        (
            "{endpointSelector: {matchLabels: {app: nobody}}, egress: [{}]}",
            ["8.8.8.8", "default/far", "default/web"],
            [],
        ),
    ],
)
def test_peers(cluster: Cluster, spec: str, allowed: list[str], denied: list[str]) -> None:
    cluster.put(policy(spec))
    cluster.compile()
    for peer in allowed:
        assert cluster.verdict("default/openclaw", peer, 80) in ("ALLOWED", "FREE"), peer
    for peer in denied:
        assert cluster.verdict("default/openclaw", peer, 80) in ("DEFAULT_DENY", "POLICY_DENIED"), peer


@pytest.mark.parametrize(
    ("ports", "allowed", "denied"),
    [
        ("[{port: '80'}]", [(80, "TCP"), (80, "UDP")], [(81, "TCP"), (80, "ICMP")]),
        ("[{port: '80', protocol: TCP}]", [(80, "TCP")], [(80, "UDP")]),
        ("[{port: '0', protocol: TCP}]", [(1, "TCP"), (65535, "TCP")], [(80, "UDP")]),
        (
            "[{port: '8000', endPort: 8999, protocol: TCP}]",
            [(8000, "TCP"), (8999, "TCP")],
            [(7999, "TCP"), (9000, "TCP")],
        ),
        ("[{port: http, protocol: TCP}]", [(8080, "TCP")], [(80, "TCP"), (8081, "TCP")]),
        ("[{port: http, protocol: UDP}]", [], [(8080, "UDP"), (8080, "TCP")]),
    ],
)
def test_ports(cluster: Cluster, ports: str, allowed: list[tuple[int, str]], denied: list[tuple[int, str]]) -> None:
    cluster.put(
        policy(f"{{endpointSelector: {{matchLabels: {{app: web}}}}, ingress: [{{toPorts: [{{ports: {ports}}}]}}]}}")
    )
    cluster.compile()
    for port, protocol in allowed:
        assert cluster.verdict("default/openclaw", "default/web", port, protocol) == "ALLOWED"
    for port, protocol in denied:
        assert cluster.verdict("default/openclaw", "default/web", port, protocol) == "DEFAULT_DENY"


def test_a_named_port_of_a_peer_is_the_number_that_the_peer_gives_it(cluster: Cluster) -> None:
    cluster.pod("other/named", {"app": "named"}, node="n2", ports=[("http", "TCP", 8080)])
    cluster.put(
        policy("{endpointSelector: {matchLabels: {app: openclaw}}, egress: [{toPorts: [{ports: [{port: http}]}]}]}")
    )
    cluster.compile()
    assert cluster.verdict("default/openclaw", "other/named", 8080) == "ALLOWED"
    assert cluster.verdict("default/openclaw", "default/far", 8081) == "ALLOWED"
    assert cluster.verdict("default/openclaw", "default/far", 8080) == "DEFAULT_DENY"
    assert cluster.verdict("default/openclaw", "8.8.8.8", 8080) == "DEFAULT_DENY"


def test_the_host_reaches_its_own_pods_and_other_nodes_do_not(cluster: Cluster) -> None:
    cluster.put(policy("{endpointSelector: {}, ingress: [{}]}"))
    cluster.compile()
    assert cluster.verdict("192.168.86.21", "default/web", 80) == "ALLOWED"
    assert cluster.verdict("192.168.86.22", "default/web", 80) == "DEFAULT_DENY"


@pytest.mark.parametrize(
    "rule",
    [
        "egress: [{toEntities: [cluster]}], egressDeny: [{toEndpoints: [{matchLabels: {app: vault}}]}]",
        "egress: [{toEntities: [cluster]}, {toRequires: [{matchLabels: {app: web}}]}]",
        "egress: [{toEntities: [all]}], egressDeny: [{toServices: [{k8sService: {serviceName: vault}}]}]",
    ],
)
def test_a_pod_that_is_not_known_yet_is_denied_by_who_denies_pods(cluster: Cluster, rule: str) -> None:
    """Its node has made it, its object is on the way."""
    cluster.put(policy(f"{{endpointSelector: {{matchLabels: {{app: openclaw}}}}, {rule}}}"))
    cluster.service("default/vault", [], selector={"app": "vault"})
    for labels in ({"app": "vault"}, {"app": "web"}):
        cluster.compile()
        assert cluster.one_way("default/openclaw", "egress", "10.244.2.77", 80) == "denied"
        assert cluster.one_way("default/openclaw", "egress", "default/web", 80) == "allowed"
        cluster.pod("default/new", labels, node="n2", address="10.244.2.77")
        cluster.compile()
        verdict = "allowed" if labels == {"app": "web"} else "denied"
        assert cluster.one_way("default/openclaw", "egress", "default/new", 80) == verdict
        cluster.remove("Pod", "default/new")


def test_a_deny_inside_an_allow_and_an_allow_inside_a_deny(cluster: Cluster) -> None:
    cluster.put(
        policy(
            "{endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEntities: [cluster]}], "
            "ingressDeny: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]}"
        ),
        policy(
            "{endpointSelector: {matchLabels: {app: web}}, ingressDeny: [{fromEntities: [remote-node]}], "
            "ingress: [{fromEntities: [remote-node], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]}",
            name="q",
        ),
    )
    cluster.compile()
    assert cluster.verdict("default/openclaw", "default/web", 80) == "POLICY_DENIED"
    assert cluster.verdict("default/openclaw", "default/web", 81) == "ALLOWED"
    assert cluster.verdict("192.168.86.22", "default/web", 80) == "POLICY_DENIED"


def test_a_clusterwide_policy_selects_and_means_pods_of_all_namespaces(cluster: Cluster) -> None:
    spec = "{endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEndpoints: [{}]}]}"
    cluster.put(policy(spec, kind="CiliumClusterwideNetworkPolicy"))
    cluster.compile()
    assert cluster.verdict("other/web", "default/web", 80) == "ALLOWED"
    assert cluster.verdict("8.8.8.8", "default/web", 80) == "DEFAULT_DENY"
    assert cluster.verdict("192.168.86.22", "default/web", 80) == "DEFAULT_DENY"


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: '80'}], rules: {http: [{path: /}]}}]}]}",
         "spec.egress[0].toPorts[0].rules.http: is not supported, so the whole policy is refused"),
        ("{endpointSelector: {}, egress: [{toGroups: [{}]}]}",
         "spec.egress[0].toGroups: is not supported, so the whole policy is refused"),
        ("{endpointSelector: {}, egress: [{toServices: [{k8sService: {}}]}]}",
         "spec.egress[0].toServices[0].k8sService.serviceName: is required"),
        ("{endpointSelector: {}, egress: [{toServices: [{k8sService: {serviceName: '', namespace: a}}]}]}",
         "spec.egress[0].toServices[0].k8sService.serviceName: must not be empty"),
        ("{endpointSelector: {}, egress: [{toCIDRSet: [{cidrGroupRef: ''}]}]}",
         "spec.egress[0].toCIDRSet[0].cidrGroupRef: must not be empty"),
        ("{endpointSelector: {}, egress: [{toServices: [{}]}]}",
         "spec.egress[0].toServices[0].k8sService: exactly one of k8sService and k8sServiceSelector must be given"),
        ("{endpointSelector: {}, egress: [{toServices: [{k8sServiceSelector: {namespace: a}}]}]}",
         "spec.egress[0].toServices[0].k8sServiceSelector.selector: is required"),
        ("{endpointSelector: {}, ingress: [{icmps: [{fields: [{type: 13}]}]}]}",
         "spec.ingress[0].icmps[0].fields[0].type: of IPv4 must be one of EchoReply (0), DestinationUnreachable (3), "
         "EchoRequest (8), TimeExceeded (11), ParameterProblem (12), not 13"),
        ("{endpointSelector: {}, ingressDeny: [{icmps: [{fields: [{type: TimeExceeded}]}]}]}",
         "spec.ingressDeny[0].icmps[0].fields[0].type: 'TimeExceeded' starts no flow: it passes with the flow to which "
         "it belongs, or not at all"),
        ("{endpointSelector: {}, ingress: [{icmps: [{}]}]}",
         "spec.ingress[0].icmps[0].fields: is required and must not be empty"),
        ("{endpointSelector: {}, ingress: [{icmps: [{fields: [{type: 8}]}], toPorts: [{ports: [{port: '80'}]}]}]}",
         "spec.ingress[0].icmps: cannot be combined with toPorts in one rule"),
        ("{endpointSelector: {}, ingress: [{authentication: {mode: required}}]}",
         "spec.ingress[0].authentication.mode: only disabled is supported, so the whole policy is refused"),
        ("{nodeSelector: {}, ingress: [{}]}", "spec.nodeSelector: only a cluster-wide policy can select nodes"),
        ("{ingress: [{}]}", "spec.endpointSelector: is required"),
        ("{endpointSelector: {}, ingress: [{fromEndpoint: [{}]}]}", "spec.ingress[0].fromEndpoint: unknown field"),
        ("{endpointSelector: {}, ingress: [{fromEntities: [moon]}]}",
         "spec.ingress[0].fromEntities[0]: must be one of all, world, world-ipv4, world-ipv6, cluster, host, "
         "remote-node, kube-apiserver, init, ingress, health, unmanaged, none, not 'moon'"),
        ("{endpointSelector: {}, egress: [{toCIDR: [10.0.0.300/8]}]}",
         "spec.egress[0].toCIDR[0]: '10.0.0.300/8' does not appear to be an IPv4 or IPv6 network"),
        ("{endpointSelector: {}, egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]}]}",
         "spec.egress[0].toCIDRSet[0].except[0]: 11.0.0.0/16 is not inside 10.0.0.0/8"),
        ("{endpointSelector: {}, egress: [{toCIDR: [10.0.0.0/8], toEntities: [world]}]}",
         "spec.egress[0].toCIDR: cannot be combined with toEntities in one rule"),
        ("{endpointSelector: {}, egress: [{toFQDNs: [{matchName: 'a b'}]}]}",
         "spec.egress[0].toFQDNs[0].matchName: 'a b' is not a DNS name"),
        ("{endpointSelector: {}, egress: [{toFQDNs: [{matchName: a.b, matchPattern: c}]}]}",
         "spec.egress[0].toFQDNs[0].matchName: exactly one of matchName and matchPattern must be given"),
        ("{endpointSelector: {}, egressDeny: [{toFQDNs: [{matchName: a.b}]}]}",
         "spec.egressDeny[0].toFQDNs: unknown field"),
        ("{endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: '70000'}]}]}]}",
         "spec.ingress[0].toPorts[0].ports[0].port: must be from 1 to 65535, not 70000"),
        ("{endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: '90', endPort: 80}]}]}]}",
         "spec.ingress[0].toPorts[0].ports[0].endPort: 80 is below port 90"),
        ("{endpointSelector: {}, ingress: [{toPorts: [{}]}]}",
         "spec.ingress[0].toPorts[0].ports: is required and must not be empty"),
        ("{endpointSelector: {matchLabels: {io.kubernetes.pod.namespace: x}}, ingress: [{}]}",
         "spec.endpointSelector: cannot select pods outside the policy's namespace default"),
        ("{endpointSelector: {matchLabels: {'k8s:io.cilium.k8s.policy.cluster': home}}, ingress: [{}]}",
         "spec.endpointSelector.io.cilium.k8s.policy.cluster: must mean 'default', the cluster of all pods here"),
        ("{endpointSelector: {matchLabels: {'reserved:host': ''}}, ingress: [{}]}",
         "spec.endpointSelector.matchLabels: label source of 'reserved:host' is not supported; "
         "entities have fields of their own"),
    ],
)  # fmt: skip
def test_what_is_not_enforced_is_refused_with_its_field(spec: str, error: str) -> None:
    with pytest.raises(BadObject) as refused:
        read_policy(Ref("CiliumNetworkPolicy", "default", "p"), (yaml.safe_load(spec),))
    assert str(refused.value) == f"CiliumNetworkPolicy default/p: {error}"


def test_pods_with_the_same_labels_but_other_ports_of_a_name_are_told_apart(cluster: Cluster) -> None:
    cluster.pod("other/one", {"app": "same"}, node="n2", ports=[("http", "TCP", 80)])
    cluster.pod("other/two", {"app": "same"}, node="n2", ports=[("http", "TCP", 8080)])
    spec = "{endpointSelector: {matchLabels: {app: openclaw}}, egress: [{toPorts: [{ports: [{port: http}]}]}]}"
    cluster.put(policy(spec))
    cluster.compile()
    assert cluster.verdict("default/openclaw", "other/one", 80) == "ALLOWED"
    assert cluster.verdict("default/openclaw", "other/two", 8080) == "ALLOWED"
    assert cluster.verdict("default/openclaw", "other/one", 8080) == "DEFAULT_DENY"


def test_rules_dns_and_tofqdns_do_not_go_together(cluster: Cluster) -> None:
    names = "toFQDNs: [{matchName: x}]"
    cluster.put(openclaw(DNS_RULE.replace(KUBE_SYSTEM, names)))
    (refusal,) = cluster.compile().accepted.refused.values()
    assert "egress[0].toPorts[0].rules: cannot be combined with toFQDNs in one rule" in str(refusal)


ECHO = 8


@pytest.mark.parametrize("kind", ["8", "'8'", "EchoRequest"])
def test_icmps_allow_echo_requests_of_their_family_alone(cluster: Cluster, kind: str) -> None:
    cluster.put(openclaw(f"{{toEntities: [world], icmps: [{{fields: [{{type: {kind}}}]}}]}}"))
    cluster.compile()
    assert cluster.verdict("default/openclaw", "8.8.8.8", ECHO, "ICMP") == "ALLOWED"
    assert cluster.verdict("default/openclaw", "8.8.8.8", ECHO, "TCP") == "DEFAULT_DENY"
    assert cluster.verdict("default/openclaw", "2001:db8::1", 128, "ICMPv6") == "DEFAULT_DENY"
    assert cluster.verdict("default/openclaw", "default/web", ECHO, "ICMP") == "DEFAULT_DENY"


def test_icmps_of_ipv6_and_a_deny(cluster: Cluster) -> None:
    rule = openclaw("{toEntities: [world]}")
    fields = [{"family": "IPv6", "type": "EchoRequest"}]
    rule["spec"]["egressDeny"] = [{"toEntities": ["all"], "icmps": [{"fields": fields}]}]
    cluster.put(rule)
    cluster.compile()
    assert cluster.verdict("default/openclaw", "2001:db8::1", 128, "ICMPv6") == "POLICY_DENIED"
    assert cluster.verdict("default/openclaw", "2001:db8::1", 80) == "ALLOWED"


def test_icmp_messages_that_belong_to_a_flow_need_no_rule_and_open_nothing(cluster: Cluster) -> None:
    cluster.put(openclaw("{toEntities: [world], icmps: [{fields: [{type: 3}, {type: TimeExceeded}]}]}"))
    desired = cluster.compile()
    assert desired.accepted.refused == {}
    for protocol, port in (("ICMP", ECHO), ("ICMP", 3), ("TCP", 80)):
        assert cluster.verdict("default/openclaw", "8.8.8.8", port, protocol) == "DEFAULT_DENY"


def test_requires_takes_from_what_other_rules_allow_and_gives_nothing(cluster: Cluster) -> None:
    cluster.pod("default/team", {"app": "web", "team": "a"})
    rule = openclaw("{toRequires: [{matchLabels: {team: a}}]}", "{toEndpoints: [{matchLabels: {app: web}}]}")
    cluster.put(rule)
    cluster.compile()
    assert cluster.one_way("default/openclaw", "egress", "default/team", 80) == "allowed"
    assert cluster.verdict("default/openclaw", "default/web", 80) == "POLICY_DENIED"
    cluster.put(openclaw("{toRequires: [{matchLabels: {team: a}}]}"))
    cluster.compile()
    assert cluster.verdict("default/openclaw", "default/team", 80) == "DEFAULT_DENY"

"""Law 4: a policy that cannot be used denies, it never opens."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from instruments.cluster import Cluster
from instruments.depth import examples
from netstack.agent.desired import Before
from netstack.core.ref import Ref
from netstack.kernel.layout import DIRECTION_EGRESS, PolicyKey

GOOD = "{endpointSelector: {matchLabels: {app: a}}, egress: [{toEntities: [world]}]}"


def policy(spec: Any, *, kind: str = "CiliumNetworkPolicy", **more: Any) -> dict[str, Any]:
    group = "networking.k8s.io/v1" if kind == "NetworkPolicy" else "cilium.io/v2"
    head = {"apiVersion": group, "kind": kind, "metadata": {"name": "p", "namespace": "one"}}
    return head | ({"spec": yaml.safe_load(spec)} if isinstance(spec, str) else {}) | more


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.pod("one/a", {"app": "a"})
    cluster.pod("one/b", {"app": "b"})
    cluster.pod("two/a", {"app": "a"})
    return cluster


def directions(cluster: Cluster, pod: str) -> set[str]:
    """The directions in which a pod denies the world."""
    cluster.compile()
    return {way for way in ("ingress", "egress") if cluster.one_way(pod, way, "8.8.8.8", 80) == "denied"}


def test_the_last_good_version_stays_in_force(cluster: Cluster) -> None:
    cluster.put(policy(GOOD))
    assert directions(cluster, "one/a") == set()
    assert cluster.one_way("one/a", "egress", "two/a", 80) == "denied"
    cluster.put(policy("{endpointSelector: {}, egress: [{toGroups: []}], ingress: [{}]}"))
    assert directions(cluster, "one/a") == set(), "the good version, not the broken one"
    assert cluster.one_way("one/a", "egress", "two/a", 80) == "denied"
    assert cluster.desired is not None
    (refusal,) = cluster.desired.accepted.refused.values()
    assert refusal.kept
    assert str(refusal).endswith("; its last good version stays in force")
    cluster.put(policy(GOOD))
    assert not cluster.compile().accepted.refused


def test_a_version_that_was_good_for_another_release_stands_in_for_nothing(cluster: Cluster) -> None:
    """Nor does it stop the agent in front of all other policies."""
    wrong = policy("{endpointSelector: {matchLabels: {app: a}}, egress: [{toEverybody: []}]}")
    cluster.put(wrong)
    cluster.put(policy("{podSelector: {matchLabels: {app: b}}}", kind="NetworkPolicy"))
    cluster.before = Before(cluster.before.tables, {Ref("CiliumNetworkPolicy", "one", "p"): (wrong["spec"],)})
    assert directions(cluster, "one/a") == {"egress"}
    assert directions(cluster, "one/b") == {"ingress"}
    assert cluster.desired is not None
    (refusal,) = cluster.desired.accepted.refused.values()
    assert not refusal.kept and list(cluster.desired.accepted.good) == [Ref("NetworkPolicy", "one", "p")]


@pytest.mark.parametrize(
    ("spec", "selected", "denied"),
    [  # the selector and the directions can be read
        ("{endpointSelector: {matchLabels: {app: a}}, egress: [{toNodes: [{}]}]}", {"one/a"}, {"egress"}),
        ("{endpointSelector: {matchLabels: {app: a}}, ingressDeny: [{fromNodes: [{}]}]}", {"one/a"}, {"ingress"}),
        # no direction can be read
        ("{endpointSelector: {matchLabels: {app: a}}, engress: []}", {"one/a"}, {"ingress", "egress"}),
        # the selector cannot be read
        ("{endpointSelector: {matchLabel: {app: a}}, egress: [{}]}", {"one/a", "one/b"}, {"egress"}),
        ("{endpointSelector: [], egress: [{}]}", {"one/a", "one/b"}, {"egress"}),
        ("[]", {"one/a", "one/b"}, {"ingress", "egress"}),
        (None, {"one/a", "one/b"}, {"ingress", "egress"}),
        # it selects nodes, so no pod
        ("{nodeSelector: {}, ingress: [{}]}", set(), {"ingress"}),
    ],
)
def test_without_a_good_version_what_it_selects_denies(
    cluster: Cluster, spec: str | None, selected: set[str], denied: set[str]
) -> None:
    cluster.put(policy(spec))
    for pod in ("one/a", "one/b", "two/a"):
        assert directions(cluster, pod) == (denied if pod in selected else set()), pod


@pytest.mark.parametrize(
    ("spec", "denied"),
    [
        ("{podSelector: {}, ingress: [{form: []}]}", {"ingress"}),
        ("{podSelector: {}, egress: [{form: []}]}", {"ingress", "egress"}),
        ("{podSelector: {}, egress: [{form: []}], policyTypes: [Egress]}", {"egress"}),
        ("{podSelector: {}, policyTypes: [Outward]}", {"ingress"}),
    ],
)
def test_a_broken_network_policy(cluster: Cluster, spec: str, denied: set[str]) -> None:
    cluster.put(policy(spec, kind="NetworkPolicy"))
    assert directions(cluster, "one/b") == denied
    assert directions(cluster, "two/a") == set()


def test_a_broken_clusterwide_policy_denies_all_pods(cluster: Cluster) -> None:
    cluster.put(policy("{ingress: [{}]}", kind="CiliumClusterwideNetworkPolicy"))
    assert directions(cluster, "two/a") == {"ingress"}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("enableDefaultDeny: {egress: 0}, egress: [{}]", "enableDefaultDeny: {egress: false}, egress: [{}]"),
        ("egress: [{toEntities: [all], icmps: [{fields: [{type: 8.0}]}]}]", "egress: [{toEntities: [all]}]"),
        ('egress: [{toEntities: [all], toPorts: [{ports: [{port: "8²"}]}]}]', "egress: [{toEntities: [all]}]"),
    ],
)
def test_what_only_looks_right_is_refused_until_it_is_right(cluster: Cluster, wrong: str, right: str) -> None:
    for spec, denied in ((wrong, {"egress"}), (right, set[str]())):
        cluster.put(policy(f"{{endpointSelector: {{}}, {spec}}}"))
        assert directions(cluster, "one/a") & {"egress"} == denied


def test_several_specs_are_one_policy(cluster: Cluster) -> None:
    ingress = yaml.safe_load("{endpointSelector: {matchLabels: {app: b}}, ingress: [{}]}")
    cluster.put(policy(None, specs=[yaml.safe_load(GOOD), ingress]))
    assert directions(cluster, "one/b") == {"ingress"}
    broken = yaml.safe_load("{endpointSelector: {}, ingress: [{toPort: []}]}")
    cluster.remove("CiliumNetworkPolicy", "one/p")
    cluster.compile()
    cluster.put(policy(None, specs=[yaml.safe_load(GOOD), broken]))
    assert directions(cluster, "one/a") == {"egress", "ingress"}, "refused as a whole: the good half denies too"
    assert cluster.desired is not None
    (refusal,) = cluster.desired.accepted.refused.values()
    assert str(refusal.error) == "CiliumNetworkPolicy one/p: specs[1].ingress[0].toPort: unknown field"


@pytest.mark.parametrize("more", [{"egressDeny": [{"toEntities": ["world"]}]}, {"specs": {"ingress": [{}]}}])
def test_what_stands_beside_the_spec_makes_a_policy_unusable(cluster: Cluster, more: dict[str, Any]) -> None:
    """An indentation is missing. The selector can be read all the same."""
    cluster.put(policy("{endpointSelector: {matchLabels: {app: a}}, egress: [{toEntities: [all]}]}", **more))
    assert directions(cluster, "one/a") == {"egress"}
    assert directions(cluster, "one/b") == set()
    assert cluster.desired is not None
    ((refusal,), (name,)) = cluster.desired.accepted.refused.values(), more
    assert str(refusal.error) == f"CiliumNetworkPolicy one/p: spec.(beside it) {name}: unknown field"


@pytest.mark.parametrize("part", ["annotations", "labels"])
def test_a_policy_whose_head_is_wrong_denies_what_it_selects(cluster: Cluster, part: str) -> None:
    """`audit: true` without quotes, say: the selector can be read all the same."""
    document = policy("{endpointSelector: {matchLabels: {app: a}}, egress: [{toEntities: [all]}]}")
    wrong = document | {"metadata": document["metadata"] | {part: {"netstack.kubelab.io/audit": True}}}
    cluster.put(wrong)
    assert directions(cluster, "one/a") == {"egress"}
    assert directions(cluster, "one/b") == set()
    assert cluster.desired is not None
    (refusal,) = cluster.desired.accepted.refused.values()
    reason = f"metadata.{part}.netstack.kubelab.io/audit: must be a string, not the bool 'True'"
    assert str(refusal.error) == f"CiliumNetworkPolicy one/p: {reason}" and not refusal.kept
    cluster.put(document)
    assert directions(cluster, "one/a") == set()
    cluster.put(wrong)
    assert directions(cluster, "one/a") == set(), "the last good version"


def test_a_policy_that_is_gone_is_forgotten(cluster: Cluster) -> None:
    cluster.put(policy(GOOD))
    cluster.compile()
    cluster.remove("CiliumNetworkPolicy", "one/p")
    assert directions(cluster, "one/a") == set()
    assert cluster.desired is not None and not cluster.desired.accepted.good


WORDS = """
    endpointSelector nodeSelector podSelector matchLabels matchExpressions key operator values ingress egress
    ingressDeny egressDeny enableDefaultDeny policyTypes from to fromEndpoints toEndpoints fromEntities toEntities
    toCIDR toCIDRSet cidr except toFQDNs matchName matchPattern toPorts ports port endPort protocol rules ipBlock
    namespaceSelector description labels
""".split()  # noqa: SIM905
texts = st.sampled_from([*WORDS, "10.0.0.0/8", "TCP", "a.b", "In", "80", ""])
scalars = st.one_of(st.none(), st.booleans(), st.integers(-1, 70000), texts)
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=examples(40), deadline=None)
@given(
    junk,
    st.dictionaries(st.sampled_from(WORDS), junk, max_size=5),
    st.sampled_from(["NetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"]),
)
def test_whatever_a_policy_holds_it_is_taken_or_refused_and_denies(first: Any, spec: Any, kind: str) -> None:
    cluster = Cluster()
    cluster.pod("one/a", {"app": "a"})
    for text in (first, spec, {"endpointSelector": {}, "podSelector": {}} | spec):
        document = policy(None, kind=kind)
        document["spec"] = text
        cluster.put(document)
        accepted = cluster.compile().accepted
        if any(not refusal.kept for refusal in accepted.refused.values()) and "nodeSelector" not in str(text):
            assert accepted.specs
            assert all(spec.subject is not None and spec.default_deny for spec in accepted.specs)


# on trial


TRIAL = {"annotations": {"netstack.kubelab.io/audit": "true"}}


def tried(document: dict[str, Any]) -> dict[str, Any]:
    return document | {"metadata": document["metadata"] | TRIAL}


def test_a_policy_on_trial_denies_nothing_and_says_what_it_would(cluster: Cluster) -> None:
    cluster.put(tried(policy(GOOD)))
    assert directions(cluster, "one/a") == set()
    assert cluster.one_way("one/a", "egress", "two/a", 80) == "allowed"
    assert cluster.would_deny("one/a", "egress", "two/a", 80)
    assert not cluster.would_deny("one/a", "egress", "8.8.8.8", 80)
    assert not cluster.would_deny("one/a", "ingress", "two/a", 80)
    assert not cluster.would_deny("one/b", "egress", "two/a", 80)


def test_a_policy_on_trial_opens_nothing(cluster: Cluster) -> None:
    closed = policy("{endpointSelector: {matchLabels: {app: a}}, egress: [{}], egressDeny: [{toEntities: [world]}]}")
    closed["metadata"]["name"] = "closed"
    cluster.put(closed, tried(policy(GOOD)))
    assert directions(cluster, "one/a") == {"egress"}


def test_a_namespace_puts_its_policies_on_trial_but_not_those_of_the_cluster(cluster: Cluster) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "one"} | TRIAL}
    wide = policy("{endpointSelector: {}, ingress: [{fromEntities: [cluster]}]}", kind="CiliumClusterwideNetworkPolicy")
    wide["metadata"] = {"name": "wide"}
    cluster.put(namespace, policy(GOOD), wide)
    assert directions(cluster, "one/a") == {"ingress"}
    assert cluster.one_way("one/a", "egress", "two/a", 80) == "allowed"
    assert cluster.would_deny("one/a", "egress", "two/a", 80)
    cluster.put(namespace | {"metadata": {"name": "one"}})
    cluster.compile()
    assert cluster.one_way("one/a", "egress", "two/a", 80) == "denied"


@pytest.mark.parametrize("value", ["True", "yes", ""])
def test_only_the_word_true_is_a_trial(cluster: Cluster, value: str) -> None:
    document = policy(GOOD)
    document["metadata"]["annotations"] = {"netstack.kubelab.io/audit": value}
    cluster.put(document)
    cluster.compile()
    assert cluster.one_way("one/a", "egress", "two/a", 80) == "denied"


def test_a_broken_policy_on_trial_without_a_good_version_only_says_that_it_would_deny(cluster: Cluster) -> None:
    cluster.put(tried(policy("{endpointSelector: {}, egress: [{toGroups: []}]}")))
    assert directions(cluster, "one/a") == set()
    assert cluster.would_deny("one/a", "egress", "8.8.8.8", 80)


def test_names_of_a_policy_on_trial_are_learned_and_no_question_is_refused(cluster: Cluster) -> None:
    dns = cluster.pod("kube-system/coredns", {"k8s-app": "kube-dns"})
    cluster.service("kube-system/kube-dns", [dns], port=53, target_port=53)
    by_name = "{endpointSelector: {matchLabels: {app: a}}, egress: [{toFQDNs: [{matchName: api.x.io}]}]}"
    cluster.put(tried(policy(by_name)))
    cluster.compile()
    assert cluster.verdict("one/a", dns, 53, "TCP") == "REDIRECTED"
    assert cluster.may_ask("one/a", dns) == {"*"}
    assert cluster.would_deny("one/a", "egress", "8.8.8.8", 443)
    assert not cluster.would_deny("one/a", "egress", "8.8.8.8", 443, learned=("api.x.io",))


# names of the LAN


def test_names_lead_into_the_lan_only_for_the_rules_of_the_policy_that_says_so(cluster: Cluster) -> None:
    dns = cluster.pod("kube-system/coredns", {"k8s-app": "kube-dns"})
    cluster.service("kube-system/kube-dns", [dns], port=53, target_port=53)
    by_name = "{endpointSelector: {matchLabels: {app: a}}, egress: [{toFQDNs: [{matchName: nas.x.io}], PORTS}]}"
    documents = []
    for name, port, note in (("lan", 80, "true"), ("world", 81, "yes")):
        ports = f"toPorts: [{{ports: [{{port: '{port}'}}]}}]"
        document = policy(by_name.replace("PORTS", ports))
        document["metadata"] |= {"name": name, "annotations": {"netstack.kubelab.io/lan-names": note}}
        documents.append(document)
    cluster.put(*documents)
    (told,) = json.loads(cluster.compile().dns_rules())["endpoints"]
    assert [(entry["matchName"], entry.get("lan")) for entry in told["names"]].count(("nas.x.io", None)) == 1
    assert [(entry["matchName"], entry.get("lan")) for entry in told["names"]].count(("nas.x.io", True)) == 1
    assert told["queries"][0]["names"] == [{"matchName": "nas.x.io"}]
    assert cluster.desired is not None
    (item,) = cluster.desired.policy.dns
    of_lan = {number for name, number in item.names.items() if name.lan}
    ports = {
        key.port
        for key in map(PolicyKey.unpack, cluster.desired.tables["policy"].entries)
        if key.peer in of_lan and key.direction == DIRECTION_EGRESS
    }
    assert ports == {80}


SPECS = (
    GOOD,
    "{endpointSelector: {}, egress: [{toEndpoints: [{matchLabels: {app: b}}]}]}",
    "{endpointSelector: {}, egressDeny: [{toEntities: [world], toPorts: [{ports: [{port: '80'}]}]}], egress: [{}]}",
    "{endpointSelector: {matchLabels: {app: b}}, ingress: [{fromEntities: [cluster]}]}",
    "{endpointSelector: {}, enableDefaultDeny: {egress: false}, egress: [{toEntities: [host]}]}",
)


@settings(max_examples=examples(25))
@given(st.lists(st.tuples(st.sampled_from(SPECS), st.booleans()), max_size=5))
def test_a_trial_says_exactly_what_enforcing_would_do(chosen: list[tuple[str, bool]]) -> None:
    def made(keep: str) -> Cluster:
        cluster = Cluster()
        cluster.pod("one/a", {"app": "a"})
        cluster.pod("one/b", {"app": "b"})
        for index, (spec, trial) in enumerate(chosen):
            document = policy(spec)
            document["metadata"] = {"name": f"p{index}", "namespace": "one"}
            if keep == "enforced" and trial:
                continue
            cluster.put(tried(document) if keep == "trials" and trial else document)
        cluster.compile()
        return cluster

    trials, enforced, everything = made("trials"), made("enforced"), made("all")
    for pod in ("one/a", "one/b"):
        for way in ("ingress", "egress"):
            for peer in ("one/a", "one/b", "8.8.8.8", "192.168.86.22"):
                for port in (80, 443):
                    probe = pod, way, peer, port
                    assert trials.one_way(*probe) == enforced.one_way(*probe)
                    if any(trial for _, trial in chosen) and enforced.one_way(*probe) == "allowed":
                        assert trials.would_deny(*probe) is (everything.one_way(*probe) == "denied")

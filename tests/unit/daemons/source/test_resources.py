import pytest

from instruments.api_objects import pod, policy, secret, service
from netstack.source.models import Pod
from netstack.source.parse import KINDS, parse
from netstack.source.resources import RESOURCES, Want


def test_every_kind_that_is_parsed_has_its_place_in_the_api() -> None:
    assert set(KINDS) <= set(RESOURCES)
    for kind, known in KINDS.items():
        assert RESOURCES[kind].version in known.versions and RESOURCES[kind].namespaced == known.namespaced


def test_paths() -> None:
    assert RESOURCES["Node"].path() == "/api/v1/nodes"
    assert RESOURCES["Service"].path("ns", "a", "status") == "/api/v1/namespaces/ns/services/a/status"
    assert RESOURCES["CiliumNetworkPolicy"].path("ns") == "/apis/cilium.io/v2/namespaces/ns/ciliumnetworkpolicies"
    assert RESOURCES["IPAddressPool"].definition == "ipaddresspools.metallb.io"
    assert Want("Secret", fields="type=kubernetes.io/tls").selectors == {"fieldSelector": "type=kubernetes.io/tls"}


@pytest.mark.parametrize("raw", [pod("web-1"), service("a"), policy("p"), secret("s")])
def test_what_is_kept_parses_to_the_same_model(raw: dict) -> None:  # type: ignore[type-arg]
    kept = RESOURCES[raw["kind"]].trim(raw)
    assert parse(kept) == parse({**raw, "metadata": {**raw["metadata"], "annotations": {}}})
    assert RESOURCES[raw["kind"]].trim(kept) == kept


def test_a_pod_keeps_what_decides_and_nothing_else() -> None:
    raw = pod("web-1")
    raw["spec"]["containers"][0]["image"] = "registry.example/other:2"
    raw["status"]["conditions"] = []
    raw["metadata"]["annotations"] = {"example.com/other": "1", "kubernetes.io/config.hash": "h1"}
    raw["metadata"]["uid"] = "u1"
    kept = RESOURCES["Pod"].trim(raw)
    assert kept["metadata"].pop("annotations") == {"kubernetes.io/config.hash": "h1"}, "who a static pod is"
    assert kept["metadata"].pop("uid") == "u1"
    plain = RESOURCES["Pod"].trim(pod("web-1"))
    plain["metadata"].pop("uid", None)
    assert kept == plain and "managedFields" not in kept["metadata"]
    model = parse(kept)
    assert isinstance(model, Pod) and model.ports == (("http", "TCP", 8080),)


def test_a_nodes_heartbeat_changes_nothing() -> None:
    def node(beat: str) -> dict[str, object]:
        return {
            "metadata": {"name": "n1", "labels": {"zone": "a"}, "annotations": {"x": beat}},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"], "taints": []},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "n1"}],
                "conditions": [
                    {"type": "Ready", "status": "True", "lastHeartbeatTime": beat},
                    {"type": "NetworkUnavailable", "status": "False", "lastHeartbeatTime": beat},
                ],
                "images": [{"names": [beat]}],
            },
        }

    assert RESOURCES["Node"].trim(node("1")) == RESOURCES["Node"].trim(node("2"))


def test_fields_that_a_newer_api_server_has_are_dropped_but_a_users_policy_is_judged_whole() -> None:
    raw = service("a", newField="x", trafficDistribution="PreferClose")
    assert parse(RESOURCES["Service"].trim(raw)) == parse(service("a"))
    odd = policy("p")
    odd["spec"]["newField"] = 1
    assert RESOURCES["CiliumNetworkPolicy"].trim(odd)["spec"] == odd["spec"]


def test_only_annotations_that_somebody_reads_stay() -> None:
    raw = service("a")
    raw["metadata"]["annotations"] = {
        "metallb.io/loadBalancerIPs": "10.0.0.5",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
        "other": "x",
    }
    assert RESOURCES["Service"].trim(raw)["metadata"]["annotations"] == {"metallb.io/loadBalancerIPs": "10.0.0.5"}
    ingress = {"metadata": {"name": "i", "annotations": {**raw["metadata"]["annotations"], "nginx/a": "b"}}, "spec": {}}
    assert (
        "kubectl.kubernetes.io/last-applied-configuration"
        not in RESOURCES["Ingress"].trim(ingress)["metadata"]["annotations"]
    )

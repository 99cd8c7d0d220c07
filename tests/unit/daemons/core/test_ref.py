from netstack.core.ref import Ref, RuleRef


def test_names_read_as_kubectl_writes_them() -> None:
    assert str(Ref("Service", "default", "web")) == "Service default/web"
    assert str(Ref("Node", "", "n1")) == "Node n1"
    assert str(RuleRef(Ref("NetworkPolicy", "a", "b"), "spec.egress[0]")) == "NetworkPolicy a/b: spec.egress[0]"

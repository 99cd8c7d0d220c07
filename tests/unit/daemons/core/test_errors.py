from netstack.core.errors import BadConfig, BadObject
from netstack.core.ref import Ref


def test_an_error_names_object_field_and_reason() -> None:
    error = BadObject(Ref("Service", "default", "web"), "spec.ports[0].port", "is required")
    assert str(error) == "Service default/web: spec.ports[0].port: is required"
    assert str(BadConfig("uplink", "is required")) == "uplink: is required"


def test_the_same_complaint_is_equal() -> None:
    ref = Ref("Service", "default", "web")
    assert BadObject(ref, "a", "b") == BadObject(ref, "a", "b") != BadObject(ref, "a", "c")
    assert len({BadObject(ref, "a", "b"), BadObject(ref, "a", "b")}) == 1

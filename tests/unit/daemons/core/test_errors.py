from netstack.core.errors import BadConfig, BadObject
from netstack.core.ref import Ref


def test_an_error_names_object_field_and_reason() -> None:
    error = BadObject(Ref("Service", "default", "web"), "spec.ports[0].port", "is required")
    assert str(error) == "Service default/web: spec.ports[0].port: is required"
    assert str(BadConfig("uplink", "is required")) == "uplink: is required"


def test_what_an_author_wrote_at_length_is_not_said_at_length() -> None:
    error = BadObject(Ref("Service", "default", "web"), "spec." + "x" * 10**6, f"not {'y' * 10**6}; so it is denied")
    assert len(str(error)) < 2000 and len(error.field) < 1000
    assert error.reason.startswith("not yyy") and error.reason.endswith("yyy; so it is denied")
    assert BadObject(error.ref, error.field, error.reason) == error, "what was shortened stays as it is"


def test_the_same_complaint_is_equal() -> None:
    ref = Ref("Service", "default", "web")
    assert BadObject(ref, "a", "b") == BadObject(ref, "a", "b") != BadObject(ref, "a", "c")
    assert len({BadObject(ref, "a", "b"), BadObject(ref, "a", "b")}) == 1

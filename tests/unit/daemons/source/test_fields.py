import pytest

from netstack.core.address import pack
from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.source.fields import Fields

REF = Ref("Service", "default", "web")


@pytest.mark.parametrize(
    ("data", "read", "message"),
    [
        ({"a": 1}, lambda f: f.string("a"), "spec.a: must be a string, not the int '1'"),
        ({}, lambda f: f.string("a"), "spec.a: is required"),
        ({"a": "x"}, lambda f: f.string("a", choices=("y", "z")), "spec.a: must be one of y, z, not 'x'"),
        ({"a": 0}, lambda f: f.integer("a", low=1, high=9), "spec.a: must be from 1 to 9, not 0"),
        ({"a": True}, lambda f: f.integer("a", low=1, high=9), "spec.a: must be a whole number"),
        ({"a": "yes"}, lambda f: f.boolean("a", False), "spec.a: must be true or false"),
        ({"a": ["x", 1]}, lambda f: f.strings("a"), r"spec.a\[1\]: must be a string"),
        ({"a": {"k": 1}}, lambda f: f.mapping("a"), "spec.a.k: must be a string"),
        ({"a": "x"}, lambda f: f.child("a"), "spec.a: must be a mapping"),
        ({"a": {}}, lambda f: list(f.children("a")), "spec.a: must be a list"),
        ({"a": [{}, None]}, lambda f: list(f.children("a")), r"spec.a\[1\]: must be a mapping, not nothing"),
        ({"a": "10.0.0"}, lambda f: f.address("a"), "spec.a: .*10.0.0"),
        ({"a": "10.0.0.0/99"}, lambda f: f.prefix("a"), "spec.a: .*10.0.0.0/99"),
        ({"a": ["10.0.0.1", "10.0.0"]}, lambda f: f.addresses("a"), r"spec.a\[1\]: .*10.0.0"),
        ({"a": ["10.0.0.0/8", "10.0.0.0/99"]}, lambda f: f.prefixes("a"), r"spec.a\[1\]: .*10.0.0.0/99"),
        ({"a": 1, "b": 2}, lambda f: (f.raw("a"), f.close()), "spec.b: unknown field"),
    ],
)
def test_a_refusal_names_object_field_and_reason(data: object, read: object, message: str) -> None:
    with pytest.raises(BadObject, match=f"Service default/web: {message}"):
        read(Fields(REF, data, "spec"))  # type: ignore[operator]


def test_what_is_there_is_read() -> None:
    fields = Fields(REF, {"ip": "10.0.0.1", "list": [{"x": "1"}], "none": None, "other": 1}, "")
    assert fields.address("ip") == pack("10.0.0.1")
    assert [item.at("x") for item in fields.children("list")] == ["list[0].x"]
    assert "none" not in fields and fields.string("none", "d") == "d"
    fields.close(ignore=frozenset({"other"}))

from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.source.models import Meta, Namespace, Pod
from netstack.source.snapshot import Broken, Snapshot


def test_objects_come_by_model_in_name_order() -> None:
    refs = [Ref("Namespace", "", name) for name in ("b", "a")]
    snapshot = Snapshot({ref: Namespace(Meta(ref)) for ref in refs})
    assert [n.meta.name for n in snapshot.all(Namespace)] == ["a", "b"]
    assert snapshot.all(Pod) == ()
    assert snapshot.get(Namespace, "Namespace", "", "a") is not None
    assert snapshot.get(Pod, "Namespace", "", "a") is None


def test_broken_says_whether_the_old_version_holds() -> None:
    error = BadObject(Ref("Service", "a", "b"), "spec.type", "is wrong")
    assert str(Broken("a.yaml", error, True)) == (
        "a.yaml: Service a/b: spec.type: is wrong (the last good version stays in force)"
    )
    assert str(Broken("a.yaml", error, False)).endswith("(not in force)")

import json

import pytest

from instruments.api_objects import pod, policy, service
from netstack.core.ref import Ref
from netstack.source.client import Garbage
from netstack.source.replica import Listing, Replica
from netstack.source.resources import Want

A = Ref("Service", "ns", "a")


def listed(replica: Replica, *raws: object) -> bool:
    listing = Listing()
    replica.page(raws, listing)
    return replica.replace(listing)


def test_what_changes_no_model_changes_nothing() -> None:
    replica = Replica(Want("Pod"))
    assert replica.put(pod("web-1"))
    model = replica.objects[Ref("Pod", "ns", "web-1")]
    replica.unsaved.clear()
    again = pod("web-1")
    again["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    assert not replica.put(again)
    assert replica.objects[Ref("Pod", "ns", "web-1")] is model and not replica.unsaved
    assert replica.put(pod("web-1", "10.244.1.9"))


def test_a_list_is_compared() -> None:
    replica = Replica(Want("Service"))
    assert listed(replica), "the first list is news even if it is empty"
    assert listed(replica, service("a"), service("b"))
    assert not listed(replica, service("b"), service("a"))
    replica.unsaved.clear()
    assert listed(replica, service("b"))
    assert replica.unsaved == {A: None}


def test_a_policy_that_python_takes_for_the_same_is_another() -> None:
    """A 1 is refused where true was meant: the mend is news."""

    def without_default_deny(said: object) -> dict[str, object]:
        raw = policy("p")
        return {**raw, "spec": {**raw["spec"], "enableDefaultDeny": {"ingress": said}}}

    replica = Replica(Want("CiliumNetworkPolicy"))
    for said in (0, False, 0, 0.0):
        assert replica.put(without_default_deny(said))
        assert not replica.put(without_default_deny(said))
    for said in (1, True):
        assert listed(replica, without_default_deny(said))
        assert not listed(replica, without_default_deny(said))


def test_pages_change_nothing_before_the_list_is_whole() -> None:
    replica = Replica(Want("Service"))
    listed(replica, service("a"))
    listing = Listing()
    replica.page([service("b")], listing)
    assert set(replica.objects) == {A} and replica.missing(listing)


def test_a_wrong_object_keeps_its_last_good_version_and_is_named() -> None:
    replica = Replica(Want("Service"))
    replica.put(service("a"))
    wrong = service("a", type="Wrong")
    assert replica.put(wrong) and not replica.put(wrong)
    assert A in replica.objects and replica.broken[A].kept
    assert listed(replica, wrong) and A in replica.objects and replica.broken[A].kept
    assert replica.put(service("a")) and not replica.broken
    assert replica.put(service("c", type="Wrong")) and not replica.broken[Ref("Service", "ns", "c")].kept
    assert replica.remove(service("c")) and not replica.broken


def test_an_object_of_the_wrong_shape_is_broken_and_one_without_a_name_is_no_answer() -> None:
    replica = Replica(Want("Service"))
    odd = service("a")
    odd["spec"] = "text"
    assert replica.put(odd)
    assert replica.broken[A].error.field == "(object)"
    for bad in (None, "x", {}, {"metadata": {}}):
        with pytest.raises(Garbage):
            replica.put(bad)


def test_what_is_to_be_saved_is_a_manifest_and_loads_again() -> None:
    replica = Replica(Want("Pod"))
    replica.put(pod("web-1"))
    (text,) = replica.unsaved.values()
    assert text is not None and len(text) < 450
    other = Replica(Want("Pod"))
    other.load([json.loads(text)])
    assert other.known and other.objects == replica.objects
    assert not other.put(pod("web-1")), "nothing new after a start from what was kept"


def test_what_was_good_for_another_release_is_broken_and_the_rest_loads() -> None:
    replica = Replica(Want("Service"))
    replica.load([service("a", "10.96.0.300"), service("b")])
    assert replica.known and list(replica.objects) == [Ref("Service", "ns", "b")]
    assert "10.96.0.300" in str(replica.broken[A]) and not replica.broken[A].kept
    assert listed(replica, service("b")) and not replica.broken
    assert replica.unsaved == {A: None}, "it is not kept for a third release"


def test_status_is_kept_only_where_it_is_written() -> None:
    raw = service("a")
    raw["metadata"]["resourceVersion"] = "7"
    raw["status"] = {"loadBalancer": {}, "conditions": [{"type": "X"}]}
    plain, writer = Replica(Want("Service")), Replica(Want("Service", status=True))
    plain.put(raw), writer.put(raw)
    assert plain.statuses == {}
    assert writer.statuses == {A: ("7", {"conditions": [{"type": "X"}]})}
    writer.remove(raw)
    assert writer.statuses == {}

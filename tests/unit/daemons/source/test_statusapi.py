from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from instruments.api_objects import policy, service
from instruments.apiserver import ApiServer
from instruments.source_probe import Watched, wait_for
from netstack.core.ref import Ref
from netstack.source import events, statusapi
from netstack.source.resources import Want
from netstack.source.statusapi import StatusApi

A = Ref("Service", "ns", "a")
WANTS = [Want("Service", status=True), Want("CiliumNetworkPolicy", status=True), Want("EndpointSlice")]


def condition(kind: str, status: str = "True", at: str = "1", message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": kind, "message": message, "lastTransitionTime": at}


def allocated(address: str, at: str = "1") -> dict[str, Any]:
    return {"loadBalancer": {"ingress": [{"ip": address}]}, "conditions": [condition("Allocated", at=at)]}


class Writer(Watched):
    """One node: a source and its statuses."""

    def __init__(self, server: ApiServer, folder: Path, node: str = "n1") -> None:
        super().__init__(server.kubeconfig, folder / node, WANTS)
        self.api = StatusApi(self.source, node, patience_s=lambda: 0.0, draw=lambda low, high: low / 10)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.api.close()
        super().__exit__(kind, error, at)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path / "server") as running:
        yield running


@pytest.fixture
def writer(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writer]:
    monkeypatch.setattr(statusapi, "HOLD_S", (0.05, 0.2))
    monkeypatch.setattr(statusapi, "LOOK_S", 0.1)
    monkeypatch.setattr(statusapi, "SETTLE_S", 0.05)
    server.put(service("a"))
    with Writer(server, tmp_path) as running:
        running.shows("a")
        yield running


def status(server: ApiServer, ref: Ref = A) -> dict[str, Any]:
    found: dict[str, Any] = server.objects[ref].get("status") or {}
    return found


def writes(server: ApiServer) -> int:
    return sum(request.method != "GET" for request in server.requests)


def quiet(server: ApiServer, writer: Writer) -> None:
    """Nothing is due and nothing is under way: a marker that was wanted later has been written."""
    marker = Ref("CiliumNetworkPolicy", "ns", "marker")
    server.put(policy("marker"))
    wait_for(lambda: writer.source.said(marker))
    writer.api.put(marker, {"conditions": [condition("Valid")]})
    wait_for(lambda: status(server, marker))


def test_a_status_reaches_its_subresource_once(server: ApiServer, writer: Writer) -> None:
    assert writer.api.put(A, allocated("10.0.0.5"))
    wait_for(lambda: status(server) == allocated("10.0.0.5"))
    assert not writer.api.put(A, allocated("10.0.0.5"))
    assert writer.api.put(A, allocated("10.0.0.5", at="2")), "another time is news, but not for the server"
    quiet(server, writer)
    assert status(server) == allocated("10.0.0.5")
    patches = [r.path for r in server.requests if r.method == "PATCH"]
    assert patches[0] == "/api/v1/namespaces/ns/services/a/status" and len(patches) == 2


def test_nodes_that_agree_write_once_between_them(server: ApiServer, writer: Writer, tmp_path: Path) -> None:
    with Writer(server, tmp_path, "n2") as other:
        other.shows("a")
        writer.api.put(A, allocated("10.0.0.5", at="1"))
        wait_for(lambda: (said := other.source.said(A)) and said[1])
        other.api.put(A, allocated("10.0.0.5", at="2"))
        quiet(server, writer)
    assert server.count(method="PATCH", path="/api/v1/namespaces/ns/services/a/status") == 1


def test_nodes_that_disagree_do_not_fight(
    server: ApiServer, writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statusapi, "HOLD_S", (0.2, 600.0))
    with Writer(server, tmp_path, "n2") as other:
        other.shows("a")
        writer.api.put(A, allocated("10.0.0.5"))
        other.api.put(A, allocated("10.0.0.6"))
        wait_for(lambda: max((held[2] for held in writer.api._held.values()), default=0.0) >= 0.8)
        assert writes(server) <= 8, "each pause is twice the last"


def test_a_status_that_somebody_wrote_over_is_mended(server: ApiServer, writer: Writer) -> None:
    writer.api.put(A, allocated("10.0.0.5"))
    wait_for(lambda: status(server))
    theirs = condition("Theirs")
    server.put({**service("a"), "status": {"conditions": [theirs]}})
    wait_for(lambda: status(server) == {**allocated("10.0.0.5"), "conditions": [theirs, condition("Allocated")]})


def test_what_is_no_longer_ours_is_cleared_even_after_a_restart(
    server: ApiServer, writer: Writer, tmp_path: Path
) -> None:
    writer.api.put(A, allocated("10.0.0.5"))
    wait_for(lambda: status(server))
    writer.api.keep("Service", [A])
    assert writer.api.delete(A) and not writer.api.delete(A)
    wait_for(lambda: status(server) == {})
    server.put({**service("a"), "status": allocated("10.0.0.5")})
    with Writer(server, tmp_path, "n2") as other:
        wait_for(lambda: other.source.said(A))
        other.api.keep("Service", [])
        wait_for(lambda: status(server) == {})


def test_a_conflict_is_looked_at_anew_and_an_outage_waited_out(server: ApiServer, writer: Writer) -> None:
    conflicts = iter([409, 409])
    server.fault = lambda request: next(conflicts, None) if request.method == "PATCH" else None
    writer.api.put(A, allocated("10.0.0.5"))
    wait_for(lambda: status(server) == allocated("10.0.0.5"))
    assert writer.api.report() == []
    server.stop()
    writer.api.put(A, allocated("10.0.0.6"))
    wait_for(writer.api.report)
    assert writer.api.report()[0]["kind"] == "status of Service"
    server.start()
    wait_for(lambda: status(server) == allocated("10.0.0.6") and not writer.api.report())


def test_rights_that_are_missing_are_said_and_not_asked_for_again_and_again(server: ApiServer, writer: Writer) -> None:
    statusapi.HOLD_S = (0.05, 600.0)
    server.fault = lambda request: 403 if request.method == "PATCH" else None
    writer.api.put(A, allocated("10.0.0.5"))
    wait_for(writer.api.report)
    assert "403 Forbidden" in writer.api.report()[0]["reason"]
    server.put(service("a", "10.96.0.9"))
    wait_for(lambda: len(writer.snapshots) == 2)
    writer.api.put(A, allocated("10.0.0.5"))
    assert server.count(method="PATCH") == 1


def test_rights_that_are_given_back_are_used_by_all_that_waited(
    server: ApiServer, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statusapi, "HOLD_S", (0.05, 600.0))
    monkeypatch.setattr(statusapi, "ASK_S", 0.1)
    many = [Ref("Service", "ns", name) for name in "abc"]
    server.put(service("b"))
    server.put(service("c"))
    writer.shows("a", "b", "c")
    server.fault = lambda request: 403 if request.method == "PATCH" else None
    for ref in many:
        writer.api.put(ref, allocated("10.0.0.5"))
    wait_for(lambda: server.count(method="PATCH") >= 6)
    tried = [server.count(method="PATCH", path=f"/api/v1/namespaces/ns/services/{ref.name}/status") for ref in many]
    assert sorted(tried)[:2] == [1, 1], "one asks for all"
    server.fault = lambda request: None
    wait_for(lambda: all(status(server, ref) == allocated("10.0.0.5") for ref in many) and not writer.api.report())


def test_what_the_server_does_not_keep_is_said_once(server: ApiServer, writer: Writer, caplog: Any) -> None:
    real = server.objects

    class Pruning(dict):  # type: ignore[type-arg]
        """As a definition without these conditions."""

        def __setitem__(self, ref: Ref, raw: Any) -> None:
            if ref == A:
                raw.get("status", {}).pop("conditions", None)
            super().__setitem__(ref, raw)

    server.objects = Pruning(real)
    writer.api.put(A, allocated("10.0.0.5"))
    wait_for(lambda: status(server).get("loadBalancer"))
    quiet(server, writer)
    writer.api.put(A, allocated("10.0.0.5", at="2"))
    quiet(server, writer)
    assert server.count(method="PATCH", path="/api/v1/namespaces/ns/services/a/status") == 1
    assert "does not keep all of its status" in caplog.text


def test_kinds_without_a_status_in_the_api_are_left_alone(server: ApiServer, writer: Writer) -> None:
    assert not writer.api.put(Ref("NetworkPolicy", "ns", "p"), {"conditions": []})
    writer.api.keep("NetworkPolicy", [])
    quiet(server, writer)
    assert writes(server) == 1


def test_a_node_makes_and_removes_its_own_l2_statuses(server: ApiServer, writer: Writer) -> None:
    def l2(name: str, node: str) -> dict[str, Any]:
        metadata = {"name": name, "namespace": "ns", "labels": {"metallb.io/node": node}}
        return {"apiVersion": "metallb.io/v1beta1", "kind": "ServiceL2Status", "metadata": metadata}

    server.put(l2("left-over", "n1"))
    server.put(l2("l2-n2-a", "n2"))
    ref = Ref("ServiceL2Status", "ns", "l2-n1-a")
    said = {"node": "n1", "serviceName": "a", "serviceNamespace": "ns", "interfaces": [{"name": "eth0"}]}
    writer.api.keep("ServiceL2Status", [ref])
    writer.api.put(ref, said)
    wait_for(lambda: ref in server.objects and status(server, ref) == said)
    names = ["l2-n1-a", "l2-n2-a"]
    wait_for(lambda: [r.name for r in sorted(server.objects) if r.kind == "ServiceL2Status"] == names)
    writer.api.keep("ServiceL2Status", [])
    wait_for(lambda: ref not in server.objects)


def test_an_object_of_our_own_is_made_kept_and_mended(server: ApiServer, writer: Writer) -> None:
    document = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "a-n1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "a"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.1.2"], "conditions": {"ready": True}}],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
    }
    ref = Ref("EndpointSlice", "ns", "a-n1")
    assert writer.api.place(document)
    wait_for(lambda: ref in server.objects)
    wait_for(lambda: writer.has(ref))
    assert not writer.api.place(document)
    quiet(server, writer)
    assert server.count(method="POST") == 1
    server.delete("EndpointSlice", "ns", "a-n1")
    wait_for(lambda: ref in server.objects, "the object again")
    assert writer.api.place({**document, "endpoints": []})
    wait_for(lambda: server.objects[ref]["endpoints"] == [])


def refused(message: str = "spec: is wrong") -> dict[str, Any]:
    return {"conditions": [condition("Valid", "False", message=message)]}


def told(server: ApiServer) -> list[str]:
    return sorted(item["note"] for ref, item in server.objects.items() if ref.kind == "Event")


def test_a_fault_is_told_once_by_whoever_is_first(server: ApiServer, writer: Writer, tmp_path: Path) -> None:
    ref = Ref("CiliumNetworkPolicy", "ns", "p")
    server.put(policy("p"))
    with Writer(server, tmp_path, "n2") as other:
        for one in (writer, other):
            one.api.put(ref, refused())
        wait_for(lambda: server.count(method="POST", kind="Event") == 2, "both to say it")
        wait_for(lambda: told(server) == ["spec: is wrong"])
        writer.api.put(ref, refused("spec: is otherwise wrong"))
        wait_for(lambda: told(server) == ["spec: is otherwise wrong", "spec: is wrong"])
    (event,) = (item for item in server.objects.values() if item.get("note") == "spec: is wrong")
    assert event["regarding"]["uid"] == server.objects[ref]["metadata"]["uid"]
    assert "series" not in event and writer.api.report() == []


def test_a_kind_without_a_status_has_events_all_the_same(server: ApiServer, writer: Writer) -> None:
    server.put(policy("old", "NetworkPolicy"))
    writer.api.put(Ref("NetworkPolicy", "ns", "old"), refused())
    wait_for(lambda: told(server) == ["spec: is wrong"])


def test_what_cannot_be_taken_is_told_until_it_is_mended(server: ApiServer, writer: Writer) -> None:
    server.put(service("b", "nonsense"))
    wait_for(lambda: told(server))
    (note,) = told(server)
    assert note.startswith("Service ns/b: spec.clusterIP")
    server.put(service("b"))
    wait_for(lambda: not writer.source.snapshot().broken)
    wait_for(lambda: not writer.api._faults)


def test_a_fault_that_lasts_is_one_more_of_a_series(
    server: ApiServer, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "REPEAT_S", 0.2)
    server.put(policy("p"))
    writer.api.put(Ref("CiliumNetworkPolicy", "ns", "p"), refused())
    wait_for(lambda: any(item.get("series", {}).get("count", 0) > 2 for item in server.objects.values()))
    assert len(told(server)) == 1


def test_what_was_mended_or_has_gone_is_not_told(
    server: ApiServer, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statusapi, "SETTLE_S", 2.0)  # mended within that, however slow the machine
    for name in ("mended", "gone", "deleted"):
        ref = Ref("CiliumNetworkPolicy", "ns", name)
        if name != "gone":
            server.put(policy(name))
        writer.api.put(ref, refused())
    writer.api.put(Ref("CiliumNetworkPolicy", "ns", "mended"), {"conditions": [condition("Valid")]})
    writer.api.delete(Ref("CiliumNetworkPolicy", "ns", "deleted"))
    wait_for(lambda: [r for r in server.requests if r.query.get("fieldSelector") == "metadata.name=gone"])
    assert told(server) == []


def test_a_namespace_that_is_going_is_no_right_that_lacks(server: ApiServer, writer: Writer) -> None:
    server.message = "unable to create new content in namespace going because it is being terminated"
    server.fault = lambda request: 403 if request.method == "POST" and "/going/" in request.path else None
    for namespace in ("going", "ns"):
        server.put({**policy("p"), "metadata": {"name": "p", "namespace": namespace}})
    writer.api.put(Ref("CiliumNetworkPolicy", "going", "p"), refused())
    wait_for(lambda: server.count(method="POST", kind="Event") == 1)
    writer.api.put(Ref("CiliumNetworkPolicy", "ns", "p"), refused())
    wait_for(lambda: told(server) == ["spec: is wrong"])
    assert writer.api.report() == [] and not writer.api._refused


def test_who_may_not_tell_says_so(server: ApiServer, writer: Writer) -> None:
    server.forbidden.add("Event")
    server.put(policy("p"))
    writer.api.put(Ref("CiliumNetworkPolicy", "ns", "p"), refused())
    wait_for(lambda: [problem["kind"] for problem in writer.api.report()] == ["Event"])

"""Each test sees a source through its snapshots; what the server was asked is counted there."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from instruments.api_objects import namespace, pod, policy, service
from instruments.apiserver import ApiServer, Raw, Request
from instruments.source_probe import Watched, wait_for
from netstack.agent.policy.accept import accept
from netstack.source import client
from netstack.source.backoff import Backoff
from netstack.source.client import Refused
from netstack.source.credentials import Credentials
from netstack.source.models import Policy
from netstack.source.reflector import GONE_S, History, Reflector
from netstack.source.replica import Replica
from netstack.source.resources import Want


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path / "server") as running:
        yield running


def watched(server: ApiServer, tmp_path: Path, *wants: str) -> Watched:
    return Watched(server.kubeconfig, tmp_path / "good", [Want(kind) for kind in wants])


def lists(server: ApiServer, kind: str = "Service") -> int:
    return server.count(list=True, kind=kind)


def test_a_history_continues_only_forward_and_only_in_the_same_cluster() -> None:
    assert History("a", 7).continues(History("a", 7))
    assert not History("a", 6).continues(History("a", 7))
    assert not History("b", 9).continues(History("a", 7))


def test_a_list_comes_in_pages_and_counts_when_it_is_whole(server: ApiServer, tmp_path: Path) -> None:
    names = [f"s{i:04}" for i in range(600)]
    for name in names:
        server.put(service(name))
    with watched(server, tmp_path, "Service") as source:
        source.shows(*names)
    assert lists(server) == 3
    assert [len(snapshot.objects) for snapshot in source.snapshots] == [600]


def test_large_objects_come_in_smaller_pages(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "BODY_MAX", 100_000)
    names = [f"s{i:02}" for i in range(60)]
    for name in names:
        large = service(name)
        large["metadata"]["annotations"] = {"note": "x" * 10_000}
        server.put(large)
    with watched(server, tmp_path, "Service") as source:
        source.shows(*names), source.connected()
        assert source.source.report()["problems"] == []
    assert [len(snapshot.objects) for snapshot in source.snapshots] == [60]


def test_an_object_deeper_than_python_goes_keeps_nobody_from_the_others(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = policy("deep")
    deep["spec"]["ingress"] = ["DEEP"]

    def dumps(value: object) -> str:
        return json.dumps(value).replace('"DEEP"', "[" * 5_000 + "]" * 5_000)

    monkeypatch.setattr("instruments.apiserver.json", SimpleNamespace(dumps=dumps, loads=json.loads))
    server.put(deep)
    with watched(server, tmp_path, "CiliumNetworkPolicy") as source:
        source.shows("deep"), source.connected()  # in a list
        server.put({**deep, "spec": {**deep["spec"], "description": "again"}})  # and in an event
        server.put(policy("p"))
        source.shows("deep", "p"), source.connected()
        assert source.source.report()["problems"] == []
    refused = accept(source.source.snapshot().all(Policy), {}).refused
    assert [str(found) for found in refused.values()] == [
        f"CiliumNetworkPolicy ns/deep: spec.ingress[0]: must be a mapping, not the list {'[' * 60!r}"
        "; the pods that it selects deny instead"
    ]
    assert lists(server, "CiliumNetworkPolicy") == 1


def test_a_cut_connection_resumes_where_it_was_and_lists_nothing(server: ApiServer, tmp_path: Path) -> None:
    server.put(service("a"))
    with watched(server, tmp_path, "Service") as source:
        source.shows("a"), source.connected()
        for name in "bcd":
            server.cut()
            server.put(service(name))
        source.shows("a", "b", "c", "d"), source.connected()
    assert lists(server) == 1


def test_bookmarks_carry_a_quiet_kind_over_a_compaction(server: ApiServer, tmp_path: Path) -> None:
    server.put(service("a"))
    with watched(server, tmp_path, "Service") as source:
        source.shows("a"), source.connected()
        server.put(namespace("elsewhere"))
        reflector = source.source._reflectors[0]
        wait_for(lambda: reflector._version == str(server.version), "a bookmark")
        server.compact(), server.cut()
        server.put(service("b"))
        source.shows("a", "b")
    assert lists(server) == 1


def test_410_lists_anew_and_what_did_not_change_gives_no_snapshot(server: ApiServer, tmp_path: Path) -> None:
    server.put(service("a"))
    server.bookmark_s = 60.0
    with watched(server, tmp_path, "Service") as source:
        source.shows("a"), source.connected()
        server.put(namespace("elsewhere"))
        server.compact(), server.cut()
        wait_for(lambda: lists(server) == 2, "a second list")
        source.connected()
        assert source.source.report()["problems"] == []
        server.put(service("b"))
        source.shows("a", "b")
    assert len(source.snapshots) == 2


def test_a_watch_that_meets_an_error_from_its_version_on_lists_anew(server: ApiServer, tmp_path: Path) -> None:
    server.put(service("a"))
    with watched(server, tmp_path, "Service") as source:
        source.shows("a"), source.connected()
        broken = server.version + 1
        server.fault = lambda request: (
            "error" if request.watch and int(request.query["resourceVersion"]) < broken else None
        )
        server.cut()
        wait_for(lambda: "500 Internal Server Error: as scripted" in source.problem("Service"))
        server.put(service("b"))
        source.shows("a", "b"), source.connected()
        assert source.source.report()["problems"] == []


def test_another_history_is_noticed_even_where_versions_look_right(server: ApiServer, tmp_path: Path) -> None:
    server.put(service("a"))
    with watched(server, tmp_path, "Service") as source:
        source.shows("a"), source.connected()
        server.stop(), server.wipe()
        for _ in range(50):  # the new history is longer than the old one was
            server.put(service("b"))
        server.start()
        source.shows("b")
        server.stop(), server.wipe()  # and now it is shorter
        server.start()
        source.shows()


@pytest.mark.parametrize("fault", [500, 503, "garbage", "cut", "drop"])
def test_a_failing_list_changes_nothing(server: ApiServer, tmp_path: Path, fault: int | str) -> None:
    for i in range(400):
        server.put(service(f"s{i}"))
    with watched(server, tmp_path, "Service") as source:
        wait_for(lambda: len(source.names) == 400)
        server.bookmark_s = 60.0
        server.fault = lambda request: fault if "continue" in request.query else None
        server.put(namespace("elsewhere"))
        server.compact(), server.cut()
        source.problem("Service")
        wait_for(lambda: server.count(list=True) > 3, "another attempt")
        assert len(source.names) == 400
        server.fault = lambda request: None
        server.put(service("new"))
        wait_for(lambda: len(source.names) == 401)
        source.connected()
        assert source.source.report()["problems"] == []
    assert {len(snapshot.objects) for snapshot in source.snapshots} == {400, 401}


def test_an_answer_that_is_no_list_deletes_nothing(server: ApiServer, tmp_path: Path) -> None:
    server.put(service("a"))
    with watched(server, tmp_path, "Service") as source:
        source.shows("a"), source.connected()
        server.bookmark_s = 60.0
        server.fault = lambda request: 200 if request.list else None
        server.put(namespace("elsewhere"))
        server.compact(), server.cut()
        wait_for(lambda: lists(server) > 2)
        assert "no list of services" in source.problem("Service") and source.names == ["a"]


def test_too_many_requests_waits_as_long_as_it_is_told(server: ApiServer, tmp_path: Path) -> None:
    asked: list[float] = []

    def busy(request: Request) -> int | None:
        if request.list and len(asked) < 2:
            asked.append(request.at)
            return 429
        return None

    server.put(service("a"))
    server.fault = busy
    with watched(server, tmp_path, "Service") as source:
        assert "429 Too Many Requests" in source.problem("Service")
        source.shows("a")
    assert asked[1] - asked[0] >= server.retry_after


def test_rights_that_are_taken_away_leave_what_was_known(server: ApiServer, tmp_path: Path) -> None:
    server.put(service("a"))
    with watched(server, tmp_path, "Service", "Namespace") as source:
        source.shows("a", "kube-system"), source.connected()
        server.forbidden.add("Service")
        server.cut()
        assert source.problem("Service") == "403 Forbidden: Service is forbidden"
        server.put(service("b"))
        server.put(namespace("n"))
        source.shows("a", "kube-system", "n")
        server.forbidden.clear()
        source.shows("a", "b", "kube-system", "n")


def test_a_missing_definition_is_an_empty_kind_until_it_comes(server: ApiServer, tmp_path: Path) -> None:
    server.missing.add("CiliumNetworkPolicy")
    server.put(service("a"))
    with watched(server, tmp_path, "Service", "CiliumNetworkPolicy") as source:
        source.shows("a")
        assert "its definition is missing" in source.problem("CiliumNetworkPolicy")
        server.missing.clear()
        server.put(policy("p"))
        source.shows("a", "p")


def test_a_kind_that_is_served_in_an_older_version_alone_is_read_there(server: ApiServer, tmp_path: Path) -> None:
    """Of a cluster with the definitions of Cilium 1.17. When newer ones come, the next list is of the newer version."""

    def group(name: str) -> Raw:
        spec = {"externalCIDRs": ["10.0.0.0/8"]}
        return {"apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup", "metadata": {"name": name}, "spec": spec}

    server.older.add("CiliumCIDRGroup")
    server.put(group("a"))
    with watched(server, tmp_path, "CiliumCIDRGroup") as source:
        source.shows("a"), source.connected()
        assert source.source.report()["problems"] == []
        server.put(group("b"))
        source.shows("a", "b")
        server.delete("CiliumCIDRGroup", "", "a")
        source.shows("b")
        server.older.clear()
        server.cut()
        server.put(group("c"))
        source.shows("b", "c"), source.connected()


def test_a_definition_that_vanishes_takes_no_policy_out_of_force(server: ApiServer, tmp_path: Path) -> None:
    server.put(policy("p"))
    server.put(policy("q"))
    with watched(server, tmp_path, "CiliumNetworkPolicy") as source:
        source.shows("p", "q"), source.connected()
        server.terminating.add("CiliumNetworkPolicy")
        server.delete("CiliumNetworkPolicy", "ns", "p")
        assert "is being deleted" in source.problem("CiliumNetworkPolicy")
        server.delete("CiliumNetworkPolicy", "ns", "q")
        server.missing.add("CiliumNetworkPolicy")
        wait_for(lambda: "is missing" in source.problem("CiliumNetworkPolicy"))
        assert source.names == ["p", "q"]
        server.missing.clear(), server.terminating.clear()
        source.shows()  # the kind is back, and these are not in it
        server.put(policy("p"))
        source.shows("p")
        server.delete("CiliumNetworkPolicy", "ns", "p")
        source.shows()


def test_selectors_reach_the_server_and_what_leaves_them_goes(server: ApiServer, tmp_path: Path) -> None:
    server.put(pod("done", phase="Succeeded"))
    server.put(pod("web"))
    wants = [Want("Pod", fields="status.phase!=Succeeded,status.phase!=Failed")]
    with Watched(server.kubeconfig, tmp_path / "good", wants) as source:
        source.shows("web"), source.connected()
        server.put(pod("web", phase="Failed"))
        source.shows()


def test_a_renewed_certificate_is_taken_up_without_a_restart(server: ApiServer, tmp_path: Path) -> None:
    server.put(service("a"))
    with watched(server, tmp_path, "Service") as source:
        source.shows("a"), source.connected()
        server.accepted = {"renewed"}
        server.cut()
        assert "expired, revoked or unknown" in source.problem("Service")
        server.write_kubeconfig("renewed")
        server.put(service("b"))
        source.shows("a", "b")


def test_a_server_that_hangs_or_is_slow_is_waited_for_elsewhere(server: ApiServer, tmp_path: Path) -> None:
    server.put(service("a"))
    server.fault = lambda request: "slow"
    with watched(server, tmp_path, "Service") as source:
        source.shows("a"), source.connected()
        server.fault = lambda request: "hang"
        server.cut()
        wait_for(lambda: not source.source.report()["connected"])
        assert source.names == ["a"]
        server.fault = lambda request: None
        server.stop(), server.start()
        server.put(service("b"))
        source.shows("a", "b")


def test_a_watch_that_ends_when_it_should_goes_on_without_a_question(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netstack.source.reflector.WATCH_S", (101.0, 101.0))
    server.put(service("a"))
    with watched(server, tmp_path, "Service") as source:
        source.shows("a"), source.connected()
        monkeypatch.setattr("netstack.source.reflector.WATCH_S", (1.0, 1.0))
        server.cut()  # this one is asked for its history
        wait_for(lambda: server.count(watch=True) >= 4, "two regular ends")
    assert server.count(kind="Namespace") == 2 and lists(server) == 1


def test_a_fault_of_our_own_is_said_and_ends_no_thread(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(document: object) -> None:
        raise RuntimeError("nobody thought of this")

    server.put(service("a"))
    with watched(server, tmp_path, "Service") as source:
        source.shows("a"), source.connected()
        with monkeypatch.context() as patched:
            patched.setattr("netstack.source.replica.parse", fail)
            server.put(service("b"))
            assert "RuntimeError: nobody thought of this" in source.problem("Service")
        source.shows("a", "b"), source.connected()


def test_a_server_that_only_ever_says_410_is_asked_less_and_less() -> None:
    replica = Replica(Want("Service"))
    reflector = Reflector(replica, Credentials("none"), threading.Lock(), lambda: None, lambda low, high: high)
    pauses = [reflector._after(Refused(410, ""), 0.0) for _ in range(4)]
    assert pauses == [GONE_S[1], 0.25, 0.75, 2.25]
    assert reflector._after(Refused(410, ""), 60.0) == GONE_S[1], "after a watch that lived it is a first one again"


def test_the_first_that_gets_through_hurries_the_others(server: ApiServer, tmp_path: Path) -> None:
    """Those sleep for longer than any test waits."""
    asleep: list[str] = []

    def slow(reflector: Reflector) -> Backoff:
        def draw(low: float, high: float) -> float:
            asleep.append(reflector.replica.want.kind)
            return 1000.0

        return Backoff(draw, cap_s=1000.0)

    kinds = ["Service", "EndpointSlice", "Node", "Pod"]
    with watched(server, tmp_path, *kinds) as source:
        source.connected()
        server.stop()
        for kind in kinds:
            source.problem(kind)
        for reflector in source.source._reflectors[1:]:
            reflector._backoff = slow(reflector)
        wait_for(lambda: sorted(asleep) == sorted(kinds[1:]), "the others to be asleep")
        server.start()
        source.connected()
        assert sorted(asleep) == sorted(kinds[1:]), "none had to sleep again"


def test_who_was_refused_is_not_hurried(server: ApiServer, tmp_path: Path) -> None:
    server.forbidden.add("Node")
    with watched(server, tmp_path, "Service", "Node") as source:
        source.problem("Node")
        service_, node = source.source._reflectors
        node.hurry()
        assert not node._hurried.is_set()
        service_._away = True
        service_.hurry()
        assert service_._hurried.is_set()

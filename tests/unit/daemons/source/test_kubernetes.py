import random
import threading
import time
from pathlib import Path

import pytest

from instruments.api_objects import namespace, pod, secret, service
from instruments.apiserver import ApiServer, Fault, Request
from instruments.depth import examples
from instruments.source_probe import Watched, wait_for
from netstack.core.ref import Ref
from netstack.source import kubernetes
from netstack.source.kubernetes import KubernetesSource
from netstack.source.models import Namespace, Service
from netstack.source.resources import Want

BOTH = [Want("Service"), Want("Namespace")]


@pytest.fixture(autouse=True)
def quick_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "SAVE_S", 0.05)
    monkeypatch.setattr(kubernetes, "RETRY_S", 0.05)


def test_no_snapshot_before_every_kind_is_known(tmp_path: Path) -> None:
    with ApiServer(tmp_path / "server") as server:
        server.put(service("a"))
        server.forbidden.add("Namespace")
        with Watched(server.kubeconfig, tmp_path / "good", BOTH) as source:
            source.problem("Namespace")
            wait_for(lambda: Ref("Service", "ns", "a") in source.source.snapshot().objects)
            report = source.source.report()
            assert not source.source.ready and source.snapshots == []
            assert not report["ready"] and not report["connected"] and report["stale_since"]
            server.forbidden.clear()
            source.shows("a", "kube-system")


def test_a_pod_is_known_when_its_namespace_is(tmp_path: Path) -> None:
    """A policy may go by the namespace's labels, or by those that it has not."""
    wants = [Want("Pod"), Want("Namespace")]
    with ApiServer(tmp_path / "server") as server:
        server.put(namespace("old"))
        with Watched(server.kubeconfig, tmp_path / "good", wants) as source:
            source.shows("kube-system", "old"), source.connected()
            server.put(pod("stranger", namespace="new"))
            server.put(pod("friend", namespace="old"))
            source.shows("friend", "kube-system", "old")
            server.put(namespace("new"))
            source.shows("friend", "kube-system", "new", "old", "stranger")
        for snapshot in source.snapshots:
            assert {ref.namespace for ref in snapshot.objects} <= {
                "",
                *(item.meta.name for item in snapshot.all(Namespace)),
            }


def test_a_start_without_the_api_server_goes_on_from_what_was_known(tmp_path: Path) -> None:
    keep = tmp_path / "good"
    with ApiServer(tmp_path / "server") as server:
        server.put(service("a"))
        server.put(service("b"))
        config = server.kubeconfig
        with Watched(config, keep, BOTH) as source:
            source.shows("a", "b", "kube-system")
        server.stop()
        offline = KubernetesSource(str(config), BOTH, keep)
        assert offline.ready and offline.snapshot().objects == source.source.snapshot().objects
        server.delete("Service", "ns", "a")  # nobody listens
        with Watched(config, keep, BOTH) as source:
            source.shows("a", "b", "kube-system")
            assert source.problem("Service")
            server.start()
            source.shows("b", "kube-system")
        assert len(source.snapshots) == 2
        with Watched(config, keep, BOTH) as source:
            source.shows("b", "kube-system"), source.connected()
        assert len(source.snapshots) == 1, "a first list that says nothing new gives no snapshot"


def test_what_is_kept_is_written_in_rounds_and_what_fails_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = tmp_path / "good"
    with ApiServer(tmp_path / "server") as server, Watched(server.kubeconfig, keep, [Want("Service")]) as source:
        source.shows()
        wait_for(lambda: (keep / "service" / ".complete").exists())
        full = True
        save = source.source._lastgood.save

        def maybe(kind: str, unsaved: dict) -> None:  # type: ignore[type-arg]
            if full:
                raise OSError(28, "No space left on device")
            save(kind, unsaved)

        monkeypatch.setattr(source.source._lastgood, "save", maybe)
        server.put(service("a"))
        assert "No space left" in source.problem("last-known-good folder")
        server.put(service("b"))
        source.shows("a", "b")
        full = False
        wait_for(lambda: len(KubernetesSource("none", [Want("Service")], keep).snapshot().objects) == 2)
        wait_for(lambda: source.source.report()["problems"] == [])


def test_who_asks_for_it_finds_on_disk_what_is_known_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "SAVE_S", 3600)
    keep, wants = tmp_path / "good", [Want("Service")]
    with ApiServer(tmp_path / "server") as server, Watched(server.kubeconfig, keep, wants) as source:
        server.put(service("a"))
        source.shows("a")
        assert KubernetesSource("none", wants, keep).snapshot().objects == {}
        source.source.save()
        assert list(KubernetesSource("none", wants, keep).snapshot().objects) == [Ref("Service", "ns", "a")]


def test_a_damaged_folder_is_given_up_not_half_believed(tmp_path: Path) -> None:
    keep = tmp_path / "good"
    with ApiServer(tmp_path / "server") as server:
        for i in range(100):
            server.put(service(f"s{i}"))
        with Watched(server.kubeconfig, keep, [Want("Service")]) as source:
            wait_for(lambda: len(source.names) == 100)
        next(keep.rglob("*.json")).write_text("{")
        assert not KubernetesSource(str(server.kubeconfig), [Want("Service")], keep).ready
        with Watched(server.kubeconfig, keep, [Want("Service")]) as source:
            wait_for(lambda: len(source.names) == 100)
        assert len(KubernetesSource("none", [Want("Service")], keep).snapshot().objects) == 100


@pytest.mark.parametrize("part", [False, True])
def test_a_folder_that_vanishes_or_is_damaged_under_us_is_made_anew(tmp_path: Path, part: bool) -> None:
    keep, wants = tmp_path / "good", [Want("Service")]

    def kept() -> set[str]:
        return {ref.name for ref in KubernetesSource("none", wants, keep).snapshot().objects}

    with ApiServer(tmp_path / "server") as server:
        names = {f"s{i}" for i in range(200)}
        for name in names:
            server.put(service(name))
        with Watched(server.kubeconfig, keep, wants) as source:
            wait_for(lambda: kept() == names)
            source.connected()
            for path in keep.rglob("*.json"):
                path.write_text("{") if part else path.unlink()
            if not part:
                (keep / "service" / ".complete").unlink()
            server.put(service("new"))
            wait_for(lambda: kept() == names | {"new"}, "a whole copy")
            source.connected()
            wait_for(lambda: source.source.report()["problems"] == [])
            assert len(source.snapshots) == 2, "nothing else had changed"


def test_a_burst_is_one_snapshot_and_a_status_nobody_reads_none(tmp_path: Path) -> None:
    wants = [Want("Pod"), Want("Secret", fields="type=kubernetes.io/tls")]
    with ApiServer(tmp_path / "server") as server, Watched(server.kubeconfig, tmp_path / "good", wants) as source:
        source.shows(), source.connected()
        with server.news:  # a deployment, all at once
            for i in range(200):
                server.put(pod(f"p{i}"))
        wait_for(lambda: len(source.names) == 200)
        assert len(source.snapshots) < 60
        before = len(source.snapshots)
        for i in range(200):
            busy = pod(f"p{i}")
            busy["status"]["conditions"] = [{"type": "Ready", "lastProbeTime": str(i)}]
            server.put(busy)
        server.put(secret("opaque", "Opaque"))
        server.put(secret("tls"))
        wait_for(lambda: len(source.names) == 201)
        assert len(source.snapshots) == before + 1


def test_what_an_object_was_told_is_known_to_who_writes_it(tmp_path: Path) -> None:
    wants = [Want("Service", status=True), Want("Namespace")]
    ref = Ref("Service", "ns", "a")
    with ApiServer(tmp_path / "server") as server, Watched(server.kubeconfig, tmp_path / "good", wants) as source:
        server.put({**service("a"), "status": {"conditions": [{"type": "X"}]}})
        source.shows("a", "kube-system")
        assert source.source.said(ref) == (str(server.version), {"conditions": [{"type": "X"}]})
        assert set(source.source.all_said("Service")) == {ref} and source.source.all_said("Pod") == {}
        assert isinstance(source.source.shown(ref), Service)
        assert source.source.said(Ref("Service", "ns", "none")) is None


class Storm:
    """Changes an API server's objects at random and breaks it at random, from a seed."""

    FAULTS: tuple[Fault, ...] = (500, 503, 410, "garbage", "cut", "drop", "slow")

    def __init__(self, server: ApiServer, seed: int) -> None:
        self.server = server
        self.random = random.Random(seed)
        self.constant = {f"always{i}" for i in range(20)}
        for name in sorted(self.constant):
            server.put(service(name))

    def blow(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
            time.sleep(self.random.uniform(0, 0.01))
        self.server.fault = lambda request: None
        if self.server._server is None:
            self.server.start()

    def step(self) -> None:
        server, draw = self.server, self.random.random()
        name = f"s{self.random.randrange(30)}"
        if draw < 0.5:
            server.put(service(name, f"10.96.1.{self.random.randrange(1, 250)}"))
        elif draw < 0.7:
            if Ref("Service", "ns", name) in server.objects:
                server.delete("Service", "ns", name)
        elif draw < 0.8:
            server.cut()
        elif draw < 0.85:
            server.compact(), server.cut()
        elif draw < 0.93:
            fault, chance = self.random.choice(self.FAULTS), self.random.random()

            def judge(request: Request) -> Fault:
                return fault if self.random.random() < chance else None

            server.fault = judge
        elif draw < 0.97:
            server.fault = lambda request: None
        elif server._server is None:
            server.start()
        else:
            server.stop()


@pytest.mark.parametrize("seed", range(examples(2)))
def test_whatever_happens_the_end_is_right_and_nothing_vanishes_on_the_way(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netstack.source.reflector.PAGE", 7)
    keep = tmp_path / "good"
    with ApiServer(tmp_path / "server") as server:
        storm = Storm(server, seed)
        with Watched(server.kubeconfig, keep, BOTH) as source:
            wait_for(lambda: bool(source.snapshots))
            wind = threading.Thread(target=storm.blow, args=(150,))
            wind.start()
            wind.join()
            server.put(namespace("the-end"))
            expected = {(ref.name, raw["spec"]["clusterIP"]) for ref, raw in server.objects.items() if "spec" in raw}

            def shown() -> set[tuple[str, str]]:
                found = source.source.snapshot().all(Service)
                return {(s.meta.name, ".".join(map(str, s.cluster_ips[0][-4:]))) for s in found}

            wait_for(lambda: shown() == expected and "the-end" in source.names, f"the end (seed {seed})")
            source.connected()
        for snapshot in source.snapshots:
            assert storm.constant <= {ref.name for ref in snapshot.objects}
        offline = KubernetesSource("none", BOTH, keep)
        assert offline.ready and offline.snapshot().objects == source.source.snapshot().objects

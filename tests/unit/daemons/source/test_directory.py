import asyncio
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instruments.depth import examples
from netstack.core.ref import Ref
from netstack.source.directory import DirectorySource
from netstack.source.models import IPAddressPool, Pod, Service
from netstack.source.snapshot import Snapshot

SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: ns}}
spec: {{clusterIP: {address}, ports: [{{port: 80}}]}}
---
"""


def put(path: Path, text: str) -> None:
    """Write as tools do: a new file, moved over the old one."""
    temporary = path.with_name("." + path.name)
    temporary.write_text(text)
    os.replace(temporary, path)


def names(snapshot: Snapshot) -> dict[str, str]:
    return {s.meta.name: str(s.cluster_ips[0][-1]) for s in snapshot.all(Service)}


def names_of(source: DirectorySource) -> dict[str, str]:
    return names(source.snapshot())


def service(name: str, address: str = "10.96.0.1") -> str:
    return SERVICE.format(name=name, address=address)


def test_documents_lists_and_json_are_read_and_dot_files_are_not(tmp_path: Path) -> None:
    put(tmp_path / "a.yaml", service("a") + service("b"))
    (tmp_path / "sub").mkdir()
    put(
        tmp_path / "sub" / "c.json",
        '{"kind": "List", "items": [{"apiVersion": "v1", "kind": "Service", '
        '"metadata": {"name": "c", "namespace": "ns"}, "spec": {"clusterIP": "10.96.0.3"}}]}',
    )
    (tmp_path / ".hidden.yaml").write_text("a: [")
    (tmp_path / "README.md").write_text("a: [")
    source = DirectorySource(tmp_path)
    assert names(source.snapshot()) == {"a": "1", "b": "1", "c": "3"}
    assert source.snapshot().broken == ()
    assert not source.refresh()


def test_what_is_no_file_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    put(tmp_path / "a.yaml", service("a"))
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "nowhere.yaml").symlink_to("gone")
    source = DirectorySource(tmp_path)
    assert names_of(source) == {"a": "1"}
    assert sorted(wrong.file for wrong in source.snapshot().broken) == ["loop.yaml", "nowhere.yaml"]
    put(tmp_path / "b.yaml", service("b"))
    assert source.refresh() and names_of(source) == {"a": "1", "b": "1"}


def test_a_broken_file_keeps_its_last_good_objects_and_is_named(tmp_path: Path) -> None:
    put(tmp_path / "a.yaml", service("a"))
    source = DirectorySource(tmp_path)
    put(tmp_path / "a.yaml", "kind: [")
    assert source.refresh()
    assert names(source.snapshot()) == {"a": "1"}
    (broken,) = source.snapshot().broken
    assert broken.kept and str(broken).startswith("a.yaml: file a.yaml: (text): while parsing")
    put(tmp_path / "a.yaml", service("a", "10.96.0.9"))
    assert source.refresh()
    assert names(source.snapshot()) == {"a": "9"} and source.snapshot().broken == ()


def test_one_bad_object_keeps_its_own_last_version_and_the_rest_moves_on(tmp_path: Path) -> None:
    put(tmp_path / "a.yaml", service("a") + service("b"))
    source = DirectorySource(tmp_path)
    put(tmp_path / "a.yaml", service("a", "ten") + service("b", "10.96.0.7"))
    source.refresh()
    assert names(source.snapshot()) == {"a": "1", "b": "7"}
    assert [str(b.error.ref) for b in source.snapshot().broken] == ["Service ns/a"]


def test_a_restart_in_front_of_a_broken_file_falls_back_on_what_was_kept(tmp_path: Path) -> None:
    manifests, keep = tmp_path / "m", tmp_path / "keep"
    manifests.mkdir()
    put(manifests / "a.yaml", service("a") + service("b"))
    DirectorySource(manifests, keep=keep)
    put(manifests / "a.yaml", service("a", "ten") + service("b", "10.96.0.7"))
    assert names(DirectorySource(manifests, keep=keep).snapshot()) == {"a": "1", "b": "7"}
    put(manifests / "a.yaml", "kind: [")
    source = DirectorySource(manifests, keep=keep)
    assert names(source.snapshot()) == {"a": "1", "b": "7"} and source.snapshot().broken[0].kept
    (manifests / "a.yaml").unlink()
    source.refresh()
    source.remember()
    assert names(source.snapshot()) == {} and list(keep.iterdir()) == []


def test_a_copy_holds_every_character_and_one_that_cannot_be_read_stops_nobody(tmp_path: Path) -> None:
    manifests, keep = tmp_path / "m", tmp_path / "keep"
    manifests.mkdir()
    text = (
        """{apiVersion: v1, kind: Pod, metadata: {name: a, annotations: {icon: "\U0001f600"}}, spec: {nodeName: n1}}"""
    )
    (manifests / "a.yaml").write_text(text, encoding="utf-8")
    first = DirectorySource(manifests, keep=keep).snapshot()
    assert first.objects
    (manifests / "a.yaml").write_text("{")
    again = DirectorySource(manifests, keep=keep).snapshot()
    assert again.objects == first.objects and again.broken
    (copy,) = keep.iterdir()
    for torn in (copy.read_bytes()[:50], b"\xff", b"[]", b'{"kind": "List"}'):
        copy.write_bytes(torn)
        assert DirectorySource(manifests, keep=keep).snapshot().objects == {}
        assert DirectorySource(tmp_path / "gone", keep=keep).snapshot().objects == {}


def test_a_document_without_a_name_does_not_lose_the_others(tmp_path: Path) -> None:
    put(tmp_path / "a.yaml", service("a") + service("b"))
    source = DirectorySource(tmp_path)
    put(tmp_path / "a.yaml", service("a", "10.96.0.2") + "kind: Service\nmetadata: {}\n")
    source.refresh()
    assert names(source.snapshot()) == {"a": "2", "b": "1"}
    assert "metadata.name: is required" in str(source.snapshot().broken[0])


def test_what_leaves_a_file_goes_though_another_object_stands_in_it_twice(tmp_path: Path) -> None:
    put(tmp_path / "a.yaml", service("a") + service("b") + service("b", "10.96.0.2"))
    source = DirectorySource(tmp_path)
    assert names_of(source) == {"a": "1", "b": "1"}
    put(tmp_path / "a.yaml", service("b") + service("b", "10.96.0.2"))
    assert source.refresh() and names_of(source) == {"b": "1"}
    put(tmp_path / "a.yaml", service("b"))
    assert source.refresh() and source.snapshot().broken == ()


@pytest.mark.parametrize("items", ["5", "true", "abc", "{a: 1}"])
def test_a_list_that_holds_none_stops_nobody(tmp_path: Path, items: str) -> None:
    put(tmp_path / "a.yaml", service("a"))
    put(tmp_path / "b.yaml", f"kind: List\nitems: {items}\n---\n{service('b')}")
    source = DirectorySource(tmp_path)
    assert names(source.snapshot()) == {"a": "1", "b": "1"}
    (broken,) = source.snapshot().broken
    assert broken.file == "b.yaml"


def test_the_first_file_that_defines_an_object_wins(tmp_path: Path) -> None:
    put(tmp_path / "b.yaml", service("a", "10.96.0.2"))
    put(tmp_path / "a.yaml", service("a"))
    snapshot = DirectorySource(tmp_path).snapshot()
    assert names(snapshot) == {"a": "1"}
    assert str(snapshot.broken[0]).startswith("b.yaml: Service ns/a: metadata.name: is defined in a.yaml already")


@pytest.mark.parametrize("files", [("a", "b"), ("b", "a"), ("a", "a")], ids="-".join)
def test_a_vendors_kind_of_a_name_that_is_ours_takes_no_objects_place(tmp_path: Path, files: tuple[str, str]) -> None:
    calico = "{{apiVersion: projectcalico.org/v3, kind: {}, metadata: {{name: a, namespace: ns}}}}\n---\n"
    for name, text in zip(files, (calico.format("Service"), service("a")), strict=True):
        path = tmp_path / f"{name}.yaml"
        put(path, (path.read_text() if path.exists() else "") + text)
    source = DirectorySource(tmp_path)
    assert names_of(source) == {"a": "1"} and source.snapshot().broken == ()
    beside = [str(ref) for ref in source.beside(Ref("Service", "ns", "a"))]
    assert beside == (["Service.projectcalico.org ns/a"] if len(set(files)) == 1 else [])


def test_the_status_folder_lies_over_the_manifest(tmp_path: Path) -> None:
    manifests, status = tmp_path / "m", tmp_path / "s"
    manifests.mkdir(), status.mkdir()
    put(manifests / "a.yaml", service("a"))
    source = DirectorySource(manifests, status)
    put(
        status / "service.ns.a.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: ns}\n"
        "status: {loadBalancer: {ingress: [{ip: 192.168.86.18}]}}\n",
    )
    assert source.refresh()
    (a,) = source.snapshot().all(Service)
    assert a.load_balancer_ips[0][-4:] == bytes((192, 168, 86, 18))


STATUS = """
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: ns}}
status: {{loadBalancer: {{ingress: [{{ip: {address}}}]}}}}
"""
NONE = 300
"""Not part of any address."""
contents = st.dictionaries(st.sampled_from("xyz"), st.sampled_from([1, 2, 3, NONE]), max_size=3)
steps = st.one_of(
    st.tuples(st.just("manifests"), st.sampled_from(["a", "b", "sub/c"]), st.none() | contents),
    st.tuples(st.just("status"), st.sampled_from(["s", "t"]), st.none() | contents),
)


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(steps, max_size=12), st.booleans())
def test_what_is_kept_of_files_that_did_not_change_shows_nowhere(
    history: list[tuple[str, str, dict[str, int] | None]], named: bool
) -> None:
    """Objects that stand in several files, and statuses of objects that are there or not. Nothing is good first and
    wrong later: that history shall show."""
    good = {"manifests": set[str](), "status": set[str]()}
    with tempfile.TemporaryDirectory() as folder:
        roots = {"manifests": Path(folder) / "manifests", "status": Path(folder) / "status"}
        (roots["manifests"] / "sub").mkdir(parents=True)
        roots["status"].mkdir()
        source = DirectorySource(*roots.values())
        for where, name, content in history:
            path, text = roots[where] / f"{name}.yaml", service if where == "manifests" else STATUS.format
            content = content and {
                one: number for one, number in content.items() if number != NONE or one not in good[where]
            }
            good[where] |= {one for one, number in (content or {}).items() if number != NONE}
            if content is None:
                path.unlink(missing_ok=True)
            else:
                put(path, "---".join(text(name=one, address=f"10.96.0.{number}") for one, number in content.items()))
            source.refresh({str(path)} if named else None)
            assert source.snapshot() == DirectorySource(*roots.values()).snapshot()


@pytest.mark.parametrize("names", [("a", "b"), ("m", "c"), ("x", "y"), ("1", "2"), ("p", "q")], ids="".join)
def test_a_restart_without_the_folder_believes_the_same_file(tmp_path: Path, names: tuple[str, str]) -> None:
    folder, keep = tmp_path / "manifests", tmp_path / "keep"
    folder.mkdir()
    for number, name in enumerate(sorted(names), 1):
        put(folder / f"{name}.yaml", service("s", f"10.96.0.{number}"))
    assert names_of(DirectorySource(folder, keep=keep)) == {"s": "1"}
    folder.rename(tmp_path / "aside")
    source = DirectorySource(folder, keep=keep)
    assert names_of(source) == {"s": "1"}
    (tmp_path / "aside").rename(folder)
    (folder / f"{min(names)}.yaml").unlink()
    assert source.refresh()
    assert names_of(source) == {"s": "2"}


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("emptied", [True, False])
def test_what_was_taken_away_does_not_come_back_without_the_folder(
    tmp_path: Path, running: bool, emptied: bool
) -> None:
    """A policy whose file was deleted, or commented out, while the daemon ran or not."""
    folder, keep = tmp_path / "manifests", tmp_path / "keep"
    folder.mkdir()
    put(folder / "a.yaml", service("a"))
    put(folder / "b.yaml", service("b"))
    source = DirectorySource(folder, keep=keep)
    if emptied:
        put(folder / "a.yaml", "# nothing\n")
    else:
        (folder / "a.yaml").unlink()
    if running:
        source.refresh()
        source.remember()
    assert names_of(DirectorySource(folder, keep=keep)) == {"b": "1"}
    put(folder / "a.yaml", "kind: [")
    assert names_of(DirectorySource(folder, keep=keep)) == {"b": "1"}
    folder.rename(tmp_path / "aside")
    assert names_of(DirectorySource(folder, keep=keep)) == {"b": "1"}


def test_an_empty_copy_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "0.yaml").write_text("")
    assert names_of(DirectorySource(tmp_path / "manifests", keep=tmp_path / "keep")) == {}


def test_a_version_that_was_good_for_another_release_stands_in_for_nothing(tmp_path: Path) -> None:
    folder, keep = tmp_path / "manifests", tmp_path / "keep"
    folder.mkdir()
    put(folder / "a.yaml", service("a"))
    DirectorySource(folder, keep=keep)
    for path in (folder / "a.yaml", *keep.iterdir()):
        path.write_text(path.read_text().replace("10.96.0.1", "10.96.0.300"))
    source = DirectorySource(folder, keep=keep)
    assert names_of(source) == {}
    assert [broken.kept for broken in source.snapshot().broken] == [False]


def test_a_status_that_cannot_be_read_leaves_the_object(tmp_path: Path) -> None:
    manifests, status = tmp_path / "manifests", tmp_path / "status"
    manifests.mkdir()
    status.mkdir()
    put(manifests / "a.yaml", service("a"))
    put(status / "s.yaml", STATUS.format(name="a", address="1.2.3.400"))
    source = DirectorySource(manifests, status)
    assert names_of(source) == {"a": "1"}
    (broken,) = source.snapshot().broken
    assert broken.kept and "1.2.3.400" in str(broken)


def test_what_only_looks_the_same_is_read_again(tmp_path: Path) -> None:
    """To Python 0 is False, to a field it is not."""
    source = DirectorySource(tmp_path)
    for text, taken in (("0", False), ("false", True), ("1", False)):
        put(tmp_path / "a.yaml", service("a").replace("clusterIP", f"allocateLoadBalancerNodePorts: {text}, clusterIP"))
        source.refresh()
        assert (source.snapshot().broken == ()) == taken


def test_a_policy_that_python_takes_for_the_same_is_another(tmp_path: Path) -> None:
    policy = """
    apiVersion: cilium.io/v2
    kind: CiliumNetworkPolicy
    metadata: {name: p, namespace: ns}
    spec: {endpointSelector: {}, ingress: [{}], enableDefaultDeny: {ingress: %s}}
    """
    source = DirectorySource(tmp_path)
    for text in ("1", "true", "1.0"):
        put(tmp_path / "a.yaml", policy % text)
        assert source.refresh()
        assert not source.refresh()


def test_of_a_document_that_counts_for_nothing_one_thing_is_said(tmp_path: Path) -> None:
    put(tmp_path / "a.yaml", service("a"))
    put(tmp_path / "b.yaml", service("a", "10.96.0.300"))
    (broken,) = DirectorySource(tmp_path).snapshot().broken
    assert "is defined in a.yaml already" in str(broken)


def test_what_is_refused_stays_so_whatever_else_changes(tmp_path: Path) -> None:
    put(tmp_path / "a.yaml", service("a", "10.96.0.300") + service("b"))
    source = DirectorySource(tmp_path)
    put(tmp_path / "c.yaml", service("c"))
    assert source.refresh()
    assert names(source.snapshot()) == {"b": "1", "c": "1"}
    (broken,) = source.snapshot().broken
    assert not broken.kept and "10.96.0.300" in str(broken)


def test_the_pods_of_a_namespace_that_was_never_read_are_not_known(tmp_path: Path) -> None:
    """A policy may select them by its labels."""
    head = "apiVersion: v1\nkind: {}\nmetadata: {{name: {}, {}}}\n"
    for name in "ab":
        put(tmp_path / f"pod-{name}.yaml", head.format("Pod", name, f"namespace: {name}"))
    put(tmp_path / "b.yaml", head.format("Namespace", "b", "labels: {agents: true}"))
    source = DirectorySource(tmp_path)
    assert [pod.meta.name for pod in source.snapshot().all(Pod)] == ["a"], "nobody has to write one"
    put(tmp_path / "b.yaml", head.format("Namespace", "b", "labels: {agents: 'true'}"))
    assert source.refresh()
    put(tmp_path / "b.yaml", head.format("Namespace", "b", "labels: {agents: true}"))
    assert source.refresh()
    assert [pod.meta.name for pod in source.snapshot().all(Pod)] == ["a", "b"], "its last good version counts"


def test_a_namespace_that_stands_in_a_file_twice_is_known(tmp_path: Path) -> None:
    """Two charts, each with its own, in one file."""
    namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n"
    put(tmp_path / "a.yaml", 2 * namespace + "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: a}\n")
    snapshot = DirectorySource(tmp_path).snapshot()
    assert [pod.meta.name for pod in snapshot.all(Pod)] == ["p"]
    assert "is defined twice in this file" in str(snapshot.broken[0])


def test_an_upside_down_pool_leaves_the_pool_that_was(tmp_path: Path) -> None:
    head = "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: p, namespace: m}\n"
    pool = head + "spec: {addresses: [%s]}\n"
    put(tmp_path / "p.yaml", pool % "192.168.86.5-192.168.86.19")
    source = DirectorySource(tmp_path)
    put(tmp_path / "p.yaml", pool % "192.168.86.19-192.168.86.5")
    source.refresh()
    (kept,) = source.snapshot().all(IPAddressPool)
    assert str(kept.ranges[0]) == "192.168.86.5-192.168.86.19"
    assert "spec.addresses[0]: '192.168.86.19-192.168.86.5' is upside down" in str(source.snapshot().broken[0])


def test_a_change_on_disk_wakes_the_watcher(tmp_path: Path) -> None:
    async def main() -> list[dict[str, str]]:
        seen = []
        source = DirectorySource(tmp_path)
        async for snapshot in source.watch():
            seen.append(names(snapshot))
            if len(seen) == 1:
                put(tmp_path / "a.yaml", service("a"))
            elif len(seen) == 2:
                (tmp_path / "a.yaml").unlink()
            else:
                return seen
        raise AssertionError("the watch ended")

    assert asyncio.run(asyncio.wait_for(main(), 10)) == [{}, {"a": "1"}, {}]


def test_what_is_broken_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "a.yaml", "kind: [")
    source = DirectorySource(tmp_path)
    put(tmp_path / "b.yaml", service("b"))
    source.refresh()
    assert len([r for r in caplog.records if "a.yaml" in r.message]) == 1


def test_a_folder_that_vanishes_has_deleted_nothing(tmp_path: Path) -> None:
    manifests, keep = tmp_path / "m", tmp_path / "keep"
    manifests.mkdir()
    put(manifests / "a.yaml", service("a"))
    source = DirectorySource(manifests, keep=keep)
    manifests.rename(tmp_path / "elsewhere")
    assert source.refresh()
    restarted = DirectorySource(manifests, keep=keep)
    for one in (source, restarted):
        assert names(one.snapshot()) == {"a": "1"}
        assert "(content): cannot be read: No such file or directory" in str(one.snapshot().broken[0])
        assert not one.refresh()
    manifests.mkdir()
    put(manifests / "b.yaml", service("b"))
    for one in (source, restarted):
        assert one.refresh()
        assert names(one.snapshot()) == {"b": "1"} and one.snapshot().broken == ()


def test_a_look_at_named_files_sees_these_and_what_is_gone(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path)
    for name in "ab":
        put(tmp_path / f"{name}.yaml", service(name))
    assert source.refresh({f"{tmp_path}/a.yaml", f"{tmp_path}/.b.yaml", f"{tmp_path}/.git/c.yaml", "/elsewhere/d.yaml"})
    assert names(source.snapshot()) == {"a": "1"}
    assert not source.refresh(set())
    (tmp_path / "a.yaml").unlink()
    assert source.refresh({f"{tmp_path}/a.yaml"})
    assert names(source.snapshot()) == {"b": "1"}


def test_a_file_that_went_with_its_folder_is_not_deleted(tmp_path: Path) -> None:
    manifests = tmp_path / "m"
    manifests.mkdir()
    put(manifests / "a.yaml", service("a"))
    source = DirectorySource(manifests)
    manifests.rename(tmp_path / "away")
    source.refresh({f"{manifests}/a.yaml"})
    assert names(source.snapshot()) == {"a": "1"} and "cannot be read" in str(source.snapshot().broken[0])


def test_a_link_that_leads_nowhere_is_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """What it led to may be on a disk that is not mounted yet."""
    manifests, disk, keep = tmp_path / "m", tmp_path / "disk", tmp_path / "keep"
    manifests.mkdir()
    disk.mkdir()
    put(disk / "a.yaml", service("a"))
    (manifests / "a.yaml").symlink_to(disk / "a.yaml")
    put(manifests / "b.yaml", service("b"))
    source = DirectorySource(manifests, keep=keep)
    disk.rename(tmp_path / "away")
    put(manifests / "b.yaml", service("b", "10.96.0.2"))
    source.refresh()
    source.remember()
    for one in (source, DirectorySource(manifests, keep=keep)):
        assert names_of(one) == {"a": "1", "b": "2"}
        (broken,) = one.snapshot().broken
        assert broken.file == "a.yaml" and broken.kept and "No such file" in str(broken)
    (tmp_path / "away").rename(disk)
    assert source.refresh() and source.snapshot().broken == ()
    (manifests / "a.yaml").unlink()
    assert source.refresh() and names_of(source) == {"b": "2"}


def test_files_that_link_through_a_hidden_one_change_with_it(tmp_path: Path) -> None:
    """As the kubelet writes a ConfigMap's volume."""

    def swap(version: str) -> None:
        (tmp_path / "..new").symlink_to(version)
        (tmp_path / "..new").rename(tmp_path / "..data")

    for version in ("..1", "..2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "a.yaml").write_text(service("a", f"10.96.0.{version[-1]}"))

    async def main() -> None:
        swap("..1")
        (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
        source = DirectorySource(tmp_path)
        async for snapshot in source.watch():
            if names(snapshot) == {"a": "2"}:
                return
            swap("..2")

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_folder_that_never_was_is_said_and_awaited(tmp_path: Path) -> None:
    manifests = tmp_path / "m"

    async def main() -> list[dict[str, str]]:
        seen = []
        source = DirectorySource(manifests)
        assert "cannot be read" in str(source.snapshot().broken[0])
        async for snapshot in source.watch():
            seen.append(names(snapshot))
            if len(seen) == 1:
                manifests.mkdir()
                put(manifests / "a.yaml", service("a"))
            if seen[-1]:
                return seen
        raise AssertionError("the watch ended")

    assert asyncio.run(asyncio.wait_for(main(), 10))[-1] == {"a": "1"}

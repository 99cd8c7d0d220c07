from pathlib import Path

import yaml

from netstack.core.ref import Ref
from netstack.source.status import StatusFolder


def test_one_file_an_object_in_the_api_form(tmp_path: Path) -> None:
    folder = StatusFolder(tmp_path)
    ref = Ref("Service", "ingress-nginx", "controller")
    status = {"loadBalancer": {"ingress": [{"ip": "192.168.86.18"}]}}
    assert folder.put(ref, status)
    assert not folder.put(ref, status)
    document = yaml.safe_load((tmp_path / "service.ingress-nginx.controller.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("v1", "Service")
    assert document["metadata"] == {"name": "controller", "namespace": "ingress-nginx"}
    assert document["status"] == status
    assert folder.delete(ref) and not folder.delete(ref)


def test_a_cluster_scoped_object_has_no_namespace(tmp_path: Path) -> None:
    folder = StatusFolder(tmp_path)
    folder.put(Ref("Node", "", "n1"), {})
    assert (tmp_path / "node._.n1.yaml").exists()


def test_the_longest_names_have_files_of_their_own(tmp_path: Path) -> None:
    folder = StatusFolder(tmp_path)
    one, two = (Ref("CiliumNetworkPolicy", "n" * 63, "x" * 252 + last) for last in "ab")
    for ref in (one, two):
        folder.put(ref, {"of": ref.name})
        assert yaml.safe_load(folder.file(ref).read_text())["status"] == {"of": ref.name}
    folder.keep("CiliumNetworkPolicy", {two})
    assert [path.name for path in tmp_path.iterdir()] == [folder.file(two).name]

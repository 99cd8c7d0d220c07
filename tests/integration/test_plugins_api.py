"""The module network_policy's way to a real API server, with the product's own definitions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instruments.plane import control_plane
from lab.controlplane import ControlPlane

ROOT = Path(__file__).parents[2]
tree = subprocess.run([str(ROOT / "tests/collection-tree.sh")], capture_output=True, text=True, check=True)
sys.path.insert(0, tree.stdout.strip())

from ansible_collections.kubelab.netstack.plugins.plugin_utils import _api  # noqa: E402 - the path above is where it is

pytestmark = pytest.mark.root

TRIAL = {"annotations": {_api.TRIAL: "true"}}
POLICIES: dict[str, dict[str, Any]] = {
    "NetworkPolicy": {"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]},
    "CiliumNetworkPolicy": {"endpointSelector": {}, "egress": [{"toEntities": ["world"]}]},
    "CiliumClusterwideNetworkPolicy": {"endpointSelector": {}, "egress": [{"toEntities": ["world"]}]},
}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane")) as running:
        running.apply_crds()
        yield running


def policy(kind: str, spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    version, _, namespaced = _api.PLACES[kind]
    place = {"namespace": "default"} if namespaced else {}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "p", **place, **metadata}, "spec": spec}


@pytest.mark.parametrize("kind", POLICIES)
def test_the_twelve_steps(kind: str, plane: ControlPlane) -> None:
    request = _api.connect(str(plane.user("admin") / "kubeconfig"))
    client = plane.client()
    steps = [
        (policy(kind, POLICIES[kind], **TRIAL), True),
        (policy(kind, POLICIES[kind]), True),
        (policy(kind, POLICIES[kind] | {"ingress": []}), True),
        (policy(kind, {}), False),
    ]
    for number, (wanted, present) in enumerate(steps):
        found = [_api.ensure(request, wanted, present=present, dry_run=dry) for dry in (True, False, True, False)]
        assert [one.changed for one in found] == [True, True, False, False], number
        assert (found[0].before, found[0].after) == (found[1].before, found[1].after)
        stored = client.get(kind, wanted["metadata"].get("namespace", ""), "p")
        assert (stored is not None) == present
        assert _api.essence(stored) == found[1].after
        if present:
            assert bool(found[1].after["metadata"].get("annotations")) == (number == 0)
    client.close()


def test_what_the_server_refuses_is_said_in_its_words(plane: ControlPlane) -> None:
    request = _api.connect(str(plane.user("admin") / "kubeconfig"))
    wrong = policy("NetworkPolicy", {"podSelector": {}, "ingress": [{"ports": [{"port": 99999}]}]})
    with pytest.raises(_api.ApiError, match=r"post .*/networkpolicies: 422 .*must be between 1 and 65535") as refused:
        _api.ensure(request, wrong, present=True, dry_run=True)
    assert refused.value.code == 422
    nowhere = policy("NetworkPolicy", {"podSelector": {}}, namespace="nowhere")
    with pytest.raises(_api.ApiError, match='namespaces "nowhere" not found'):
        _api.ensure(request, nowhere, present=True, dry_run=False)


def test_a_server_that_is_not_there(plane: ControlPlane, tmp_path: Path) -> None:
    text = (plane.user("admin") / "kubeconfig").read_text().replace(f":{plane.port}", ":1")
    elsewhere = plane.user("admin") / "elsewhere"
    elsewhere.write_text(text)
    with pytest.raises(_api.ApiError, match="cannot be reached"):
        _api.ensure(_api.connect(str(elsewhere)), policy("NetworkPolicy", {}), present=True, dry_run=True)

"""One policy in a stand-in of the API server: it fills in, counts versions, and somebody else writes there too."""

from __future__ import annotations

import copy
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kubelab.netstack.plugins.plugin_utils import _api

PATH = "/apis/networking.k8s.io/v1/namespaces/one/networkpolicies"
AUDIT = {_api.TRIAL: "true"}
POLICY: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "p", "namespace": "one"},
    "spec": {"podSelector": {}},
}


class Server:
    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.version = 0
        self.written: list[str] = []
        self.meanwhile: list[Callable[[], None]] = []
        """What others do, one before each write."""

    def __call__(self, method: str, path: str, body: Any, dry_run: bool) -> dict[str, Any]:
        if method != "get" and self.meanwhile:
            self.meanwhile.pop(0)()
        place = f"{path}/{body['metadata']['name']}" if method == "post" else path
        if method == "post" and place in self.objects:
            raise _api.ApiError("exists", 409)
        if method != "post" and place not in self.objects:
            raise _api.ApiError("not found", 404)
        if (
            method == "put"
            and body["metadata"]["resourceVersion"] != self.objects[place]["metadata"]["resourceVersion"]
        ):
            raise _api.ApiError("changed", 409)
        if method == "get":
            return copy.deepcopy(self.objects[place])
        if method == "delete":
            if not dry_run:
                del self.objects[place]
                self.written.append(method)
            return {}
        self.version += 1
        stored = copy.deepcopy(dict(body))
        stored["spec"].setdefault("policyTypes", ["Ingress"])
        stored["metadata"] |= {"resourceVersion": str(self.version), "uid": "u", "managedFields": [{}]}
        if not dry_run:
            self.objects[place] = stored
            self.written.append(method)
        return stored


def twice(server: Server, definition: dict[str, Any], present: bool = True) -> list[bool]:
    """Whether something changes: check, do, check, do."""
    return [_api.ensure(server, definition, present=present, dry_run=dry).changed for dry in (True, False) * 2]


def test_the_twelve_steps() -> None:
    server = Server()
    assert twice(server, POLICY) == [True, True, False, False]
    assert twice(server, POLICY | {"spec": {"podSelector": {}, "policyTypes": ["Egress"]}}) == [
        True,
        True,
        False,
        False,
    ]
    assert twice(server, POLICY, present=False) == [True, True, False, False]
    assert server.objects == {}
    assert server.written == ["post", "put", "put", "put", "delete"]


def test_what_changes_is_told_as_an_author_writes_it() -> None:
    server = Server()
    change = _api.ensure(server, POLICY, present=True, dry_run=True)
    assert change.after == POLICY | {"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}
    assert change.before is None and server.objects == {}
    _api.ensure(server, POLICY, present=True, dry_run=False)
    gone = _api.ensure(server, POLICY, present=False, dry_run=True)
    assert (gone.before, gone.after) == (change.after, None)


def test_what_others_write_stays_but_a_trial_ends() -> None:
    server = Server()
    metadata = {"name": "p", "namespace": "one", "annotations": {**AUDIT, "theirs": "1"}, "labels": {"theirs": "1"}}
    _api.ensure(server, POLICY | {"metadata": metadata}, present=True, dry_run=False)
    assert twice(server, POLICY | {"metadata": {**POLICY["metadata"], "labels": {"own": "2"}}})[1:3] == [True, False]
    stored = server.objects[f"{PATH}/p"]["metadata"]
    assert (stored["annotations"], stored["labels"]) == ({"theirs": "1"}, {"theirs": "1", "own": "2"})


def test_two_hosts_at_once_make_one_change() -> None:
    server = Server()
    server.meanwhile = [lambda: _api.ensure(server, POLICY, present=True, dry_run=False) and None]
    assert _api.ensure(server, POLICY, present=True, dry_run=False).changed is False
    server.meanwhile = [lambda: _api.ensure(server, POLICY, present=False, dry_run=False) and None]
    assert _api.ensure(server, POLICY, present=False, dry_run=False).changed is False
    _api.ensure(server, POLICY, present=True, dry_run=False)
    server.meanwhile = [server.objects.clear]
    assert _api.ensure(server, POLICY | {"spec": {}}, present=True, dry_run=False).before is None
    server.objects[f"{PATH}/p"] = {}

    def contest() -> None:
        server.version += 1
        server.objects[f"{PATH}/p"] = copy.deepcopy(POLICY)
        server.objects[f"{PATH}/p"]["metadata"]["resourceVersion"] = str(server.version)

    contest()
    server.meanwhile = [contest] * _api.TRIES
    with pytest.raises(_api.ApiError, match="others change it all the time"):
        _api.ensure(server, POLICY, present=True, dry_run=False)


def test_kinds_of_cilium_and_no_namespace() -> None:
    server = Server()
    wide = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "w"},
        "spec": {},
    }
    assert twice(server, wide) == [True, True, False, False]
    assert list(server.objects) == ["/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies/w"]
    _api.ensure(server, POLICY | {"metadata": {"name": "p"}}, present=True, dry_run=False)
    assert f"{PATH.replace('one', 'default')}/p" in server.objects


def test_a_refusal_passes() -> None:
    def refuse(*_unused: Any) -> dict[str, Any]:
        raise _api.ApiError("forbidden", 403)

    with pytest.raises(_api.ApiError, match="forbidden"):
        _api.ensure(refuse, POLICY, present=True, dry_run=False)


def test_a_kubeconfig_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kubernetes")
    with pytest.raises(_api.ApiError, match=f"{tmp_path}/none: "):
        _api.connect(str(tmp_path / "none"))
    for text in ("a: [", "[]", "contexts: 1\ncurrent-context: x\n"):
        (tmp_path / "none").write_text(text)
        with pytest.raises(_api.ApiError, match=f"{tmp_path}/none: "):
            _api.connect(str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(_api.ApiError, match="the Python package kubernetes on the controller"):
        _api.connect(str(tmp_path / "none"))


class Portal(BaseHTTPRequestHandler):
    """Says the same whatever it is asked."""

    said = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.said)))
        self.end_headers()
        self.wfile.write(self.said)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[Callable[[str], _api.Request]]:
    """How to connect to it with a token."""
    pytest.importorskip("kubernetes")
    with ThreadingHTTPServer(("127.0.0.1", 0), Portal) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()

        def connect(token: str) -> _api.Request:
            config = {
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
                "users": [{"name": "u", "user": {"token": token}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
            (tmp_path / "kubeconfig").write_text(json.dumps(config))
            return _api.connect(str(tmp_path / "kubeconfig"))

        yield connect
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("said", [b"<html>log in</html>", b"[]", b"null", b"{}", b'{"metadata": null}'])
def test_who_is_no_api_server_is_said_so(portal: Callable[[str], _api.Request], said: bytes) -> None:
    Portal.said = said
    with pytest.raises(_api.ApiError, match=f"get {PATH}/p: the answer is not an API server's"):
        _api.ensure(portal("t"), POLICY, present=True, dry_run=False)


def test_a_token_that_cannot_be_sent_is_not_shown(portal: Callable[[str], _api.Request]) -> None:
    with pytest.raises(_api.ApiError) as caught:
        _api.ensure(portal("hushed\nhushed"), POLICY, present=True, dry_run=False)
    assert str(caught.value).endswith("kubeconfig: the user's token is not one line")

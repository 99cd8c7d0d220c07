"""A scripted API server: real TLS, real HTTP, and any fault on request.

    with ApiServer(tmp_path) as server:
        server.put(service("a"))
        source = KubernetesSource(str(server.kubeconfig), wants, tmp_path / "good")
        server.fault = lambda request: 500 if request.kind == "Pod" else None

It knows the kinds of netstack.source.resources, keeps their history, and speaks list (paged), watch (bookmarks, resume,
410), get, post, merge patch (status apart, resourceVersion checked) and delete. What no test looks at it does not do.
"""

from __future__ import annotations

import bisect
import copy
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from instruments.authority import Authority
from netstack.core.ref import Ref
from netstack.source.parse import reference
from netstack.source.resources import RESOURCES

Raw = dict[str, Any]
PATH = re.compile(r"/apis?/(?P<version>v1|[^/]+/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z0-9]+)"
                  r"(?:/(?P<name>[^/]+))?(?:/(?P<part>status))?$")  # fmt: skip
GARBAGE = b'<html>"}{\x00\xff this is a captive portal</html>\n'


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    kind: str
    at: float

    @property
    def watch(self) -> bool:
        return "watch" in self.query

    @property
    def list(self) -> bool:
        return self.method == "GET" and not self.watch and self.kind != "" and "kube-system" not in str(self.query)


Fault = int | str | None
"""An HTTP status; or "garbage", "cut" (within the answer or an event), "hang" (no answer until released), "drop" (no
answer, connection closed), "slow" (a pause before each answer), "error" (a watch's event of type ERROR)."""


@dataclass(slots=True)
class _Event:
    version: int
    kind: str
    before: Raw | None
    after: Raw | None


@dataclass
class ApiServer:
    folder: Path
    fault: Callable[[Request], Fault] = field(default=lambda request: None)
    missing: set[str] = field(default_factory=set)
    """Kinds without a definition."""
    terminating: set[str] = field(default_factory=set)
    """Kinds whose definition is being deleted."""
    older: set[str] = field(default_factory=set)
    """Kinds that their definition serves in an older version alone."""
    forbidden: set[str] = field(default_factory=set)
    message: str = "as scripted"
    """Of what is refused."""
    retry_after: int = 1
    slow_s: float = 0.1
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.authority = Authority(self.folder)
        self.accepted = {"node"}
        """Names in client certificates, and tokens, that are let in."""
        self.released = threading.Event()
        self.news = threading.Condition()
        self.objects: dict[Ref, Raw] = {}
        self.events: list[_Event] = []
        self.pages: dict[str, tuple[int, list[Raw]]] = {}
        self.version, self.compacted = 0, 0
        self.bookmark_s = 0.2
        self._server: _Server | None = None
        self.port = 0
        self.wipe()

    # the test's side -----------------------------------------------------------------------------------------------

    def __enter__(self) -> ApiServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        self.released.clear()
        self._server = _Server(self, self.port)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """As `kill -9`: nothing listens, and every connection is gone."""
        server, self._server = self._server, None
        if server is not None:
            self.released.set()
            server.end()

    @property
    def kubeconfig(self) -> Path:
        return self.write_kubeconfig("node")

    def write_kubeconfig(self, user: str) -> Path:
        """With file paths; the certificate is the user's."""
        certificate, key = self.authority.issue(user)
        path = self.folder / "kubeconfig"
        config = {
            "clusters": [
                {
                    "name": "c",
                    "cluster": {
                        "server": f"https://127.0.0.1:{self.port}",
                        "certificate-authority": str(self.authority.certificate),
                    },
                }
            ],
            "users": [{"name": "u", "user": {"client-certificate": str(certificate), "client-key": str(key)}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def put(self, raw: Mapping[str, Any]) -> Raw:
        """Create or replace an object as its author would."""
        with self.news:
            ref = reference(raw)
            before = self.objects.get(ref)
            after = copy.deepcopy(dict(raw))
            after["metadata"].setdefault("uid", before["metadata"]["uid"] if before else str(uuid.uuid4()))
            if before and "status" in before and "status" not in raw:
                after["status"] = before["status"]
            return self._commit(ref, after)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        with self.news:
            self._commit(Ref(kind, namespace, name), None)

    def wipe(self) -> None:
        """A new etcd: nothing is there, and versions begin anew."""
        with self.news:
            self.objects.clear(), self.events.clear(), self.pages.clear()
            self.version = self.compacted = 0
            name = {"metadata": {"name": "kube-system", "uid": str(uuid.uuid4())}}
            self._commit(Ref("Namespace", "", "kube-system"), {"apiVersion": "v1", "kind": "Namespace", **name})

    def compact(self) -> None:
        """Forget the past: watches from an older version, and half-read lists, are answered with 410."""
        with self.news:
            self.compacted = self.version
            self.pages.clear()
            self.news.notify_all()

    def cut(self) -> None:
        """Close every open connection."""
        if self._server is not None:
            self._server.cut()

    def count(self, **matching: Any) -> int:
        return sum(all(getattr(r, name) == value for name, value in matching.items()) for r in list(self.requests))

    def _commit(self, ref: Ref, after: Raw | None) -> Raw:
        before = self.objects.get(ref)
        self.version += 1
        if after is None:
            del self.objects[ref]
        else:
            after["metadata"]["resourceVersion"] = str(self.version)
            self.objects[ref] = after
        self.events.append(_Event(self.version, ref.kind, before, after))
        self.news.notify_all()
        return after or {}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, api: ApiServer, port: int) -> None:
        self.api = api
        self.open: set[socket.socket] = set()
        self.context = api.authority.server_context()
        super().__init__(("127.0.0.1", port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        sock, address = super().get_request()
        wrapped = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self.open.add(wrapped)
        return wrapped, address

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of the test's business."""

    def cut(self) -> None:
        for sock in list(self.open):
            try:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                self.open.discard(sock)

    def end(self) -> None:
        self.shutdown()
        self.server_close()
        with self.api.news:
            self.api.news.notify_all()
        self.cut()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PATCH = do_DELETE = do_GET

    def _serve(self) -> None:
        api, parts = self.server.api, urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match = PATH.match(parts.path)
        served = {r.kind: r.older if r.kind in api.older else r.version for r in RESOURCES.values()}
        kinds = {(served[r.kind], r.plural): r.kind for r in RESOURCES.values()}
        kinds[("events.k8s.io/v1", "events")] = "Event"
        kind = kinds.get((match["version"], match["plural"]), "") if match else ""
        request = Request(self.command, parts.path, dict(parse_qsl(parts.query)), kind, time.monotonic())
        api.requests.append(request)
        fault = api.fault(request)
        if fault == "slow":
            time.sleep(api.slow_s)
        elif fault == "hang":
            api.released.wait()
            fault = "drop"
        if fault == "drop":
            self.close_connection = True
        elif fault == "garbage" and not request.watch:
            self._raw(200, GARBAGE)
        elif isinstance(fault, int):
            self._error(fault, api.message)
        elif not self._known():
            self._error(401)
        elif kind in api.forbidden:
            self._error(403, f"{kind} is forbidden")
        elif "customresourcedefinitions/" in parts.path:
            self._definition(parts.path.rpartition("/")[2])
        elif not match or not kind or kind in api.missing:
            self._error(404)
        elif request.watch:
            self._watch(request, fault)
        else:
            getattr(self, f"_{self.command.lower()}")(request, match.groupdict(), fault)

    def _known(self) -> bool:
        certificate = dict(pair for item in (self.connection.getpeercert() or {}).get("subject", ()) for pair in item)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return bool({certificate.get("commonName"), token} & self.server.api.accepted)

    # answers ---------------------------------------------------------------------------------------------------------

    def _raw(self, code: int, data: bytes, cut: bool = False) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code == 429:
            self.send_header("Retry-After", str(self.server.api.retry_after))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    def _json(self, code: int, data: Any, fault: Fault = None) -> None:
        self._raw(code, json.dumps(data).encode(), cut=fault == "cut")

    def _error(self, code: int, message: str = "as scripted") -> None:
        self._json(code, {"kind": "Status", "apiVersion": "v1", "code": code, "message": message})

    def _definition(self, name: str) -> None:
        kind = next((r.kind for r in RESOURCES.values() if r.crd and r.definition == name), "")
        if not kind or kind in self.server.api.missing:
            self._error(404)
            return
        ending = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if kind in self.server.api.terminating else {}
        self._json(200, {"kind": "CustomResourceDefinition", "metadata": {"name": name, **ending}})

    def _get(self, request: Request, at: Mapping[str, str], fault: Fault) -> None:
        api = self.server.api
        with api.news:
            if at["name"]:
                found = api.objects.get(Ref(request.kind, at["namespace"] or "", at["name"]))
                answer = (200, found) if found else (404, None)
            else:
                answer = self._page(request, at["namespace"])
        if answer[0] == 200:
            self._json(*answer, fault)
        else:
            self._error(answer[0])

    def _page(self, request: Request, namespace: str | None) -> tuple[int, Any]:
        api, token = self.server.api, request.query.get("continue")
        if token is None:
            held = [(ref, o) for ref, o in sorted(api.objects.items()) if namespace in (None, ref.namespace)]
            items = [o for ref, o in held if ref.kind == request.kind and _matches(o, request)]
            version = api.version
        elif token in api.pages:
            version, items = api.pages[token]
        else:
            return 410, None
        limit = int(request.query.get("limit", 1 << 30))
        metadata = {"resourceVersion": str(version)}
        if items[limit:]:
            metadata["continue"] = uuid.uuid4().hex
            api.pages[metadata["continue"]] = (version, items[limit:])
        bare = [{name: part for name, part in o.items() if name not in ("kind", "apiVersion")} for o in items[:limit]]
        return 200, {"kind": f"{request.kind}List", "apiVersion": "v1", "metadata": metadata, "items": bare}

    def _post(self, request: Request, at: Mapping[str, str], fault: Fault) -> None:
        made = json.loads(self.body)
        if reference(made) in self.server.api.objects:
            self._error(409)
            return
        self._json(201, self.server.api.put(made), fault)

    def _delete(self, request: Request, at: Mapping[str, str], fault: Fault) -> None:
        ref = Ref(request.kind, at["namespace"] or "", at["name"])
        if ref not in self.server.api.objects:
            self._error(404)
            return
        self.server.api.delete(ref.kind, ref.namespace, ref.name)
        self._json(200, {"kind": "Status", "status": "Success"}, fault)

    def _patch(self, request: Request, at: Mapping[str, str], fault: Fault) -> None:
        api, body = self.server.api, json.loads(self.body)
        ref = Ref(request.kind, at["namespace"] or "", at["name"])
        with api.news:
            old = api.objects.get(ref)
            expected = body.get("metadata", {}).pop("resourceVersion", None)
            if old is None:
                self._error(404)
                return
            if expected not in (None, old["metadata"]["resourceVersion"]):
                self._error(409)
                return
            whole = {"status": body.get("status")} if at["part"] else {k: v for k, v in body.items() if k != "status"}
            new = _merge(old, whole)
            if new != old:
                api._commit(ref, new)
        self._json(200, new, fault)

    def _watch(self, request: Request, fault: Fault) -> None:
        api, since = self.server.api, int(request.query["resourceVersion"])
        if since < api.compacted:
            self._error(410, "too old resource version")
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end, bookmark = time.monotonic() + float(request.query["timeoutSeconds"]), time.monotonic() + api.bookmark_s
        if fault == "error":
            self._chunk({"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "as scripted"}})
            self._bytes(b"")
            return
        position = bisect.bisect_right(api.events, since, key=lambda event: event.version)
        while time.monotonic() < end:
            with api.news:
                fresh = api.events[position:]
                if not fresh and time.monotonic() < bookmark:
                    api.news.wait(min(end, bookmark) - time.monotonic())
                position = position if not fresh else position + len(fresh)
                version = api.version
            if self.server.api._server is not self.server:
                return
            for event in fresh:
                text = _seen(event, request)
                if text is not None:
                    if fault == "cut":
                        self._chunk(text, cut=True)
                        return
                    self._chunk(text) if fault != "garbage" else self._bytes(GARBAGE)
            if time.monotonic() >= bookmark and version >= since:
                metadata = {"resourceVersion": str(version)}
                self._chunk({"type": "BOOKMARK", "object": {"kind": request.kind, "metadata": metadata}})
                since, bookmark = version, time.monotonic() + api.bookmark_s
        self._bytes(b"")

    def _chunk(self, event: Raw, cut: bool = False) -> None:
        data = json.dumps(event).encode() + b"\n"
        self._bytes(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    def _bytes(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


def _seen(event: _Event, request: Request) -> Raw | None:
    """The event as a watch with these selectors sees it."""
    if event.kind != request.kind:
        return None
    namespace = PATH.match(request.path)["namespace"]  # type: ignore[index]
    if namespace and namespace != ((event.after or event.before or {})["metadata"].get("namespace")):
        return None
    before = event.before is not None and _matches(event.before, request)
    after = event.after is not None and _matches(event.after, request)
    if not before and not after:
        return None
    kind = "MODIFIED" if before and after else "ADDED" if after else "DELETED"
    shown = event.after if after else event.before
    assert shown is not None
    head = {"resourceVersion": str(event.version)}
    return {"type": kind, "object": {**shown, "metadata": {**shown["metadata"], **head}}}


def _matches(item: Raw, request: Request) -> bool:
    for term in filter(None, request.query.get("fieldSelector", "").split(",")):
        path, negated, value = re.match(r"([^!=]+)(!?)=+(.*)", term).groups()  # type: ignore[union-attr]
        found: Any = item
        for name in path.split("."):
            found = (found or {}).get(name)
        if (str(found or "") == value) == bool(negated):
            return False
    labels = item["metadata"].get("labels") or {}
    return all(
        labels.get(name) == value
        for name, _, value in (t.partition("=") for t in request.query.get("labelSelector", "").split(",") if t)
    )


def _merge(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merge(result.get(name), value)
    return copy.deepcopy(result)

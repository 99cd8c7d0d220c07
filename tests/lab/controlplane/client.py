"""A thin client of the API server, as cluster administrator: what a test does with kubectl.

It finds resources by kind through the server's own discovery, so custom resources need no table here. The server may
live in another network namespace than ours: then only the socket is made there.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lab.objects import Object, documents, key
from lab.shell import wait_until

CLONE_NEWNET = 0x40000000  # setns(2)
DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
MANAGER = "lab"  # of the fields that `apply` sets (server-side apply)
GONE_TIMEOUT_S = 30.0
# What the server gave to an object that was read, and must not be given back.
SERVERS_OWN = ("managedFields", "resourceVersion", "uid", "creationTimestamp", "generation")


class ApiError(Exception):
    """The API server refused a request; `code` is HTTP's, `reason` the Status object's (or "" if there was none)."""

    def __init__(self, request: str, code: int, reason: str, message: str) -> None:
        super().__init__(f"{request}: {code} {reason}: {message}")
        self.code, self.reason = code, reason


@dataclass(frozen=True, slots=True)
class Resource:
    """Where objects of a kind are found."""

    kind: str
    group_version: str  # "v1", "networking.k8s.io/v1"
    plural: str
    namespaced: bool
    has_status: bool

    def path(self, namespace: str = "", name: str = "", part: str = "") -> str:
        root = "api" if "/" not in self.group_version else "apis"
        within = ["namespaces", namespace] if self.namespaced and namespace else []
        return "/" + "/".join(filter(None, [root, self.group_version, *within, self.plural, name, part]))


def connect(address: str, port: int, netns: Path | None, timeout_s: float) -> socket.socket:
    """A TCP connection from a network namespace (None: our own). A socket stays in the one that it was made in."""

    def enter_and_connect(netns: Path) -> socket.socket:
        with netns.open() as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, f"setns {netns}: {os.strerror(number)}")
        return socket.create_connection((address, port), timeout_s)

    if netns is None:
        return socket.create_connection((address, port), timeout_s)
    with ThreadPoolExecutor(1) as thread:  # only this thread enters, and it ends
        return thread.submit(enter_and_connect, netns).result()


class Connection(http.client.HTTPSConnection):
    """Kept open between requests."""

    def __init__(self, address: str, port: int, context: ssl.SSLContext, netns: Path | None, timeout_s: float) -> None:
        super().__init__(address, port, timeout=timeout_s, context=context)
        self._tls, self._netns, self._timeout_s = context, netns, timeout_s

    def connect(self) -> None:
        plain = connect(self.host, self.port, self._netns, self._timeout_s)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


class Client:
    """Not for several threads at once. Raises ApiError, and OSError if the server does not answer."""

    def __init__(
        self,
        address: str,
        port: int,
        *,
        ca: Path,
        certificate: Path,
        key: Path,
        netns: Path | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        context = ssl.create_default_context(cafile=str(ca))
        context.load_cert_chain(certificate, key)
        self._connection = Connection(address, port, context, netns, timeout_s)
        self._resources: dict[str, Resource] = {}

    def close(self) -> None:
        self._connection.close()

    # Objects

    def apply(self, source: Path | str | Object | Iterable[Object]) -> list[Object]:
        """Create objects or make them what they are said to be, their status too; returns them as stored."""
        return [self._apply(document) for document in documents(source)]

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """An object; `namespace` is "" for a cluster-scoped one."""
        try:
            found: Object = self.request("GET", self.resource(kind).path(namespace, name))
        except ApiError as error:
            if error.code == 404:
                return None
            raise
        return found

    def list(self, kind: str, namespace: str = "", **selectors: str) -> Sequence[Object]:
        """Objects of a kind in a namespace ("": in all), by `labelSelector` and `fieldSelector`."""
        resource = self.resource(kind)
        query = f"?{urlencode(selectors)}" if selectors else ""
        found = self.request("GET", resource.path(namespace) + query)["items"]
        return [{"apiVersion": resource.group_version, "kind": kind, **one} for one in found]

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object at once, and wait until it is gone. Raises ApiError 404."""
        options = {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}
        self.request("DELETE", self.resource(kind).path(namespace, name), options)
        wait_until(lambda: self.get(kind, namespace, name) is None, f"{kind} {namespace}/{name} gone", GONE_TIMEOUT_S)

    def set_status(self, kind: str, namespace: str, name: str, status: Mapping[str, Any]) -> Object:
        """Replace these fields of an object's status."""
        path = self.resource(kind).path(namespace, name, "status")
        stored: Object = self.request("PATCH", path, {"status": status}, "application/merge-patch+json")
        return stored

    def _apply(self, document: Object) -> Object:
        resource = self.resource(document["kind"], document.get("apiVersion"))
        meta = {name: value for name, value in document["metadata"].items() if name not in SERVERS_OWN}
        if resource.namespaced:
            meta.setdefault("namespace", "default")
        wanted = {name: value for name, value in document.items() if name != "status"} | {"metadata": meta}
        path = resource.path(*key(wanted)) + f"?fieldManager={MANAGER}&force=true"
        stored: Object = self.request("PATCH", path, wanted, "application/apply-patch+yaml")
        if document.get("status") and resource.has_status:
            return self.set_status(resource.kind, *key(wanted), document["status"])
        return stored

    # The protocol

    def resource(self, kind: str, group_version: str | None = None) -> Resource:
        """Where a kind is found; asks the server again if it is not known. Raises KeyError."""
        for _ in range(2):
            found = self._resources.get(f"{group_version} {kind}" if group_version else kind)
            if found is not None:
                return found
            self._discover()
        raise KeyError(f"the API server has no {group_version or ''} {kind}")

    def request(
        self, method: str, path: str, body: Any = None, content: str = "application/json", accept: str | None = None
    ) -> Any:
        """One request, and the object that answers it."""
        headers = {"Accept": accept or "application/json", "Content-Type": content}
        data = None if body is None else json.dumps(body)
        answer = self._send(method, path, data, headers)
        text = answer.read()
        if answer.status >= 300:
            raise _refusal(f"{method} {path}", answer.status, text)
        return (
            json.loads(text) if answer.getheader("Content-Type", "").startswith("application/json") else text.decode()
        )

    def _send(self, method: str, path: str, data: str | None, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        # A kept connection may have died unseen, as when the server was restarted; every request may be repeated.
        attempts = 2 if self._connection.sock is not None else 1
        for attempt in range(attempts):
            try:
                self._connection.request(method, path, data, headers)
                return self._connection.getresponse()
            except (http.client.HTTPException, OSError):
                self._connection.close()
                if attempt + 1 == attempts:
                    raise
        raise AssertionError("at least one attempt is made")

    def _discover(self) -> None:
        self._resources.clear()
        for root in ("/api", "/apis"):
            for group in self.request("GET", root, accept=DISCOVERY)["items"]:
                self._learn(group)

    def _learn(self, group: Mapping[str, Any]) -> None:
        name = group.get("metadata", {}).get("name", "")
        for version in group["versions"]:
            group_version = f"{name}/{version['version']}" if name else version["version"]
            for one in version["resources"]:
                kind = one["responseKind"]["kind"]
                parts = {part["subresource"] for part in one.get("subresources", [])}
                namespaced = one["scope"] == "Namespaced"
                found = Resource(kind, group_version, one["resource"], namespaced, "status" in parts)
                self._resources[f"{group_version} {kind}"] = found
                self._resources.setdefault(kind, found)  # the core group comes first, a group's best version too


def _refusal(request: str, code: int, text: bytes) -> ApiError:
    try:
        status = json.loads(text)
        return ApiError(request, code, status.get("reason", ""), status.get("message", ""))
    except (json.JSONDecodeError, AttributeError):
        return ApiError(request, code, "", text.decode(errors="replace").strip())

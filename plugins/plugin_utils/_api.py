# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One policy in the API server, from the controller: present or absent, idempotent, in check mode as a dry run.

Whether something changes is the server's own word: what it would store is compared with what it has, so that what it
fills in is no change. Labels and annotations of others stay, except the one that puts a policy on trial: it is a part
of what the policy means. Several hosts may do the same at once: one of them changes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PLACES = {
    "NetworkPolicy": ("networking.k8s.io/v1", "networkpolicies", True),
    "CiliumNetworkPolicy": ("cilium.io/v2", "ciliumnetworkpolicies", True),
    "CiliumClusterwideNetworkPolicy": ("cilium.io/v2", "ciliumclusterwidenetworkpolicies", False),
}
"""Kind -> API version, name of the collection, whether it has a namespace."""
TRIAL = "netstack.kubelab.io/audit"
TRIES = 5
TIMEOUT_S = 30

Object = Mapping[str, Any]


class ApiError(Exception):
    """The API server refuses, or cannot be reached. `code` is HTTP's; 0 without an answer."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


Request = Callable[[str, str, "Object | None", bool], "dict[str, Any]"]
"""(method, path, body, whether it is a dry run) -> the answer. Raises ApiError."""


@dataclass(frozen=True, slots=True)
class Change:
    """What an author writes of the object, before and after. None: it is not there."""

    changed: bool
    before: Object | None
    after: Object | None


def connect(kubeconfig: str) -> Request:
    """Raises ApiError if the package is missing or the file is no good."""
    try:
        import yaml
        from kubernetes import config
        from kubernetes.client.rest import ApiException
        from kubernetes.dynamic import DynamicClient
    except ImportError as missing:
        raise ApiError(f"kubeconfig needs the Python package kubernetes on the controller: {missing}") from missing
    from urllib3.exceptions import HTTPError

    try:
        client = config.new_client_from_config(config_file=kubeconfig, persist_config=False)
    except (config.ConfigException, OSError, ValueError, TypeError, LookupError, yaml.YAMLError) as wrong:
        raise ApiError(f"{kubeconfig}: {' '.join(str(wrong).split())}") from wrong
    if not all(value.isprintable() for value in client.configuration.api_key.values()):
        raise ApiError(f"{kubeconfig}: the user's token is not one line")  # http.client's refusal would show it
    # The paths are known: nothing has to be discovered.
    dynamic = DynamicClient(client, discoverer=lambda *_unused: None)

    def request(method: str, path: str, body: Object | None, dry_run: bool) -> dict[str, Any]:
        options: dict[str, Any] = {"dry_run": "All"} if dry_run else {}
        try:
            answer = dynamic.request(
                method, path, body=body, serialize=False, query_params=[], header_params={}, _request_timeout=TIMEOUT_S,
                **options)  # fmt: skip
        except ApiException as refused:
            raise ApiError(f"{method} {path}: {_message(refused)}", refused.status or 0) from refused
        except HTTPError as wrong:
            raise ApiError(f"{client.configuration.host} cannot be reached: {wrong}") from wrong
        return _object(f"{method} {path}", answer.data)

    return request


def _object(call: str, data: bytes) -> dict[str, Any]:
    """Raises ApiError for what no API server says: a proxy may, or a router."""
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("metadata"), dict):
        raise ApiError(f"{call}: the answer is not an API server's: {data[:60]!r}")
    return found


def _message(refused: Any) -> str:
    try:
        return f"{refused.status} {json.loads(refused.body)['message']}"
    except (KeyError, TypeError, ValueError):
        return f"{refused.status} {refused.reason}"


def ensure(request: Request, definition: Object, *, present: bool, dry_run: bool) -> Change:
    """`definition` has been found good: its kind is one of PLACES, and it has a name. Raises ApiError."""
    version, plural, namespaced = PLACES[definition["kind"]]
    metadata = definition["metadata"]
    within = f"namespaces/{metadata.get('namespace') or 'default'}/" if namespaced else ""
    folder = f"/apis/{version}/{within}{plural}"
    for _try in range(TRIES):
        now = _get(request, f"{folder}/{metadata['name']}")
        try:
            return _ensure(request, folder, now, definition, present, dry_run)
        except ApiError as refused:
            if refused.code != 409 and (refused.code != 404 or now is None):  # somebody else was faster: look again
                raise
    raise ApiError(f"{folder}/{metadata['name']}: others change it all the time")


def _get(request: Request, path: str) -> Object | None:
    try:
        return request("get", path, None, False)
    except ApiError as refused:
        if refused.code != 404:
            raise
        return None


def _ensure(
    request: Request, folder: str, now: Object | None, definition: Object, present: bool, dry_run: bool
) -> Change:
    path = f"{folder}/{definition['metadata']['name']}"
    if not present:
        if now is not None:
            request("delete", path, None, dry_run)
        return Change(now is not None, essence(now), None)
    if now is None:
        return Change(True, None, essence(request("post", folder, definition, dry_run)))
    then = request("put", path, merged(now, definition), dry_run)
    return Change(essence(now) != essence(then), essence(now), essence(then))


def merged(now: Object, definition: Object) -> dict[str, Any]:
    """What to store in place of `now`."""
    metadata = dict(now["metadata"])
    for field in ("labels", "annotations"):
        old = {key: value for key, value in (metadata.get(field) or {}).items() if key != TRIAL}
        metadata[field] = {**old, **(definition["metadata"].get(field) or {})}
    kept = {name: value for name, value in now.items() if name not in ("spec", "specs")}
    stated = {name: value for name, value in definition.items() if name in ("spec", "specs")}
    return {**kept, **stated, "metadata": metadata}


def essence(stored: Object | None) -> Object | None:
    """What an author writes of an object."""
    if stored is None:
        return None
    metadata = {
        name: stored["metadata"][name]
        for name in ("name", "namespace", "labels", "annotations")
        if stored["metadata"].get(name)
    }
    head = {"apiVersion": stored["apiVersion"], "kind": stored["kind"], "metadata": metadata}
    return head | {name: stored[name] for name in ("spec", "specs") if stored.get(name) is not None}

"""Which Secrets the ingress may read, as objects of RBAC. Pure.

A scope is a namespace, or the namespace/name of one Secret; no scope is the whole cluster. A Role with resourceNames
allows list and watch of the one object that a field selector names, which is how the ingress asks then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

NAME = "netstack-ingress-secrets"
"""Of the ClusterRole, of its binding in the whole cluster, and of what takes its place in a namespace."""
NAMES = (NAME, f"{NAME}-named")
"""The second: of a binding to a Role. What a binding refers to cannot change, so the two forms have names of their
own."""
PART = "app.kubernetes.io/part-of"
GROUP = "rbac.authorization.k8s.io"
VERSION = f"{GROUP}/v1"


def narrowed(documents: Iterable[dict[str, Any]], scopes: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The documents; if there are scopes, with bindings in these in place of the one in the whole cluster."""
    names: dict[str, set[str]] = defaultdict(set)
    for scope in scopes:
        namespace, _, name = scope.partition("/")
        names[namespace].add(name)
    for document in documents:
        if not names or (document["kind"], document["metadata"]["name"]) != ("ClusterRoleBinding", NAME):
            yield document
            continue
        for namespace, chosen in sorted(names.items()):
            yield from _within(namespace, chosen, document["subjects"])


def _within(namespace: str, names: set[str], subjects: list[Any]) -> Iterator[dict[str, Any]]:
    metadata = {"name": NAME, "namespace": namespace, "labels": {PART: "netstack"}}
    head = {"apiVersion": VERSION, "metadata": metadata}
    whole = "" in names
    if not whole:
        rule = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": sorted(names), "verbs": ["list", "watch"]}
        yield {**head, "kind": "Role", "rules": [rule]}
    role = {"apiGroup": GROUP, "kind": "ClusterRole" if whole else "Role", "name": NAME}
    metadata = {**metadata, "name": NAMES[not whole]}
    yield {**head, "kind": "RoleBinding", "metadata": metadata, "roleRef": role, "subjects": subjects}

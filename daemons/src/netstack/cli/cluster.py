"""What a controller does against the cluster, for the roles: `python -m netstack.cli.cluster`.

    kubeconfig FILE
        the kubeconfig as one file, with everything inside that it names
    token --kubeconfig FILE ACCOUNT
        a kubeconfig with a token of the service account ACCOUNT; the one on standard input, as long as that is good
    install --kubeconfig FILE PATH...
        make the definitions and access rights of these files exist (--check: say which)

A CustomResourceDefinition that is there already, whoever made it, is left as it is: a peer's (Cilium's, MetalLB's)
serves as well. Other objects are applied by server-side apply. Each line of output is one object that was, or would
be, changed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from netstack.cli import rights, token
from netstack.core.documents import load_all
from netstack.core.errors import BadConfig
from netstack.source.client import APPLY_PATCH, ApiFailure, Client, Refused
from netstack.source.credentials import Credentials, flatten, in_memory

DEFINITION = "CustomResourceDefinition"
RBAC = f"/apis/{rights.VERSION}"
PATHS = {
    DEFINITION: "/apis/apiextensions.k8s.io/v1/{}customresourcedefinitions",
    "ServiceAccount": "/api/v1/{}serviceaccounts",
    "ClusterRole": f"{RBAC}/{{}}clusterroles",
    "ClusterRoleBinding": f"{RBAC}/{{}}clusterrolebindings",
    "Role": f"{RBAC}/{{}}roles",
    "RoleBinding": f"{RBAC}/{{}}rolebindings",
}
"""Kind -> where it is found; a namespaced one's namespace goes between."""
NARROWED = ("ClusterRoleBinding", "RoleBinding", "Role")
"""Kinds that say which Secrets the ingress may read."""


def documents(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The objects of files and folders, in the order of their names."""
    for path in paths:
        for file in sorted(path.glob("*.yaml")) if path.is_dir() else [path]:
            yield from load_all(file.read_text(encoding="utf-8"))


def install(client: Client, wanted: Iterable[dict[str, Any]], *, check: bool) -> Iterator[str]:
    """`kind name` of each object that was changed, or would be. ApiFailure passes."""
    for item in wanted:
        kind, name = item["kind"], item["metadata"]["name"]
        path = f"{_collection(item)}/{name}"
        old = _existing(client, path)
        if kind == DEFINITION and old is not None:
            continue
        query = {"fieldManager": "netstack", "force": "true"} | ({"dryRun": "All"} if check else {})
        new = client.send("PATCH", path, item, APPLY_PATCH, **query)
        if old is None or _version(new) != _version(old) or (check and _essence(new) != _essence(old)):
            yield f"{kind} {name}"


def withdraw(client: Client, wanted: Iterable[dict[str, Any]], *, check: bool) -> Iterator[str]:
    """Take back the rights to Secrets that are not wanted any more; `kind name` of each."""
    named = [item for item in wanted if item["kind"] in NARROWED and item["metadata"]["name"] in rights.NAMES]
    kept = {f"{_collection(item)}/{item['metadata']['name']}" for item in named}
    for kind in NARROWED if kept else ():
        found = client.get(PATHS[kind].format(""), {"labelSelector": f"{rights.PART}=netstack"})
        for item in found.get("items") or ():
            path = f"{_collection({**item, 'kind': kind})}/{item['metadata']['name']}"
            if item["metadata"]["name"] in rights.NAMES and path not in kept:
                if not check:
                    client.send("DELETE", path)
                yield f"{kind} {item['metadata']['name']}"


def _collection(item: dict[str, Any]) -> str:
    namespace = item["metadata"].get("namespace")
    return PATHS[item["kind"]].format(f"namespaces/{namespace}/" if namespace else "")


def _existing(client: Client, path: str) -> dict[str, Any] | None:
    try:
        return client.get(path)
    except Refused as error:
        if error.code != 404:
            raise
        return None


def _version(item: dict[str, Any]) -> str:
    return str(item["metadata"].get("resourceVersion", ""))


def _essence(item: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in item.items() if name not in ("metadata", "status")}


def _token(kubeconfig: str, account: str, present: str, *, check: bool) -> str:
    """`present` if it is good for long enough, else a new one. check: a text that says that there would be one."""
    cluster = flatten(Path(kubeconfig))["clusters"][0]["cluster"]
    if token.good(present, cluster, account, time.time()) and _taken(present):
        return present
    if check:
        return f"# a new token for {account}\n"
    answer = Client(Credentials(kubeconfig)).send("POST", token.path(account), token.request())
    return yaml.safe_dump(token.kubeconfig(cluster, account, answer["status"]["token"]))


def _taken(kubeconfig: str) -> bool:
    """Whether the API server takes the token in it: no more, once its service account has been deleted."""
    with in_memory(kubeconfig) as path:
        try:
            Client(Credentials(path)).get("/api")
        except Refused as error:
            return error.code != 401
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="netstack.cli.cluster", description="A controller's work on the cluster.")
    commands = parser.add_subparsers(dest="command", required=True)
    kubeconfig = commands.add_parser("kubeconfig", help="print a kubeconfig with everything inside that it names")
    kubeconfig.add_argument("file", type=Path)
    make = commands.add_parser("install", help="make the objects of these files exist")
    make.add_argument("--kubeconfig", required=True)
    make.add_argument("--check", action="store_true")
    make.add_argument(
        "--secrets",
        action="append",
        default=[],
        metavar="NAMESPACE[/NAME]",
        help="of Secrets that the ingress may read; without it, all",
    )
    make.add_argument("paths", type=Path, nargs="+")
    give = commands.add_parser("token", help="print a kubeconfig with a token of a service account of ours")
    give.add_argument("--kubeconfig", required=True)
    give.add_argument("--check", action="store_true")
    give.add_argument("account")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "kubeconfig":
            sys.stdout.write(yaml.safe_dump(flatten(chosen.file)))
        elif chosen.command == "token":
            sys.stdout.write(_token(chosen.kubeconfig, chosen.account, sys.stdin.read(), check=chosen.check))
        else:
            client = Client(Credentials(chosen.kubeconfig))
            wanted = list(rights.narrowed(documents(chosen.paths), chosen.secrets))
            for step in (install, withdraw):
                for line in step(client, wanted, check=chosen.check):
                    print(line)
    except (ApiFailure, BadConfig, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

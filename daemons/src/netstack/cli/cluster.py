"""What a controller does against the cluster, for the roles: `python -m netstack.cli.cluster`.

    kubeconfig FILE                      the kubeconfig as one file, with everything inside that it names install
    --kubeconfig FILE PATH...    make the definitions and access rights of these files exist (--check: say which)

A CustomResourceDefinition that is there already, whoever made it, is left as it is: a peer's (Cilium's, MetalLB's)
serves as well. Other objects are applied by server-side apply. Each line of output is one object that was, or would
be, changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from netstack.core.errors import BadConfig
from netstack.source.client import APPLY_PATCH, ApiFailure, Client, Refused
from netstack.source.credentials import Credentials, flatten

DEFINITION = "CustomResourceDefinition"
PATHS = {
    DEFINITION: "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
}
"""Everything that is installed is cluster-scoped."""


def documents(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The objects of files and folders, in the order of their names."""
    for path in paths:
        for file in sorted(path.glob("*.yaml")) if path.is_dir() else [path]:
            yield from (item for item in yaml.safe_load_all(file.read_text(encoding="utf-8")) if item is not None)


def install(client: Client, wanted: Iterable[dict[str, Any]], *, check: bool) -> Iterator[str]:
    """`kind name` of each object that was changed, or would be. ApiFailure passes."""
    for item in wanted:
        kind, name = item["kind"], item["metadata"]["name"]
        old = _existing(client, f"{PATHS[kind]}/{name}")
        if kind == DEFINITION and old is not None:
            continue
        query = {"fieldManager": "netstack", "force": "true"} | ({"dryRun": "All"} if check else {})
        new = client.send("PATCH", f"{PATHS[kind]}/{name}", item, APPLY_PATCH, **query)
        if old is None or _version(new) != _version(old) or (check and _essence(new) != _essence(old)):
            yield f"{kind} {name}"


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="netstack.cli.cluster", description="A controller's work on the cluster.")
    commands = parser.add_subparsers(dest="command", required=True)
    kubeconfig = commands.add_parser("kubeconfig", help="print a kubeconfig with everything inside that it names")
    kubeconfig.add_argument("file", type=Path)
    make = commands.add_parser("install", help="make the objects of these files exist")
    make.add_argument("--kubeconfig", required=True)
    make.add_argument("--check", action="store_true")
    make.add_argument("paths", type=Path, nargs="+")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "kubeconfig":
            sys.stdout.write(yaml.safe_dump(flatten(chosen.file)))
        else:
            client = Client(Credentials(chosen.kubeconfig))
            for line in install(client, documents(chosen.paths), check=chosen.check):
                print(line)
    except (ApiFailure, BadConfig, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

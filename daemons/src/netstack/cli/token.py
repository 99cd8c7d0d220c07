"""Tokens of our service accounts (authentication.k8s.io/v1 TokenRequest), in the kubeconfig of a node. Pure.

A token is asked for with a year to live, and is replaced by the first run of the playbook in its second half. Deleting
the service account makes all of them worthless.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import yaml

from netstack.source import credentials

NAMESPACE = "kube-system"
LIFE_S = 365 * 24 * 3600
"""What is asked for. An API server may give less (--service-account-max-token-expiration)."""


def path(account: str) -> str:
    """Where tokens of a service account are made."""
    return f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token"


def request() -> dict[str, Any]:
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": LIFE_S},
    }


def kubeconfig(cluster: Mapping[str, Any], account: str, token: str) -> dict[str, Any]:
    """`cluster`: server and authority, as a kubeconfig has them."""
    return credentials.kubeconfig(cluster, account, {"token": token})


def good(text: str, cluster: Mapping[str, Any], account: str, now: float) -> bool:
    """Whether a kubeconfig is one of ours for this cluster and account, in the first half of its life. `now`: seconds
    since the epoch."""
    try:
        found = yaml.safe_load(text)
        token = str(found["users"][0]["user"]["token"])
        if found != kubeconfig(cluster, account, token):
            return False
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        return bool(now < (float(claims["iat"]) + float(claims["exp"])) / 2)
    except (yaml.YAMLError, LookupError, TypeError, ValueError):
        return False

"""Who we are to the API server, and which server that is: a kubeconfig, or the files of a pod's service account.

Everything is read again when a file has changed on disk (certificates and tokens are rotated under a running daemon),
and after a 401. While a rotation is half done, the last whole set stays in use.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from netstack.core import documents
from netstack.core.errors import BadConfig

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
REFUSED = {
    "exec": "a program that makes credentials would run as root; give the user a certificate or a token file",
    "auth-provider": "is not served; give the user a certificate or a token file",
    "username": "the API server has no passwords any more; give the user a certificate or a token file",
    "impersonate": "acting for another user is not served",
}
INSECURE = "a node that cannot tell the API server from an impostor would take its policies from anyone"
Stamp = tuple[int, int, int]
Stamps = dict[Path, Stamp]
"""Of files as they were before they were read: what is written meanwhile is read the next time."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where to connect and what to show. `prefix`: path before /api, usually ""."""

    host: str
    port: int
    prefix: str
    server_name: str
    tls: ssl.SSLContext
    token: str


class Credentials:
    """`kubeconfig`: its path, or "" for the in-cluster form. Used by several threads."""

    def __init__(self, kubeconfig: str, *, account: Path = SERVICE_ACCOUNT, environ: Mapping[str, str] = os.environ):
        self.name = kubeconfig or str(account)
        self._kubeconfig = kubeconfig
        self._account = account
        self._environ = environ
        self._lock = threading.Lock()
        self.flaw = ""
        """What is wrong with the files as they are now, while an earlier whole set is in use."""
        self._access: Access | None = None
        self._stamps: Stamps = {}

    def access(self) -> Access:
        """What is valid now. BadConfig if there is no whole set and never was."""
        with self._lock:
            stamps = {path: _stamp(path) for path in self._stamps}
            if self._access is not None and stamps == self._stamps:
                return self._access
            try:
                self._access, self._stamps = self._load()
                self.flaw = ""
            except BadConfig as error:
                if self._access is None:
                    raise
                self.flaw = str(error)
            return self._access

    def forget(self) -> None:
        """The server does not know us (401): read the files again even if they look the same."""
        with self._lock:
            self._stamps = dict.fromkeys(self._stamps, (0, 0, 0))

    def _load(self) -> tuple[Access, Stamps]:
        return _kubeconfig(Path(self._kubeconfig)) if self._kubeconfig else _in_cluster(self._account, self._environ)


def _in_cluster(account: Path, environ: Mapping[str, str]) -> tuple[Access, Stamps]:
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not port.isdigit():
        raise BadConfig("kubeconfig", "is empty, but KUBERNETES_SERVICE_HOST and _PORT do not name an API server")
    stamps: Stamps = {}
    context = _context("ca.crt", _text("ca.crt", account / "ca.crt", stamps))
    token = _token("token", _text("token", account / "token", stamps))
    return Access(host, int(port), "", host, context, token), stamps


def _kubeconfig(path: Path) -> tuple[Access, Stamps]:
    """client-go's `Config` (clientcmd/api/v1): the current context's cluster and user."""
    stamps: Stamps = {path: _stamp(path)}
    cluster, user = _chosen(path)
    for name, reason in REFUSED.items():
        if any(user.get(key) for key in user if key == name or (name == "impersonate" and key.startswith("as"))):
            raise BadConfig(f"user.{name}", reason)
    if cluster.get("insecure-skip-tls-verify"):
        raise BadConfig("cluster.insecure-skip-tls-verify", INSECURE)
    if cluster.get("proxy-url"):
        raise BadConfig("cluster.proxy-url", "is not served")
    host, port, prefix = _server(cluster.get("server"))
    authority = _material(path, cluster, "certificate-authority", stamps)
    certificate = _material(path, user, "client-certificate", stamps)
    key = _material(path, user, "client-key", stamps)
    context = _context("cluster.certificate-authority", authority)
    if bool(certificate) != bool(key):
        raise BadConfig("user.client-certificate", "needs client-key, and the other way round")
    if certificate and key:
        _identify(context, certificate, key)
    token = _token("user.token", str(user["token"])) if user.get("token") else ""
    if user.get("tokenFile"):
        token = _token("user.tokenFile", _text("user.tokenFile", path.parent / str(user["tokenFile"]), stamps))
    if not token and not certificate:
        raise BadConfig("user", "has neither a client certificate nor a token")
    server_name = str(cluster.get("tls-server-name") or host)
    return Access(host, port, prefix, server_name, context, token), stamps


def _server(given: Any) -> tuple[str, int, str]:
    """Host, port and prefix of a cluster's URL."""
    try:
        url = urlsplit(str(given))
        host, port = url.hostname, url.port or 443
    except ValueError:  # a port that is none, half an address in brackets
        host = None
    if not host or url.scheme != "https":
        raise BadConfig("cluster.server", f"must be https://host:port, not {given!r}")
    return host, port, url.path.rstrip("/")


def _chosen(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(cluster, user) of the current context."""
    try:
        config = documents.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig("kubeconfig", f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise BadConfig("kubeconfig", f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise BadConfig("kubeconfig", f"{path} is not a kubeconfig")
    context = _named(config, "contexts", "context", config.get("current-context"))
    cluster = _named(config, "clusters", "cluster", context.get("cluster"))
    return cluster, _named(config, "users", "user", context.get("user"))


def _named(config: Mapping[str, Any], many: str, one: str, name: Any) -> dict[str, Any]:
    items = config.get(many)
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and item.get("name") == name and isinstance(item.get(one), dict):
            return dict(item[one])
    raise BadConfig(many, f"there is no {one} {name!r}")


def _material(path: Path, section: Mapping[str, Any], name: str, stamps: Stamps) -> str | None:
    """PEM text that stands inline (`<name>-data`, which wins) or in a file beside the kubeconfig; None if neither."""
    if section.get(f"{name}-data"):
        folded = "".join(str(section[f"{name}-data"]).split())  # as base64(1) writes it
        try:
            return base64.b64decode(folded, validate=True).decode("ascii")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise BadConfig(f"{name}-data", "is not base64 of PEM text") from error
    return _text(name, path.parent / str(section[name]), stamps) if section.get(name) else None


def _token(field: str, text: str) -> str:
    """It goes into a header, and what cannot go there must not end up in an error message."""
    token = text.strip()
    if not token or " " in token or not (token.isascii() and token.isprintable()):
        raise BadConfig(field, "is not one line of ASCII text")
    return token


def _text(name: str, path: Path, stamps: Stamps) -> str:
    stamps[path] = _stamp(path)
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(name, f"{path}: {getattr(error, 'strerror', None) or 'is not text'}") from error


def _context(field: str, authority: str | None) -> ssl.SSLContext:
    """TLS that trusts this authority alone, or the system's where the kubeconfig names none."""
    if authority == "":  # half written; for create_default_context it would be none
        raise BadConfig(field, "is empty")
    try:
        context = ssl.create_default_context(cadata=authority)
    except ssl.SSLError as error:
        raise BadConfig(field, f"is no certificate authority in PEM form: {error.reason}") from error
    context.set_alpn_protocols(["http/1.1"])
    return context


def _identify(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """ssl reads key pairs from files only."""
    with in_memory(certificate) as certificate_path, in_memory(key) as key_path:
        try:
            context.load_cert_chain(certificate_path, key_path, password="")
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise BadConfig(
                "user.client-certificate", f"does not go with client-key, or is no PEM: {reason}"
            ) from error


@contextmanager
def in_memory(text: str) -> Iterator[str]:
    """A path of text that no other process can open and that never is on a disk."""
    handle = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        os.write(handle, text.encode())
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def _stamp(path: Path) -> Stamp:
    try:
        stat = path.stat()
    except OSError:
        return (0, 0, 0)
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def flatten(path: Path) -> dict[str, Any]:
    """The current context of a kubeconfig alone, with every file that it names inside it: one file to carry to a
    node."""
    cluster, user = _chosen(path)
    _kubeconfig(path)  # refuses what a node could not use
    for section, names in ((cluster, ("certificate-authority",)), (user, ("client-certificate", "client-key"))):
        for name in names:
            text = _material(path, section, name, {})
            if text:
                section[f"{name}-data"] = base64.b64encode(text.encode()).decode()
            section.pop(name, None)
    if user.pop("tokenFile", None) is not None:
        user["token"] = _kubeconfig(path)[0].token
    return kubeconfig(cluster, "user", user)


def kubeconfig(cluster: Mapping[str, Any], name: str, user: Mapping[str, Any]) -> dict[str, Any]:
    """One of one cluster and one user of this name."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": dict(cluster)}],
        "users": [{"name": name, "user": dict(user)}],
        "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": name}}],
        "current-context": "context",
    }

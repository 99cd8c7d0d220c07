import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from instruments.authority import Authority
from netstack.core.errors import BadConfig
from netstack.source.credentials import Credentials, flatten


class Kubeconfig:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "kubeconfig"
        self.authority = Authority(folder)
        certificate, key = self.authority.issue("node")
        self.cluster: dict[str, Any] = {"server": "https://10.0.0.1:6443", "certificate-authority": "ca.crt"}
        self.user: dict[str, Any] = {"client-certificate": certificate.name, "client-key": str(key)}

    def write(self) -> Credentials:
        config = {
            "clusters": [{"name": "c", "cluster": self.cluster}],
            "users": [{"name": "u", "user": self.user}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self.path.write_text(yaml.safe_dump(config))
        return Credentials(str(self.path))

    def refusal(self) -> str:
        with pytest.raises(BadConfig) as caught:
            self.write().access()
        return str(caught.value)


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Kubeconfig]:
    yield Kubeconfig(tmp_path)


def test_files_are_found_beside_the_kubeconfig(config: Kubeconfig) -> None:
    access = config.write().access()
    assert (access.host, access.port, access.prefix, access.server_name) == ("10.0.0.1", 6443, "", "10.0.0.1")
    assert access.token == ""


def test_inline_material_tokens_and_a_prefix(config: Kubeconfig) -> None:
    pem = config.authority.certificate.read_bytes()
    config.cluster = {
        "server": "https://[fd00::1]/clusters/a/",
        "certificate-authority-data": base64.b64encode(pem).decode(),
        "tls-server-name": "kubernetes",
    }
    config.user = {"token": "secret"}
    access = config.write().access()
    assert (access.host, access.port, access.prefix, access.server_name) == (
        "fd00::1",
        443,
        "/clusters/a",
        "kubernetes",
    )
    assert access.token == "secret"


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("user", {"exec": {"command": "aws"}}, "user.exec: a program that makes credentials would run as root"),
        ("user", {"auth-provider": {"name": "gcp"}}, "user.auth-provider: is not served"),
        ("user", {"username": "admin"}, "user.username: the API server has no passwords any more"),
        ("user", {"as": "root"}, "user.impersonate: acting for another user"),
        ("user", {"client-key": None}, "user.client-certificate: needs client-key"),
        ("user", {"client-key": "ca.crt"}, "user.client-certificate: does not go with client-key"),
        ("user", {"client-key": "gone"}, "client-key: "),
        ("cluster", {"insecure-skip-tls-verify": True}, "cluster.insecure-skip-tls-verify: a node that cannot tell"),
        ("cluster", {"server": "http://10.0.0.1"}, "cluster.server: must be https://host:port"),
        ("cluster", {"server": "https://10.0.0.1:66443"}, "cluster.server: must be https://host:port"),
        ("cluster", {"server": "https://[fd00::1"}, "cluster.server: must be https://host:port"),
        ("cluster", {"proxy-url": "http://p"}, "cluster.proxy-url: is not served"),
        ("cluster", {"certificate-authority-data": "%"}, "certificate-authority-data: is not base64"),
        ("cluster", {"certificate-authority-data": "YQ=="}, "cluster.certificate-authority: is no certificate auth"),
        ("user", {"token": "one\ntwo"}, "user.token: is not one line of ASCII text"),
    ],
)
def test_what_a_node_could_not_use_is_refused_with_its_reason(
    config: Kubeconfig, section: str, change: dict[str, Any], words: str
) -> None:
    getattr(config, section).update(change)
    assert config.refusal().startswith(words)


def test_a_user_without_credentials_and_a_context_without_a_cluster(config: Kubeconfig) -> None:
    config.user = {}
    assert config.refusal() == "user: has neither a client certificate nor a token"
    config.path.write_text("current-context: x\n")
    with pytest.raises(BadConfig, match="there is no context 'x'"):
        Credentials(str(config.path)).access()
    config.path.write_text("current-context: x\ncontexts: 1\n")
    with pytest.raises(BadConfig, match="there is no context 'x'"):
        Credentials(str(config.path)).access()
    with pytest.raises(BadConfig, match="No such file"):
        Credentials(str(config.path) + "2").access()


def test_files_are_read_again_when_one_changes_and_a_half_rotation_keeps_the_old_set(config: Kubeconfig) -> None:
    credentials = config.write()
    first = credentials.access()
    assert credentials.access() is first
    _, key = config.authority.issue("node")
    good = key.read_bytes()
    key.write_text("half written")
    assert credentials.access() is first
    key.write_bytes(good)
    second = credentials.access()
    assert second is not first and credentials.access() is second
    credentials.forget()
    assert credentials.access() is not second


def test_what_changes_while_it_is_read_is_read_again(config: Kubeconfig, monkeypatch: pytest.MonkeyPatch) -> None:
    token = config.path.parent / "token"
    token.write_text("one")
    config.user["tokenFile"] = "token"
    credentials = config.write()
    read = Path.read_text

    def overtaken(path: Path, **how: str) -> str:
        text = read(path, **how)
        if path == token and text == "one":
            token.write_text("another")
        return text

    monkeypatch.setattr(Path, "read_text", overtaken)
    assert [credentials.access().token for _ in range(2)] == ["one", "another"]


def test_a_file_that_is_just_being_written_is_neither_no_authority_nor_no_token(config: Kubeconfig) -> None:
    token = config.path.parent / "token"
    token.write_text("one")
    config.user = {"tokenFile": "token"}
    credentials = config.write()
    first = credentials.access()
    for path in (config.authority.certificate, token):
        good = path.read_text()
        path.write_text("")
        assert credentials.access() is first, path
        assert "is empty" in config.refusal() or "is not one line" in config.refusal()
        path.write_text(good)
    assert credentials.access() is not first


def test_material_may_be_folded(config: Kubeconfig) -> None:
    config.cluster["certificate-authority-data"] = base64.encodebytes(
        config.authority.certificate.read_bytes()
    ).decode()
    assert config.write().access().host == "10.0.0.1"


def test_a_token_file_is_followed(config: Kubeconfig, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one\n")
    config.user = {"tokenFile": "token"}
    credentials = config.write()
    assert credentials.access().token == "one"
    (tmp_path / "token").write_text("another\n")
    assert credentials.access().token == "another"


def test_the_files_of_a_service_account(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "token").write_text("t\n")
    environ = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    access = Credentials("", account=tmp_path, environ=environ).access()
    assert (access.host, access.port, access.token) == ("10.96.0.1", 443, "t")
    with pytest.raises(BadConfig, match="do not name an API server"):
        Credentials("", account=tmp_path, environ={}).access()
    authority.certificate.write_text("")
    with pytest.raises(BadConfig, match=r"ca\.crt: is empty"):
        Credentials("", account=tmp_path, environ=environ).access()
    os.unlink(authority.certificate)
    with pytest.raises(BadConfig, match=r"ca\.crt: "):
        Credentials("", account=tmp_path, environ=environ).access()


def test_a_flat_kubeconfig_works_without_the_files_that_it_came_from(config: Kubeconfig, tmp_path: Path) -> None:
    config.write()
    flat = yaml.safe_dump(flatten(config.path))
    for path in tmp_path.iterdir():
        path.unlink()
    config.path.write_text(flat)
    assert Credentials(str(config.path)).access().host == "10.0.0.1"

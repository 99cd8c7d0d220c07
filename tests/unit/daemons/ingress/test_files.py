from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from instruments.ingress_objects import NOW, Cluster, Raw, endpoints, ingress, key_pair, secret, service
from netstack.ingress import files
from netstack.ingress.slots import Slots

PAIR = key_pair("ha.lab")


def cluster(folder: Path, *more: Raw) -> Cluster:
    tls = [{"hosts": ["ha.lab"], "secretName": "cert"}]
    app = service("one"), *endpoints("one", "10.0.0.1:80")
    return Cluster(*app, ingress("site", ("ha.lab", "/", "one"), tls=tls), *more, state=folder)


def test_a_start_finds_everything_and_a_second_write_changes_nothing(tmp_path: Path) -> None:
    made = cluster(tmp_path, secret("cert", *PAIR))
    assert files.write(made.wanted, made.slots, made.settings)
    assert not files.write(made.wanted, made.slots, made.settings)
    (pem,) = made.wanted.pems
    assert (tmp_path / "crt-list").read_text() == f"{pem} ha.lab\n"
    assert stat.S_IMODE(Path(pem).stat().st_mode) == 0o640
    assert files.load_slots(made.settings) == made.slots
    assert {path.name for path in tmp_path.iterdir()} == {
        "certs", "crt-list", "default-crt-list", "default.pem", "haproxy.cfg", "pools.cfg", "routes.map", "slots.json",
    }  # fmt: skip


def test_key_pairs_that_nobody_names_are_removed(tmp_path: Path) -> None:
    made = cluster(tmp_path, secret("cert", *PAIR))
    files.write(made.wanted, made.slots, made.settings)
    renewed = cluster(tmp_path, secret("cert", *key_pair("ha.lab")))
    files.write(renewed.wanted, renewed.slots, renewed.settings)
    assert [str(path) for path in (tmp_path / "certs").iterdir()] == list(renewed.wanted.pems)


def test_a_secret_with_the_longest_name_has_a_file(tmp_path: Path) -> None:
    tls = [{"hosts": ["ha.lab"], "secretName": "c" * 253}]
    site = ingress("site", ("ha.lab", "/", "one"), tls=tls, namespace="n" * 63)
    made = Cluster(site, secret("c" * 253, *PAIR, namespace="n" * 63), state=tmp_path)
    files.write(made.wanted, made.slots, made.settings)
    assert [str(path) for path in (tmp_path / "certs").iterdir()] == list(made.wanted.pems)


@pytest.mark.parametrize(
    ("does", "within_s", "says"),
    [
        ("echo '[ALERT] config : unknown keyword' >&2; exit 1", 20.0, r"is refused: .ALERT. config : unknown"),
        ("exec sleep 60", 0.2, r"was not checked within 0\.2 s"),
    ],
)
def test_a_configuration_that_haproxy_refuses_or_is_too_slow_for_never_replaces_a_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, within_s: float, says: str
) -> None:
    made = cluster(tmp_path)
    files.write(made.wanted, made.slots, made.settings)
    good = (tmp_path / "haproxy.cfg").read_text()
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "haproxy").write_text(f"#!/bin/sh\n{does}\n")
    (tools / "haproxy").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.setattr(files, "CHECK_TIMEOUT_S", within_s)
    other = replace(made.settings, threads=2)
    with pytest.raises(files.ConfigurationRefused, match=says):
        files.write(made.wanted, made.slots, other)
    assert (tmp_path / "haproxy.cfg").read_text() == good
    monkeypatch.setenv("PATH", str(tmp_path))
    assert files.write(made.wanted, made.slots, other)  # where there is no HAProxy, nothing can be asked
    assert (tmp_path / "haproxy.cfg").read_text() != good


def test_slots_that_cannot_be_read_are_given_anew(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    assert files.load_slots(made.settings) == Slots()
    (tmp_path / "slots.json").write_text('{"free": [')
    assert files.load_slots(made.settings) == Slots()


def test_the_self_signed_certificate_is_kept_until_it_ends(tmp_path: Path) -> None:
    settings = cluster(tmp_path).settings
    first = files.default_certificate(settings, NOW)
    assert files.default_certificate(settings, NOW + 86400) == first
    assert stat.S_IMODE((tmp_path / "self-signed.pem").stat().st_mode) == 0o600
    second = files.default_certificate(settings, NOW + 364 * 86400)
    assert second != first
    (tmp_path / "self-signed.pem").write_text("-----BEGIN nothing")
    assert files.default_certificate(settings, NOW + 364 * 86400) not in (first, second)

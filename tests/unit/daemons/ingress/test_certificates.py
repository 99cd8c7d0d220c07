import ssl

import pytest

from instruments.ingress_objects import NOW, key_pair
from netstack.ingress import certificates


def test_a_pair_knows_its_names() -> None:
    pair = certificates.key_pair(*map(str.encode, key_pair("HA.home.lab", "*.apps.lab")))
    assert pair.names == ("ha.home.lab", "*.apps.lab")
    assert [pair.covers(host) for host in ("ha.home.lab", "x.apps.lab", "a.b.apps.lab", "apps.lab")] == [
        True,
        True,
        False,
        False,
    ]


def test_what_is_written_has_no_empty_line_and_reads_back() -> None:
    chain, key = key_pair("a.lab")
    pair = certificates.key_pair(f"\n\n{chain}\n\n".encode(), f"junk\n{key}\n".encode())
    assert "\n\n" not in pair.pem
    assert pair.pem == chain + key
    assert certificates.parse(pair.pem) == pair


@pytest.mark.parametrize(
    ("chain", "key", "message"),
    [
        ("nothing", "mine", "tls.crt: is no PEM certificate"),
        ("mine", "nothing", "tls.key: is no PEM private key"),
        ("mine", "other", "tls.key: does not belong to tls.crt"),
    ],
)
def test_a_bad_pair_says_which_half(chain: str, key: str, message: str) -> None:
    mine, other = key_pair("a.lab"), key_pair("b.lab")
    chains = {"nothing": "", "mine": mine[0]}
    keys = {"nothing": "", "mine": mine[1], "other": other[1]}
    with pytest.raises(ValueError, match=message):
        certificates.key_pair(chains[chain].encode(), keys[key].encode())


def test_what_openssl_does_not_serve_is_refused_before_haproxy_reads_it() -> None:
    with pytest.raises(ValueError, match="cannot be served: ee key too small"):
        certificates.key_pair(*map(str.encode, key_pair("a.lab", rsa_bits=1024)))


def test_a_certificate_without_names_covers_nothing() -> None:
    pair = certificates.key_pair(*map(str.encode, key_pair()))
    assert pair.names == ()
    assert not pair.covers("none")


def test_names_of_a_kind_that_nobody_reads_are_no_names() -> None:
    chain, key = key_pair(extensions={"2.5.29.17": bytes.fromhex("3004a3020500")})  # subjectAltName: an x400Address
    assert certificates.key_pair(chain.encode(), key.encode()).names == ()


def test_an_extension_given_twice_is_a_certificate_without_names() -> None:
    chain, key = key_pair("ha.home.lab", extensions={"1.2.3.4": b"\x05\x00", "1.2.3.5": b"\x05\x00"})
    twice = ssl.PEM_cert_to_DER_cert(chain).replace(bytes.fromhex("06032a0305"), bytes.fromhex("06032a0304"))
    assert certificates.key_pair(ssl.DER_cert_to_PEM_cert(twice).encode(), key.encode()).names == ()


def test_the_file_name_changes_with_content_and_hosts() -> None:
    names = {
        certificates.file_name("default/cert", pem, hosts)
        for pem in ("a", "b")
        for hosts in (("x",), ("x", "y"), ("xy",))
    }
    assert len(names) == 6
    assert all(name.startswith("default_cert-") and name.endswith(".pem") for name in names)


def test_the_self_signed_one_is_replaced_in_time() -> None:
    pair = certificates.self_signed("ingress.local", NOW)
    assert pair.names == ("ingress.local",)
    assert not certificates.expires_soon(pair, NOW)
    assert not certificates.expires_soon(pair, NOW + 334 * 86400)
    assert certificates.expires_soon(pair, NOW + 336 * 86400)

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.core.address import Prefix, Range, is_v4, pack, unpack

addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).filter(
    lambda a: a.version == 4 or a.ipv4_mapped is None
)


@given(addresses)
def test_text_survives_packing(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    packed = pack(str(address))
    assert len(packed) == 16
    assert is_v4(packed) == (address.version == 4)
    assert ipaddress.ip_address(unpack(packed)) == address


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), st.integers(0, 32))
def test_a_prefix_holds_what_ipaddress_says(
    inside: ipaddress.IPv4Address, base: ipaddress.IPv4Address, bits: int
) -> None:
    network = ipaddress.ip_network(f"{base}/{bits}", strict=False)
    prefix = Prefix.parse(str(network))
    assert (pack(str(inside)) in prefix) == (inside in network)
    assert str(prefix) == str(network)


@given(st.ip_addresses(v=4), st.ip_addresses(v=4))
def test_a_range_counts_and_holds_its_ends(a: ipaddress.IPv4Address, b: ipaddress.IPv4Address) -> None:
    low, high = sorted((a, b))
    spread = Range.parse(f"{low}-{high}")
    assert len(spread) == int(high) - int(low) + 1
    assert pack(str(low)) in spread and pack(str(high)) in spread
    assert spread.overlaps(Range.parse(f"{high}-{high}"))


def test_the_seed_pool_has_fifteen_addresses() -> None:
    pool = Range.parse("192.168.86.5-192.168.86.19")
    assert len(pool) == 15
    assert unpack(next(iter(pool))) == "192.168.86.5"
    assert pack("192.168.86.20") not in pool


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("192.168.86.19-192.168.86.5", "upside down"),
        ("10.0.0.1-fd00::1", "mixes address families"),
        ("10.0.0.1/24", "host bits"),
        ("ten", "ten"),
    ],
)
def test_a_wrong_range_says_why(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Range.parse(text)


def test_the_nth_address_stays_in_the_prefix() -> None:
    prefix = Prefix.parse("10.244.1.0/30")
    assert unpack(prefix.nth(3)) == "10.244.1.3"
    with pytest.raises(IndexError):
        prefix.nth(4)


def test_covers_is_by_length_and_base() -> None:
    assert Prefix.parse("10.0.0.0/8").covers(Prefix.parse("10.1.0.0/16"))
    assert not Prefix.parse("10.1.0.0/16").covers(Prefix.parse("10.0.0.0/8"))
    assert not Prefix.parse("10.0.0.0/8").covers(Prefix.parse("fd00::/16"))
    assert str(Prefix.parse("fd00::/64")) == "fd00::/64"

from __future__ import annotations

import struct

import pytest

from netstack.core.address import pack
from netstack.kernel import layout


def test_a_port_is_in_network_order_and_the_rest_in_host_order() -> None:
    key = layout.ServiceKey(pack("10.96.0.10"), 53, 17, layout.SCOPE_WORLD)
    assert key.pack() == pack("10.96.0.10") + b"\x00\x35\x11\x01"
    assert layout.Number(1).pack() == struct.pack("=I", 1)


@pytest.mark.parametrize("spec", layout.MAPS.values(), ids=lambda spec: spec.name)
def test_every_record_reads_back_what_it_wrote(spec: layout.MapSpec) -> None:
    for record in (spec.key, spec.value):
        data = bytes(range(1, 101))[: record.size()]
        padding = record().pack()  # all zero
        value = record.unpack(data)
        assert record.unpack(value.pack()) == value
        assert len(padding) == record.size() and not any(padding)


def test_padding_is_written_as_zero_whatever_was_read() -> None:
    entry = layout.Nat.unpack(b"\xff" * layout.Nat.size())
    assert entry.pack()[-6:] == bytes(6)


def test_data_of_another_size_is_refused() -> None:
    with pytest.raises(struct.error):
        layout.Backend.unpack(bytes(layout.Backend.size() + 1))


def test_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(OverflowError):
        layout.Backend(port=65536).pack()
    with pytest.raises(struct.error):
        layout.PolicyKey(endpoint=1 << 32).pack()


def test_a_record_with_implicit_padding_cannot_be_declared() -> None:
    class Holed(layout.Record):
        small: int = layout.c("u8")
        large: int = layout.c("u32")

    with pytest.raises(TypeError, match="large at 1 needs explicit padding"):
        layout.record(layout.dataclass(frozen=True)(Holed))


def test_a_record_with_implicit_padding_at_its_end_cannot_be_declared() -> None:
    class Holed(layout.Record):
        large: int = layout.c("u64")
        small: int = layout.c("u8")

    with pytest.raises(TypeError, match="padding at its end"):
        layout.record(layout.dataclass(frozen=True)(Holed))


def test_names_learned_for_an_address_read_back() -> None:
    learned = layout.Fqdn.packed({9: 100, 7: 200})
    assert layout.Fqdn.read(learned) == {7: 200, 9: 100}
    assert layout.Fqdn.unpack(learned) == layout.Fqdn(7, 200, 9, 100)


def test_a_ninth_selector_is_refused() -> None:
    with pytest.raises(struct.error):
        layout.Fqdn.packed(dict.fromkeys(range(1, 10), 1))


def test_an_lpm_trie_is_declared_as_the_kernel_demands() -> None:
    tries = [spec for spec in layout.MAPS.values() if spec.kind == layout.LPM_TRIE]
    assert {spec.name for spec in tries} == {"identities", "policy"}
    assert all(spec.flags & layout.NO_PREALLOC for spec in tries)


def test_ten_thousand_services_fit() -> None:
    """Each with a port, an address of both kinds, and two backends of its own."""
    assert layout.MAPS["services"].entries >= 7 * 10_000
    assert layout.MAPS["slots"].entries >= 67 * 10_000
    assert layout.MAPS["backends"].entries >= 2 * 10_000

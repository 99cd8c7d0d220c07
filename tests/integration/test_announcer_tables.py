"""The two maps, as the programs will read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from instruments.boards import run
from netstack.announcer.tables import Tables
from netstack.core.address import pack
from netstack.kernel.bpf import BpfError, Map, MapDefinition
from netstack.kernel.layout import MAPS, AddressKey, Instant, Vip, VipKey

pytestmark = pytest.mark.root

ONE, TWO = pack("192.168.86.18"), pack("192.168.86.19")
MAC = bytes.fromhex("020000000001")
NODES = {"n1": "192.168.86.21", "n2": "192.168.86.22"}


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A bpffs of the test's own with the two maps pinned as the loader pins them."""
    if os.geteuid():
        pytest.skip("needs root for bpf(2)")
    mount = tmp_path / "bpf"
    mount.mkdir()
    run("mount", "-t", "bpf", "bpf", str(mount))
    try:
        (mount / "maps").mkdir()
        for name in ("vips", "node_alive"):
            spec = MAPS[name]
            definition = MapDefinition(spec.kind, spec.key.size(), spec.value.size(), spec.entries, spec.flags)
            with Map.create(name, definition) as made:
                made.pin(mount / "maps" / name)
        yield mount
    finally:
        run("umount", str(mount))


def vips(bpffs: Path) -> dict[tuple[bytes, int], Vip]:
    with Map.open(bpffs / "maps" / "vips") as table:
        found = {VipKey.unpack(key): Vip.unpack(value) for key, value in table.items()}
    return {(key.address, key.ifindex): value for key, value in found.items()}


def test_allocated_addresses_have_an_entry_that_answers_nothing(bpffs: Path) -> None:
    Tables(bpffs, NODES).allocated({ONE, TWO}, {7: MAC})
    assert vips(bpffs) == {(ONE, 7): Vip(0, 0, MAC), (TWO, 7): Vip(0, 0, MAC)}


def test_a_deadline_is_in_nanoseconds_and_survives_a_new_allocation(bpffs: Path) -> None:
    tables = Tables(bpffs, NODES)
    tables.allocated({ONE}, {7: MAC})
    tables.set_deadline(ONE, 7, MAC, 12.5, 3)
    tables.allocated({ONE, TWO}, {7: MAC})
    assert vips(bpffs) == {(ONE, 7): Vip(12_500_000_000, 3, MAC), (TWO, 7): Vip(0, 0, MAC)}
    tables.allocated({TWO}, {7: MAC})
    assert list(vips(bpffs)) == [(TWO, 7)]


def test_a_new_process_first_answers_for_nothing(bpffs: Path) -> None:
    Tables(bpffs, NODES).set_deadline(ONE, 7, MAC, 12.5, 3)
    Tables(bpffs, NODES).clear()
    assert vips(bpffs) == {(ONE, 7): Vip(0, 0, MAC)}


def test_nodes_are_alive_by_address_and_those_that_left_are_forgotten(bpffs: Path) -> None:
    Tables(bpffs, NODES | {"n9": "192.168.86.29"}).set_alive("n9", 1.0)
    tables = Tables(bpffs, NODES)
    tables.set_alive("n2", 2.5)
    tables.clear()
    with Map.open(bpffs / "maps" / "node_alive") as table:
        assert dict(table.items()) == {AddressKey(pack("192.168.86.22")).pack(): Instant(2_500_000_000).pack()}


def test_without_the_loaders_pins_it_says_which_map_lacks(tmp_path: Path) -> None:
    with pytest.raises((BpfError, OSError), match="vips"):
        Tables(tmp_path, NODES)

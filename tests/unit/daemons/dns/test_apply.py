from __future__ import annotations

import errno
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.core.address import pack
from netstack.dns.apply import COPIED, IN_USE_S, LEAST_S, SETTLED, SILENT_S, SWEEP_S, Identities, Learned, Refused
from netstack.dns.session import Credit
from netstack.kernel.layout import Fqdn, FqdnKey, Identity, Instant, PrefixKey

A, B, C = (pack(f"192.0.2.{n}") for n in (1, 2, 3))
NAME = (b"x", b"io")
SERVER = pack("10.96.0.10")


class FakeTable(dict[bytes, bytes]):
    """A hash map in memory, with a size."""

    size = 1 << 16
    writes = 0

    def put(self, key: bytes, value: bytes) -> None:
        self.writes += 1
        if key not in self and len(self) >= self.size:
            raise OSError(errno.E2BIG, "full")
        self[key] = value

    def delete(self, key: bytes) -> bool:
        return self.pop(key, None) is not None

    def holds(self) -> dict[tuple[int, bytes], dict[int, int]]:
        found = {}
        for key, value in self.items():
            place = FqdnKey.unpack(key)
            found[place.endpoint, place.address] = Fqdn.read(value)
        return found


@pytest.fixture
def table() -> FakeTable:
    return FakeTable()


@pytest.fixture
def used() -> FakeTable:
    return FakeTable()


@pytest.fixture
def learned(table: FakeTable, used: FakeTable) -> Learned:
    return Learned(table, used, max_per_pod=4, max_per_name=4)


def credit(*selectors: int, addresses: tuple[bytes, ...] = (A,), until_s: float = 100.0, endpoint: int = 12) -> Credit:
    return Credit(endpoint, addresses, frozenset(selectors), NAME, SERVER, until_s)


def sweep(learned: Learned, endpoints: frozenset[int] | None, now: float) -> None:
    for _ in learned.sweep(endpoints, now, gone_after_s=300):
        pass


def test_selectors_of_several_names_share_an_address(learned: Learned, table: FakeTable) -> None:
    learned.credit(credit(3, 4, until_s=100.2), now=0)
    learned.credit(credit(5, until_s=50), now=0)
    assert table.holds() == {(12, A): {3: 101, 4: 101, 5: 50}}
    learned.credit(credit(3, until_s=60), now=0)
    learned.credit(credit(5, until_s=200), now=0)
    assert table.holds() == {(12, A): {3: 101, 4: 101, 5: 200}}
    assert len(learned) == 1


def test_a_ninth_selector_is_refused_and_the_eight_stay(learned: Learned, table: FakeTable) -> None:
    learned.credit(credit(*range(1, 9)), now=0)
    before = table.holds()
    with pytest.raises(Refused, match="endpoint 12 needs 9 selectors for one address"):
        learned.credit(credit(9), now=0)
    assert table.holds() == before


def test_selectors_of_rules_that_are_gone_make_room(learned: Learned, table: FakeTable) -> None:
    """A policy that is edited nine times in an hour, each time with another pattern for the name."""
    learned.credit(credit(*range(1, 9)), now=0)
    learned.ruled = {12: frozenset({8, 9})}
    learned.credit(credit(9, until_s=200), now=0)
    held = table.holds()[12, A]
    assert (held[9], held[8], len(held)) == (200, 100, 8)


def test_selectors_of_policies_on_trial_make_room_for_others(learned: Learned, table: FakeTable) -> None:
    tried = frozenset(range(1, 9))
    learned.credit(credit(*tried)._replace(tried=tried), now=0)
    learned.credit(credit(9)._replace(tried=tried), now=0)
    assert table.holds()[12, A].keys() == {9, *range(2, 9)}
    with pytest.raises(Refused):
        learned.credit(credit(1)._replace(tried=tried), now=0)


def on_trial(*selectors: int, addresses: tuple[bytes, ...], endpoint: int = 12, until_s: float = 100.0) -> Credit:
    return credit(*selectors, addresses=addresses, endpoint=endpoint, until_s=until_s)._replace(tried=frozenset({1}))


MANY = tuple(pack(f"198.51.100.{n}") for n in range(4))


def test_addresses_of_names_on_trial_alone_make_room_for_others(learned: Learned, table: FakeTable) -> None:
    learned.tried = {12: frozenset({1})}
    learned.credit(on_trial(1, addresses=MANY), now=0)
    learned.credit(on_trial(1, 2, addresses=MANY[:1]), now=0)
    learned.credit(on_trial(2, addresses=(A, B, C)), now=0)
    assert [address for _, address in table.holds()] == [MANY[0], A, B, C]
    for more in (1, 2):
        with pytest.raises(Refused, match="endpoint 12 has learned 4 addresses"):
            learned.credit(on_trial(more, addresses=MANY[1:2]), now=0)
    assert len(learned) == len(table) == 4


def test_what_was_on_trial_and_is_enforced_gives_way_no_more(learned: Learned, table: FakeTable) -> None:
    learned.tried = {12: frozenset({1})}
    learned.credit(on_trial(1, addresses=MANY), now=0)
    learned.tried = {}
    with pytest.raises(Refused):
        learned.credit(credit(2), now=0)
    assert len(table) == 4


def test_after_a_restart_it_is_known_which_addresses_are_on_trial(table: FakeTable, used: FakeTable) -> None:
    Learned(table, used, 4, 4).credit(on_trial(1, addresses=MANY), now=0)
    learned = Learned(table, used, 4, 4)
    learned.tried = {12: frozenset({1})}
    sweep(learned, frozenset({12}), now=0)
    learned.credit(on_trial(2, addresses=(A,)), now=0)
    assert (12, A) in table.holds() and len(table) == 4


def test_a_table_full_of_names_on_trial_takes_others(learned: Learned, table: FakeTable) -> None:
    learned.tried = {13: frozenset({1})}
    learned.credit(on_trial(1, addresses=(A, B), endpoint=13), now=0)
    table.size = 2
    with pytest.raises(OSError, match="full"):
        learned.credit(on_trial(1, addresses=(C,), endpoint=13), now=0)
    learned.credit(credit(3, addresses=(A, B)), now=0)
    assert list(table.holds()) == [(12, A), (12, B)]
    with pytest.raises(OSError, match="full"):
        learned.credit(credit(3, addresses=(C,)), now=0)


def test_names_on_trial_do_not_shorten_how_long_others_stay_for_silent_connections(
    learned: Learned, table: FakeTable, used: FakeTable
) -> None:
    learned.tried = {12: frozenset({1})}
    learned.credit(credit(3), now=0)
    learned.credit(on_trial(1, addresses=MANY[:3], until_s=9000)._replace(name=(b"y", b"io")), now=0)
    used.put(FqdnKey.STRUCT.pack(12, A), Instant(10**9).pack())
    sweep(learned, frozenset({12}), now=200)
    assert (12, A) in table.holds()


def test_a_pod_makes_no_more_names_known_than_twice_the_addresses_that_it_may_have(learned: Learned) -> None:
    """It may ask for ever new ones, which all lead to few addresses; the last of each address are known."""
    for number in range(6):
        for address in (A, B):
            learned.credit(credit(3, addresses=(address,))._replace(name=(b"n%d" % number,)), now=0)
    learned.credit(credit(3, addresses=(C,))._replace(name=(b"x",) * 17), now=0)
    learned.credit(credit(3, endpoint=13), now=0)
    names = {(entry.endpoint, entry.address): list(entry.names) for entry in learned.entries(0)}
    last = [(b"n%d" % number,) for number in range(2, 6)]
    assert names == {(12, A): last, (12, B): last, (12, C): [], (13, A): [NAME]}
    copy = Learned(learned._table, FakeTable(), 4, 4)
    copy.load(learned.dump())
    copy.credit(credit(3, addresses=(C,)), now=0)
    assert [list(entry.names) for entry in copy.entries(0) if entry.address == C] == [[]], "as many as it may have"


def test_large_answers_for_ever_new_names_take_no_memory(table: FakeTable, used: FakeTable) -> None:
    learned = Learned(table, used, 256, 256)

    def ask(numbers: range) -> None:
        for number in numbers:
            addresses = tuple(number.to_bytes(16) for number in range(256))
            learned.credit(credit(3, addresses=addresses)._replace(name=(b"n%d" % number,)), now=0)

    ask(range(50))
    tracemalloc.start()
    try:
        ask(range(50, 150))
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 400_000, "1.5 MB if each answer were remembered"


def test_of_nine_that_are_alike_one_stands_for_another(learned: Learned, table: FakeTable) -> None:
    """Nine names of one rule behind one front end; a tenth, that is not alike, has no room."""
    alike = frozenset({frozenset(range(1, 10))})
    for number in range(1, 10):
        learned.credit(credit(number, until_s=500 - number)._replace(alike=alike), now=0)
    assert table.holds() == {(12, A): {n: 500 - n for n in range(1, 8)} | {9: 491}}
    learned.credit(credit(8, until_s=600)._replace(alike=alike), now=0)
    assert table.holds() == {(12, A): {n: 500 - n for n in range(1, 8)} | {8: 600}}
    with pytest.raises(Refused, match="endpoint 12 needs 9 selectors for one address"):
        learned.credit(credit(10), now=0)
    learned.credit(credit(10, until_s=50)._replace(alike=alike), now=0)
    assert 10 in table.holds()[12, A], "there is room for it if some of the others are alike"


def test_who_stands_for_another_is_open_for_as_long(learned: Learned, table: FakeTable) -> None:
    alike = frozenset({frozenset({1, 9})})
    learned.credit(credit(*range(1, 9), until_s=500), now=0)
    learned.credit(credit(9, until_s=300)._replace(alike=alike), now=0)
    assert table.holds() == {(12, A): dict.fromkeys(range(2, 10), 500)}


def test_an_expired_slot_is_free(learned: Learned, table: FakeTable) -> None:
    learned.credit(credit(1, until_s=50), now=0)
    learned.credit(credit(*range(2, 9), until_s=500), now=0)
    learned.credit(credit(9, until_s=600), now=50)
    assert table.holds() == {(12, A): dict.fromkeys(range(2, 9), 500) | {9: 600}}


def test_a_full_table_is_an_error_of_the_kernels(learned: Learned, table: FakeTable) -> None:
    table.size = 1
    learned.credit(credit(1), now=0)
    with pytest.raises(OSError, match="full"):
        learned.credit(credit(1, addresses=(B,)), now=0)
    learned.credit(credit(2), now=0)


def test_one_pod_cannot_fill_the_table(learned: Learned) -> None:
    addresses = [pack(f"192.0.2.{n}") for n in range(5)]
    learned.credit(credit(1, addresses=tuple(addresses[:4])), now=0)
    with pytest.raises(Refused, match="endpoint 12 has learned 4 addresses"):
        learned.credit(credit(1, addresses=(addresses[4],)), now=0)
    learned.credit(credit(2, addresses=(addresses[0],)), now=0)
    learned.credit(credit(1, addresses=(addresses[4],), endpoint=13), now=0)
    assert len(learned) == 5


def test_one_name_cannot_take_all_that_its_pod_may_learn(table: FakeTable, used: FakeTable) -> None:
    learned = Learned(table, used, max_per_pod=4, max_per_name=2)
    other = (b"y", b"io")
    full = "endpoint 12 has learned 2 addresses of x.io., the most of one name"
    learned.credit(credit(1, addresses=(A, B)), now=0)
    with pytest.raises(Refused, match=full):
        learned.credit(credit(1, addresses=(C,)), now=0)
    learned.credit(credit(1, addresses=(A, B), until_s=200), now=0)
    learned.credit(credit(1, addresses=(C,), endpoint=13), now=0)
    learned.credit(credit(2, addresses=(A, C), until_s=500)._replace(name=other), now=0)
    with pytest.raises(Refused, match=full):
        learned.credit(credit(1, addresses=(C,)), now=0)
    again = Learned(table, used, max_per_pod=4, max_per_name=2)
    again.load(learned.dump())
    for daemon in (learned, again):
        with pytest.raises(Refused, match=full):
            daemon.credit(credit(1, addresses=(C,)), now=0)
    sweep(learned, None, now=200)
    assert table.holds().keys() == {(12, A), (12, C)}
    learned.credit(credit(1, addresses=(C,), until_s=300), now=200)
    with pytest.raises(Refused, match=full):
        learned.credit(credit(1, addresses=(B,), until_s=300), now=200)
    for now in (500, 1000):
        sweep(learned, frozenset(), now)
    assert table.holds() == {}
    assert not learned._of_name


def test_a_name_that_an_address_has_no_room_for_has_it_no_more(table: FakeTable, used: FakeTable) -> None:
    learned = Learned(table, used, max_per_pod=4, max_per_name=1)
    for n in range(9):
        learned.credit(credit(1)._replace(name=(b"%d" % n, b"io")), now=0)
    learned.credit(credit(1, addresses=(B,))._replace(name=(b"0", b"io")), now=0)
    with pytest.raises(Refused, match=r"1 addresses of 1\.io\."):
        learned.credit(credit(1, addresses=(B,))._replace(name=(b"1", b"io")), now=0)


def test_what_was_learned_before_a_restart_is_there(table: FakeTable, used: FakeTable, learned: Learned) -> None:
    learned.credit(credit(1), now=0)
    again = Learned(table, used, max_per_pod=1, max_per_name=1)
    assert len(again) == 1
    with pytest.raises(Refused):
        again.credit(credit(1, addresses=(B,)), now=0)
    (entry,) = again.entries(now=0)
    assert (entry.endpoint, entry.address, entry.expiries_s, entry.names) == (12, A, {1: 100}, {})
    again.load(learned.dump())
    (entry,) = again.entries(now=0)
    assert entry.names == {NAME: SERVER}


def test_names_are_believed_of_what_the_table_holds_alone(table: FakeTable, used: FakeTable, learned: Learned) -> None:
    learned.credit(credit(1, addresses=(A, B)), now=0)
    text = learned.dump()
    table.delete(FqdnKey(12, A).pack())
    again = Learned(table, used, max_per_pod=4, max_per_name=4)
    again.load(text)
    assert [(entry.address, entry.names) for entry in again.entries(now=0)] == [(B, {NAME: SERVER})]
    again.credit(credit(1), now=0)
    assert {entry.address for entry in again.entries(now=0) if entry.names} == {A, B}
    again.load(text.replace("[12,", "[13,"))
    assert {entry.endpoint for entry in again.entries(now=0)} == {12}


def test_so_many_names_are_copied_and_no_more() -> None:
    learned = Learned(table := FakeTable(), FakeTable(), max_per_pod=COPIED + 1, max_per_name=COPIED + 1)
    for n in range(COPIED + 1):
        learned.credit(credit(1, addresses=(n.to_bytes(16),)), now=0)
    again = Learned(table, FakeTable(), max_per_pod=1, max_per_name=1)
    again.load(learned.dump())
    assert [entry.address for entry in again.entries(now=0) if not entry.names] == [bytes(16)]


def test_names_are_copied_when_there_are_new_ones(learned: Learned) -> None:
    assert not learned.changed
    learned.credit(credit(1), now=0)
    assert learned.changed
    learned.dump()
    learned.credit(credit(1, until_s=500), now=0)
    assert not learned.changed
    learned.credit(credit(1, until_s=600)._replace(server=B), now=0)
    assert learned.changed


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[["half',
        "7",
        "{}7",
        "null",
        '["row"]',
        "[[12]]",
        '[{"endpoint": 12}]',
        '[[12, "c0000201", []]]',
        '[["12", "GOOD", []]]',
        '[[-1, "GOOD", []]]',
        '[[12, "GOOD", 7]]',
        '[[12, "GOOD", {"name": "server"}]]',
        '[[12, "GOOD", [[["78"], ""]]]]',
        '[[12, "GOOD", [[["zz"], "GOOD"]]]]',
        '[[12, "GOOD", [[[7], "GOOD"]]]]',
    ],
)
def test_a_copy_that_is_not_one_is_refused_whole(learned: Learned, text: str) -> None:
    learned.credit(credit(1, addresses=(A, B)), now=0)
    good = learned.dump().strip().removeprefix("[").removesuffix("]")
    again = Learned(learned._table, FakeTable(), max_per_pod=4, max_per_name=4)
    bad = text.replace("GOOD", A.hex())
    with pytest.raises(ValueError):
        again.load(bad)
    if bad.startswith("[") and bad.endswith("]"):
        with pytest.raises(ValueError):
            again.load(f"[{good}, {bad[1:]}")
    assert [entry.names for entry in again.entries(now=0)] == [{}, {}]


def test_the_sweep_removes_what_has_expired(learned: Learned, table: FakeTable) -> None:
    learned.credit(credit(1), now=0)
    learned.credit(credit(1, addresses=(B,), until_s=500), now=0)
    sweep(learned, frozenset({12}), now=99.5)
    assert table.holds().keys() == {(12, A), (12, B)}
    sweep(learned, frozenset({12}), now=100)
    assert table.holds() == {(12, B): {1: 500}}
    assert len(learned) == 1


def test_what_is_kept_for_silent_connections_is_not_counted_as_open(
    learned: Learned, table: FakeTable, used: FakeTable
) -> None:
    learned.credit(credit(1, addresses=(A, B), until_s=100), now=0)
    learned.credit(credit(1, addresses=(B,), until_s=500), now=0)
    used[FqdnKey(12, A).pack()] = Instant(int(10e9)).pack()
    sweep(learned, frozenset({12}), now=200)
    assert len(learned) == 2 and learned.open(now=200) == 1


def test_an_address_in_use_is_open_until_the_use_ends(learned: Learned, table: FakeTable, used: FakeTable) -> None:
    learned.credit(credit(1, 2), now=0)
    key = FqdnKey(12, A).pack()
    for now in range(90, 400, 10):
        used[key] = Instant(int((now - 1) * 1e9)).pack()
        sweep(learned, frozenset({12}), now)
        assert table.holds()[12, A][1] > now + 20
    last_use = now
    for now in range(last_use, last_use + 300, 10):
        sweep(learned, frozenset({12}), now)
    assert list(learned.entries(now)) == []
    assert last_use + IN_USE_S <= now


def test_what_has_expired_stays_for_connections_that_are_silent(
    learned: Learned, table: FakeTable, used: FakeTable
) -> None:
    """As long as the programs know them: judged again by other rules, they are asked which name allowed them."""
    for address in (A, B):
        learned.credit(credit(1, addresses=(address,)), now=0)
    used[FqdnKey(12, A).pack()] = Instant(30 * 10**9).pack()
    sweep(learned, frozenset({12}), now=30 + SILENT_S - 1)
    assert table.holds() == {(12, A): {1: 100}}, "nobody has used the other one"
    learned.credit(credit(*range(2, 9), until_s=9000), now=8000)
    assert table.holds() == {(12, A): {1: 100} | dict.fromkeys(range(2, 9), 9000)}
    used[FqdnKey(12, A).pack()] = Instant(8985 * 10**9).pack()
    sweep(learned, frozenset({12}), now=8990)
    assert table.holds() == {(12, A): {1: 100} | dict.fromkeys(range(2, 9), 9050)}
    learned.credit(credit(9, until_s=9050), now=8990)
    assert 1 not in table.holds()[12, A], "a slot is for who needs it"
    sweep(learned, frozenset({12}), now=8985 + SILENT_S)
    assert table.holds() == {}


def test_what_has_expired_takes_no_room_that_its_pod_needs(table: FakeTable, used: FakeTable) -> None:
    learned = Learned(table, used, max_per_pod=4, max_per_name=4)
    addresses = tuple(pack(f"192.0.2.{number}") for number in range(1, 5))
    learned.credit(credit(1, addresses=addresses), now=0)
    for address in addresses:
        used[FqdnKey(12, address).pack()] = Instant(30 * 10**9).pack()
    sweep(learned, frozenset({12}), now=100)
    assert len(table) == 2


def test_what_has_expired_takes_no_room_that_its_name_needs(table: FakeTable, used: FakeTable) -> None:
    """A name whose addresses rotate has used them all within the hours for which they stay."""
    learned = Learned(table, used, max_per_pod=16, max_per_name=4)
    addresses = tuple(pack(f"192.0.2.{number}") for number in range(1, 6))
    learned.credit(credit(1, addresses=addresses[:4]), now=0)
    for address in addresses[:4]:
        used[FqdnKey(12, address).pack()] = Instant(30 * 10**9).pack()
    sweep(learned, frozenset({12}), now=100)
    assert len(table) == 2
    learned.credit(credit(1, addresses=addresses[4:], until_s=200), now=100)


@pytest.mark.parametrize("since_sweep_s", [0.1, SWEEP_S / 2, SWEEP_S - 0.1])
def test_an_address_in_use_outlives_the_shortest_time(
    learned: Learned, table: FakeTable, used: FakeTable, since_sweep_s: float
) -> None:
    learned.credit(credit(1, until_s=1000), now=1000)
    for number in range(1, 10):
        now = 1000 - since_sweep_s + number * SWEEP_S
        assert table.holds()[12, A][1] > now
        used[FqdnKey(12, A).pack()] = Instant(int((now - 0.1) * 1e9)).pack()
        sweep(learned, frozenset({12}), now)
    sweep(learned, frozenset({12}), now + 2 * IN_USE_S)
    assert list(learned.entries(now + 2 * IN_USE_S)) == []


def test_an_endpoint_is_forgotten_some_time_after_the_rules_do(learned: Learned, table: FakeTable) -> None:
    for number in (12, 13):
        learned.credit(credit(1, endpoint=number, until_s=9999), now=0)
    sweep(learned, frozenset({12}), now=0)
    sweep(learned, frozenset({12, 13}), now=200)
    sweep(learned, frozenset({12}), now=400)
    sweep(learned, None, now=800)
    assert table.holds().keys() == {(12, A), (13, A)}
    sweep(learned, frozenset({12}), now=800)
    assert table.holds().keys() == {(12, A)}


def test_an_address_credited_during_a_sweep_is_kept(learned: Learned, table: FakeTable) -> None:
    for n in range(300):
        learned.credit(credit(1, addresses=(pack(f"10.9.{n >> 8}.{n & 255}"),), endpoint=100 + n), now=0)
    steps = learned.sweep(None, 200, 300)
    next(steps)
    last = pack("10.9.1.43")
    learned.credit(credit(1, addresses=(last,), endpoint=399, until_s=900), now=200)
    list(steps)
    assert table.holds() == {(399, last): {1: 900}}


def test_entries_name_what_led_to_them(learned: Learned) -> None:
    for n in range(10):
        learned.credit(Credit(12, (A,), frozenset({1}), (b"%d" % n, b"io"), SERVER, 100), now=0)
    (entry,) = learned.entries(now=0)
    assert list(entry.names) == [(b"%d" % n, b"io") for n in range(2, 10)]
    assert set(entry.names.values()) == {SERVER}
    assert list(learned.entries(now=100)) == []


def test_entries_that_nobody_asks_for_are_not_read(learned: Learned, table: FakeTable) -> None:
    """Who observes a pod that scans the world asks again and again, and the questions of pods wait meanwhile."""
    learned.credit(credit(3, addresses=(A, B)), now=0)
    assert [entry.address for entry in learned.entries(0, frozenset({B}))] == [B]
    table[FqdnKey(12, A).pack()] = b"not to be read"
    assert [entry.address for entry in learned.entries(0, frozenset({B}))] == [B]


def test_what_the_table_holds_is_not_written_again(learned: Learned, table: FakeTable) -> None:
    learned.credit(credit(1, addresses=(A, B), until_s=99.5), now=0)
    table.writes = 0
    learned.credit(credit(1, addresses=(A, B), until_s=99.6), now=0.1)
    assert table.writes == 0
    learned.credit(credit(1, addresses=(A, B), until_s=100.1), now=0.6)
    assert table.writes == 2
    assert table.holds() == {(12, A): {1: 101}, (12, B): {1: 101}}


def test_what_was_not_written_whole_is_written_when_it_comes_again(learned: Learned, table: FakeTable) -> None:
    table.size = 1
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            learned.credit(credit(1, addresses=(A, B)), now=0)
    table.size = 2
    learned.credit(credit(1, addresses=(A, B)), now=0)
    assert table.holds().keys() == {(12, A), (12, B)}


def test_what_was_removed_is_written_when_it_comes_again(learned: Learned, table: FakeTable) -> None:
    """Its endpoint had gone from the rules for a while, and is back."""
    learned.credit(credit(1, until_s=9999), now=0)
    for now in (0, 400):
        sweep(learned, frozenset(), now)
    assert table.holds() == {}
    learned.credit(credit(1, until_s=9999), now=400)
    assert table.holds() == {(12, A): {1: 9999}}


def test_so_many_credits_are_remembered_and_no_more(learned: Learned) -> None:
    for n in range(SETTLED + 1):
        learned.credit(Credit(12, (A,), frozenset({1}), (b"%d" % n, b"io"), SERVER, 100), now=0)
    assert len(learned._settled) == 1


credits_ = st.builds(
    Credit,
    st.sampled_from([12, 13]),
    st.sampled_from([(A,), (B,), (A, B)]),
    st.frozensets(st.integers(1, 12), min_size=1, max_size=9),
    st.just(NAME),
    st.just(SERVER),
    st.integers(1, 200),
    alike=st.just(frozenset()),
    tried=st.just(frozenset()),
)


@given(st.lists(st.tuples(credits_ | st.none(), st.floats(0, 40)), max_size=25))
def test_the_table_is_what_a_list_of_all_credits_says(steps: list[tuple[Credit | None, float]]) -> None:
    """Every live (endpoint, address, selector) is in the table with its latest expiry, and no other; None: a sweep."""
    table, now = FakeTable(), 0.0
    learned = Learned(table, FakeTable(), max_per_pod=9, max_per_name=9)
    expected: dict[tuple[int, bytes], dict[int, float]] = {}
    for step, wait in steps:
        now += wait
        if step is None:
            sweep(learned, None, now)
            continue
        fits = True
        for address in step.addresses:
            held = {s: at for s, at in expected.get((step.endpoint, address), {}).items() if at > now}
            until_s = -(-(now + max(step.until_s, LEAST_S)) // 1)
            merged = held | {s: max(held.get(s, 0), until_s) for s in step.selectors}
            fits = fits and len(merged) <= 8
            if fits:
                expected[step.endpoint, address] = merged
        if fits:
            learned.credit(step._replace(until_s=now + step.until_s), now)
        else:
            with pytest.raises(Refused):
                learned.credit(step._replace(until_s=now + step.until_s), now)
        live = {key: {s: at for s, at in found.items() if at > now} for key, found in expected.items()}
        assert {(e.endpoint, e.address): e.expiries_s for e in learned.entries(now)} == {
            k: v for k, v in live.items() if v
        }


def test_who_is_inside_the_cluster() -> None:
    table = FakeTable()
    pod, ranged, stranger = pack("10.244.2.53"), pack("192.168.86.1"), pack("192.168.86.2")
    for address, node in ((pod, pack("192.168.86.22")), (ranged, bytes(16))):
        table[PrefixKey(128, address).pack()] = Identity(70_000, 0, node).pack()
    identities = Identities(table)
    assert [identities.inside(address) for address in (pod, ranged, stranger)] == [True, False, False]

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruments.dns_talk import answer_to, question
from netstack.core.address import pack
from netstack.dns import heard
from netstack.dns.heard import KEPT_S, Fact, Memory
from netstack.dns.names import KEPT_LABELS
from netstack.dns.session import Unopened
from netstack.kernel.layout import Heard

SERVER, WEB, OTHER = pack("10.244.2.53"), pack("192.0.2.1"), pack("192.0.2.2")
NAME = (b"x", b"io")


def record(message: bytes, endpoint: int = 12) -> bytes:
    return Heard(SERVER, endpoint, len(message)).pack() + message + b"\0" * (-len(message) % 8)


def said(*lines: str, name: str = "x.io", rcode: int = 0, endpoint: int = 12) -> bytes:
    return record(answer_to(question(name), *lines, rcode=rcode), endpoint)


@pytest.fixture
def memory() -> Memory:
    return Memory(lambda ttl_s: max(ttl_s, 60), most_per_answer=4)


def test_what_a_server_said_is_remembered_with_the_life_that_the_proxy_gives(memory: Memory) -> None:
    memory.hear(said("x.io. 90 A 192.0.2.1", "x.io. 90 A 192.0.2.2"), now=1000)
    assert memory.of(12) == [Fact(12, NAME, address, SERVER, 1000, 1090) for address in (WEB, OTHER)]
    assert (list(memory), len(memory), memory.of(13)) == (memory.of(12), 2, [])


def test_said_again_it_is_renewed(memory: Memory) -> None:
    for now in (1000, 1050):
        memory.hear(said("x.io. 5 A 192.0.2.1"), now)
    (fact,) = memory
    assert (fact.heard_s, fact.until_s, len(memory)) == (1050, 1110, 1)


@pytest.mark.parametrize(
    "junk",
    [
        record(b""),
        record(question("x.io")),
        said("x.io. 5 A 192.0.2.1")[:-9],
        said("x.io. 5 A 192.0.2.1", "bank.io. 5 A 192.0.2.2"),
        said("x.io. 5 A 192.0.2.1").replace(b"\0\1\0\1", b"\0\1\0\3", 1),
    ],
    ids=["nothing", "a question", "cut", "a record beside the chain", "another class"],
)
def test_what_the_proxy_would_not_pass_on_is_not_believed(memory: Memory, junk: bytes) -> None:
    memory.hear(junk, now=1000)
    assert (len(memory), memory.unreadable) == (0, 1)


def test_what_is_no_address_is_not_remembered(memory: Memory) -> None:
    memory.hear(said("x.io. 5 A 192.0.2.1", rcode=3), now=1000)
    memory.hear(said(*(f"x.io. 5 A 192.0.2.{number}" for number in range(5))), now=1000)
    memory.hear(said("x.io. 5 CNAME y.io."), now=1000)
    assert (len(memory), memory.unreadable) == (0, 0)


def test_what_the_proxy_passes_on_is_remembered_as_its_own(memory: Memory) -> None:
    memory.note(Unopened(12, NAME, (WEB, OTHER), SERVER, 90), now=1000)
    assert memory.of(12) == [Fact(12, NAME, address, SERVER, 1000, 1090, proxied=True) for address in (WEB, OTHER)]
    again = Memory(lambda ttl_s: ttl_s, most_per_answer=4)
    again.load(memory.dump())
    assert list(again) == list(memory)


def test_a_copy_of_an_earlier_release_is_taken(memory: Memory) -> None:
    memory.load('[[12, ["78"], "' + WEB.hex() + '", "' + SERVER.hex() + '", 1000, 1090]]')
    assert memory.of(12) == [Fact(12, (b"x",), WEB, SERVER, 1000, 1090)]


def test_names_of_ever_so_many_labels_take_no_memory(memory: Memory) -> None:
    memory.note(Unopened(12, (b"x",) * (KEPT_LABELS + 1), (WEB,), SERVER, 90), now=1000)
    assert len(memory) == 0


def test_a_pod_forgets_its_own_oldest(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heard, "MOST_PER_POD", 2)
    memory.hear(said("x.io. 5 A 192.0.2.9", endpoint=13), now=999)
    for number in range(4):
        memory.hear(said(f"x.io. 5 A 192.0.2.{number}"), now=1000 + number)
    assert [fact.address for fact in memory.of(12)] == [pack("192.0.2.2"), pack("192.0.2.3")]
    assert len(memory.of(13)) == 1


def test_all_pods_together_forget_of_the_one_that_has_most(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heard, "MOST", 4)
    for number in range(4):
        memory.hear(said(f"x.io. 5 A 192.0.2.{number}"), now=1000)
    memory.hear(said("x.io. 5 A 192.0.2.9", endpoint=13), now=1000)
    assert (len(memory.of(12)), len(memory.of(13)), len(memory)) == (3, 1, 4)


def test_a_day_later_nothing_is_known(memory: Memory) -> None:
    memory.hear(said("x.io. 5 A 192.0.2.1"), now=1000)
    memory.expire(1000 + KEPT_S)
    assert len(memory) == 1
    memory.expire(1001 + KEPT_S)
    assert (len(memory), list(memory)) == (0, [])


def test_the_next_daemon_knows_it(memory: Memory) -> None:
    memory.hear(said("x.io. 5 A 192.0.2.1", "x.io. 5 A 192.0.2.2"), now=1000)
    assert memory.changed
    text = memory.dump()
    assert not memory.changed
    again = Memory(lambda ttl_s: ttl_s, most_per_answer=4)
    again.load(text)
    assert list(again) == list(memory)


@pytest.mark.parametrize("text", ["", "{", "7", "[[1]]", "[[1, 2, 3, 4, 5, 6]]", '[[1, ["x"], "", "", 0, 0]]'])
def test_a_file_of_something_else_is_said(memory: Memory, text: str) -> None:
    with pytest.raises(ValueError):
        memory.load(text)
    assert len(memory) == 0


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5), st.booleans()), max_size=30))
def test_it_holds_what_was_said_last_and_not_taken(steps: list[tuple[int, int, bool]]) -> None:
    memory = Memory(lambda ttl_s: 60, most_per_answer=4)
    expected: dict[tuple[int, int], float] = {}
    for now, (endpoint, number, takes) in enumerate(steps):
        if takes:
            for fact in memory.of(endpoint):
                memory.take(fact)
            expected = {key: at for key, at in expected.items() if key[0] != endpoint}
        else:
            memory.hear(said(f"x.io. 5 A 192.0.2.{number}", endpoint=endpoint), now)
            expected[endpoint, number] = now
        assert {(fact.endpoint, fact.address[-1]): fact.heard_s for fact in memory} == expected
        assert len(memory) == len(expected)

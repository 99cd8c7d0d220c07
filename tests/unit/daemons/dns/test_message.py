from __future__ import annotations

import struct

import dnslib
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instruments.dns_talk import answer_to, question
from netstack.core.address import pack
from netstack.dns.message import (
    MAX_RECORDS,
    Explained,
    Malformed,
    Rcode,
    answers,
    identified,
    read_answer,
    read_heard,
    read_query,
    renamed,
    reply,
)

NAME = b"\3api\1x\2io\0"
IDENT = b"\0\x63"
"""99."""


def message(question_name: bytes = NAME, records: bytes = b"", counts: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    return struct.pack("!6H", 7, 0x8180, 1, *counts) + question_name + b"\0\1\0\1" + records


def record(owner: bytes, kind: int, data: bytes, ttl: int = 60, cls: int = 1) -> bytes:
    return owner + struct.pack("!HHIH", kind, cls, ttl, len(data)) + data


def test_a_query_is_read_with_its_spelling_kept() -> None:
    payload = question("API.Anthropic.com", "AAAA", edns=True)
    query = read_query(payload)
    assert (query.name, query.type, query.cls) == ((b"api", b"anthropic", b"com"), 28, 1)
    assert query.question == payload[12 : 12 + len(query.question)]
    assert b"API" in query.question
    assert query.edns and query.is_lookup


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "shorter than a header"),
        (message(), "not a standard query"),
        (struct.pack("!6H", 7, 5 << 11, 1, 0, 0, 0) + NAME + b"\0\1\0\1", "not a standard query"),
        (struct.pack("!6H", 7, 0x100, 2, 0, 0, 0) + NAME + b"\0\1\0\1" * 2, "other sections"),
        (struct.pack("!6H", 7, 0x100, 1, 1, 0, 0) + NAME + b"\0\1\0\1" + record(NAME, 1, b"1234"), "other sections"),
        (struct.pack("!6H", 7, 0x100, 1, 0, 0, 1) + NAME + b"\0\1\0\1" + record(NAME, 1, b"1234"), "not EDNS"),
        (struct.pack("!6H", 7, 0x100, 1, 0, 0, 1) + NAME + b"\0\1\0\1" + record(NAME, 41, b""), "not EDNS"),
        (question("x.io") + b"tunnel", "bytes behind its end"),
        (question("x.io")[:-1], "cut in the question"),
        (question("x.io")[:14], "cut in a name"),
        (struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", "pointer that does not point back"),
        (struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"\xc0\x00\0\1\0\1", "pointer that does not point back"),
        (struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"\x40x\0\0\1\0\1", "a label type that does not exist"),
        (struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", "more than 255 bytes"),
        (question("x.io", edns=True) + bytes(1300), "a query of 1333 bytes"),
    ],
)
def test_a_query_that_is_more_or_less_than_one_question_is_malformed(payload: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        read_query(payload)


@pytest.mark.parametrize("kind", ["AXFR", "IXFR"])
def test_a_zone_transfer_is_no_lookup(kind: str) -> None:
    assert not read_query(question("x.io", kind)).is_lookup


def test_an_answer_answers_by_id_and_question_whatever_its_case() -> None:
    query = read_query(question("Api.x.iO"))
    answer = answer_to(renamed(question("aPI.X.io"), IDENT, question("aPI.X.io")[12:]), "api.x.io. 5 A 1.2.3.4")
    assert answers(answer, IDENT, query)
    assert not answers(answer, b"\0\x62", query)
    assert not answers(question("Api.x.iO", ident=99), IDENT, query)
    assert not answers(answer_to(question("apj.x.io", ident=99)), IDENT, query)
    assert not answers(answer_to(question("api.x.io", "AAAA", 99)), IDENT, query)
    assert not answers(answer[:20], IDENT, query)


def test_records_that_lead_to_addresses_are_read() -> None:
    answer = read_answer(
        answer_to(
            question("Www.x.io", "ANY"),
            "www.x.io. 300 CNAME cdn.Y.io.",
            "cdn.y.io. 20 A 192.0.2.1",
            "cdn.y.io. 30 AAAA 2001:db8::1",
            'cdn.y.io. 40 TXT "ignored"',
        )
    )
    assert (answer.rcode, answer.name) == (0, (b"www", b"x", b"io"))
    www, first, second = answer.records
    assert (www.owner, www.ttl_s, www.target, www.addresses) == ((b"www", b"x", b"io"), 300, (b"cdn", b"y", b"io"), ())
    assert (first.owner, first.ttl_s, first.addresses) == ((b"cdn", b"y", b"io"), 20, (pack("192.0.2.1"),))
    assert second.addresses == (pack("2001:db8::1"),)


@pytest.mark.parametrize("kind", [64, 65], ids=["SVCB", "HTTPS"])
def test_hints_of_a_service_record_are_addresses(kind: int) -> None:
    hints = struct.pack("!HH", 4, 8) + bytes([192, 0, 2, 1, 192, 0, 2, 2]) + struct.pack("!HH", 6, 16) + pack("fd00::1")
    other = struct.pack("!HH", 1, 3) + b"\2h2"
    (found,) = read_answer(
        message(records=record(b"\xc0\x0c", kind, b"\0\1\0" + other + hints), counts=(1, 0, 0))
    ).records
    assert found.target is None
    assert found.addresses == (pack("192.0.2.1"), pack("192.0.2.2"), pack("fd00::1"))
    (alias,) = read_answer(message(records=record(b"\xc0\x0c", kind, b"\0\0\1y\0"), counts=(1, 0, 0))).records
    assert (alias.target, alias.addresses) == ((b"y",), ())


def test_records_outside_the_answer_section_and_class_are_not_read() -> None:
    a = record(b"\xc0\x0c", 1, b"\1\2\3\4")
    assert read_answer(message(records=a, counts=(0, 1, 0))).records == ()
    assert read_answer(message(records=a, counts=(0, 0, 1))).records == ()
    assert read_answer(message(records=record(b"\xc0\x0c", 1, b"\1\2\3\4", cls=3), counts=(1, 0, 0))).records == ()


def test_an_answer_that_was_heard_says_what_it_is_about() -> None:
    answer = read_heard(answer_to(question("Www.x.io"), "www.x.io. 300 A 192.0.2.1"))
    assert answer.name == (b"www", b"x", b"io")
    assert answer == read_answer(answer_to(question("Www.x.io"), "www.x.io. 300 A 192.0.2.1"))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (question("x.io"), "not an answer to one question"),
        (struct.pack("!6H", 7, 0x8180, 0, 0, 0, 0), "not an answer to one question"),
        (struct.pack("!6H", 7, 0x8980, 1, 0, 0, 0) + question("x.io")[12:], "not an answer to one question"),
        (answer_to(question("x.io"))[:-1] + b"\3", "of another class than the Internet's"),
        (b"", "shorter than a header"),
    ],
)
def test_what_was_heard_and_is_no_answer_is_malformed(payload: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        read_heard(payload)


def test_a_ttl_with_its_top_bit_set_is_zero() -> None:
    (found,) = read_answer(
        message(records=record(b"\xc0\x0c", 1, b"\1\2\3\4", ttl=0x80000001), counts=(1, 0, 0))
    ).records
    assert found.ttl_s == 0


ANSWER_SECTION = len(message())
"""Where it starts."""


@pytest.mark.parametrize(
    ("records", "counts", "reason"),
    [
        (b"", (1, 0, 0), "cut in a name"),
        (record(b"\xc0\x0c", 1, b"\1\2\3\4")[:-1], (1, 0, 0), "cut in a record's data"),
        (record(b"\xc0\x0c", 1, b"")[:-3], (1, 0, 0), "cut in a record"),
        (record(b"\xc0\x0c", 1, b"\1\2\3\4\5"), (1, 0, 0), "not 4 bytes"),
        (record(b"\xc0\x0c", 28, b"\1\2\3\4"), (1, 0, 0), "not 16 bytes"),
        (record(b"\xc0\x0c", 1, b"\1\2\3\4") + b"x", (1, 0, 0), "bytes behind its end"),
        (b"", (MAX_RECORDS, 1, 0), f"an answer of {MAX_RECORDS + 1} records"),
        (record(struct.pack("!H", 0xC000 | ANSWER_SECTION), 1, b"\1\2\3\4"), (1, 0, 0), "does not point back"),
        (record(b"\xc0\x0c", 5, b"\xff\xff"), (1, 0, 0), "does not point back"),
        (record(b"\xc0\x0c", 5, b"\1y\0z"), (1, 0, 0), "bytes behind its name"),
        (record(b"\xc0\x0c", 5, b"\5y") + b"\0\0\0\0", (1, 0, 0), "cut in a name"),
        (record(b"\xc0\x0c", 65, b"\0"), (1, 0, 0), "cut in a name"),
        (record(b"\xc0\x0c", 65, b"\0\1\0\0"), (1, 0, 0), "cut in a service parameter"),
        (record(b"\xc0\x0c", 65, b"\0\1\0\0\4\0\5\1"), (1, 0, 0), "cut in a service parameter"),
        (record(b"\xc0\x0c", 65, b"\0\1\0\0\4\0\5\1\2\3\4\5"), (1, 0, 0), "no list of addresses"),
    ],
)
def test_an_answer_that_is_not_whole_is_malformed(records: bytes, counts: tuple[int, int, int], reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        read_answer(message(records=records, counts=counts))


def test_pointers_that_lead_in_a_circle_end() -> None:
    """Read from 12: a label of two bytes, then a pointer to 13. Read from 13: the label 'a', then the same pointer."""
    circle = b"\2\1a\xc0\x0d" + b"\0\1\0\1"
    with pytest.raises(Malformed, match="does not point back"):
        read_answer(struct.pack("!6H", 7, 0x8180, 1, 0, 0, 0) + circle)


def test_a_ladder_of_pointers_is_not_climbed() -> None:
    first = ANSWER_SECTION + 11
    rungs = [0x0C, *range(first, first + 2 * 70, 2)]
    ladder = b"".join(struct.pack("!H", 0xC000 | rung) for rung in rungs)
    a = record(struct.pack("!H", 0xC000 | rungs[-1]), 1, b"\1\2\3\4")
    with pytest.raises(Malformed, match="more than 10 parts"):
        read_answer(message(records=record(b"\0", 16, ladder) + a, counts=(2, 0, 0)))


LONG = b"\1a" * 126 + b"\0"
CHEAP, DEAR = b"\xc0\x0c", struct.pack("!H", 0xC000 | 14)


@pytest.mark.parametrize(
    ("kind", "data", "count"),
    [
        (1, b"\1\2\3\4", MAX_RECORDS),
        (5, DEAR, 200),
        (65, b"\0\1\0" + b"\0\x09\0\0" * 25, MAX_RECORDS),
        (65, b"\0\1\0\0\4" + (64000).to_bytes(2) + bytes(64000), 1),
    ],
    ids=["owners", "aliases", "parameters", "hints"],
)
def test_an_answer_that_would_take_long_to_read_is_malformed(kind: int, data: bytes, count: int) -> None:
    """A pod with a server of its own would else keep the answers of all others waiting: 8 KB took 50 ms."""
    records = record(CHEAP, kind, data) * count
    with pytest.raises(Malformed, match="more names and data than anybody needs"):
        read_answer(message(LONG, records, (count, 0, 0)))


def test_as_many_addresses_as_may_be_are_read_of_a_long_name() -> None:
    name = b"\x08longname" * 27 + b"\0"
    records = b"".join(record(CHEAP, 28, number.to_bytes(16)) for number in range(256))
    assert len(read_answer(message(name, records, (256, 0, 0))).records) == 256


@given(st.binary(max_size=80))
@example(b"\xc0\x0c" * 20)
def test_no_bytes_break_the_readers(junk: bytes) -> None:
    for payload in (junk, message(records=junk, counts=(3, 1, 1)), struct.pack("!6H", 7, 0x100, 1, 0, 0, 1) + junk):
        for read in (read_query, read_answer, read_heard):
            try:
                read(payload)
            except Malformed as error:
                assert str(error)


LABEL = st.text("abcXYZ-_09", min_size=1, max_size=10)
HOST = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
V4 = st.ip_addresses(v=4).map(str)


@given(HOST, st.lists(st.tuples(HOST, st.integers(0, (1 << 31) - 1), V4), max_size=8))
def test_what_dnslib_packs_is_read_alike(name: str, hosts: list[tuple[str, int, str]]) -> None:
    packed = answer_to(question(name), *(f"{host}. {ttl} A {address}" for host, ttl, address in hosts))
    parsed = dnslib.DNSRecord.parse(packed)
    found = read_answer(packed).records
    assert [r.owner for r in found] == [tuple(label.lower() for label in rr.rname.label) for rr in parsed.rr]
    assert [(r.ttl_s, *r.addresses) for r in found] == [(rr.ttl, pack(str(rr.rdata))) for rr in parsed.rr]


@given(st.binary(min_size=2, max_size=2), st.binary(min_size=2, max_size=2), HOST)
def test_the_same_message_under_any_id_is_the_same_without_one(one: bytes, other: bytes, name: str) -> None:
    messages = [question(name, ident=int.from_bytes(ident)) for ident in (one, other)]
    assert identified(messages[0]) == identified(messages[1])
    assert identified(identified(messages[0]), other) == messages[1]


@pytest.mark.parametrize("edns", [True, False])
def test_a_reply_of_its_own_is_what_dnslib_reads(edns: bool) -> None:
    query = read_query(question("Evil.example", edns=edns))
    parsed = dnslib.DNSRecord.parse(reply(query, b"\0\x4d", Rcode.REFUSED, Explained.BLOCKED, "name not allowed"))
    assert (parsed.header.id, parsed.header.qr, parsed.header.rd, parsed.header.rcode) == (77, 1, 1, Rcode.REFUSED)
    assert str(parsed.q.qname) == "Evil.example."
    assert parsed.rr == []
    if edns:
        (opt,) = parsed.ar
        (option,) = opt.rdata
        assert (option.code, option.data) == (15, b"\0\x0fname not allowed")
    else:
        assert parsed.ar == []

from __future__ import annotations

import dataclasses
import re
import struct
from typing import Any

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruments.dns_talk import OTHER_POD, POD, SERVER, Talk, answer_to, endpoint, question, rules_text
from netstack.core.address import pack
from netstack.dns.message import MAX_QUERY, Rcode
from netstack.dns.rules import Rules, parse
from netstack.dns.session import (
    KEPT_BYTES,
    MAX_FOREIGN,
    REMEMBERED_REFUSALS,
    Close,
    Credit,
    Drop,
    Forward,
    Reason,
    Reply,
    Transport,
    Unopened,
)
from netstack.dns.settings import DnsSettings
from netstack.kernel.layout import IDENTITY_HOST, IDENTITY_PODS, IDENTITY_PODS_END, IDENTITY_WORLD

API = "api.anthropic.com"


def talk(**settings: object) -> Talk:
    return Talk(
        endpoint(12, POD, {3: API, 4: "*.anthropic.com", 5: "*.x.io"}, queries=("*.svc.cluster.local",)),
        endpoint(13, OTHER_POD, {9: "only.other.io"}),
        settings=DnsSettings(**settings),  # type: ignore[arg-type]
    )


def credited(reply: Reply) -> Credit:
    (credit,) = reply.credits
    return credit


def rcode(payload: bytes) -> int:
    return payload[3] & 0x0F


def test_an_allowed_name_is_asked_and_its_addresses_credited() -> None:
    conversation = talk()
    asked = conversation.ask(API)
    assert asked.sent[:2] == b"\x80\x00"
    reply = conversation.answered(asked, f"{API}. 30 A 192.0.2.1", f"{API}. 30 A 192.0.2.2")
    assert credited(reply) == Credit(
        12,
        (pack("192.0.2.1"), pack("192.0.2.2")),
        frozenset({3, 4}),
        (b"api", b"anthropic", b"com"),
        pack(SERVER),
        1000.0 + conversation.settings.min_ttl_s,
    )
    assert reply.payload == b"\x12\x34" + answer_to(asked.sent, *(f"{API}. 30 A 192.0.2.{n}" for n in (1, 2)))[2:]
    assert rcode(reply.otherwise()) == Rcode.SERVFAIL
    assert conversation.session.in_flight == 0


@pytest.mark.parametrize(("ttl_s", "kept_s"), [(0, 3600), (3600, 3600), (7200, 7200), (10**6, 86400)])
def test_an_address_is_kept_for_its_ttl_within_bounds(ttl_s: int, kept_s: int) -> None:
    conversation = talk()
    credit = credited(conversation.answered(conversation.ask(API), f"{API}. {ttl_s} A 192.0.2.1"))
    assert credit.until_s == conversation.now + kept_s


@pytest.mark.parametrize(
    "name",
    ["evil.example", "anthropic.com", "a.b.anthropic.com", "api.anthropic.com.evil.example", "only.other.io", "."],
)
def test_a_name_that_is_not_allowed_is_refused_unasked(name: str) -> None:
    conversation = talk()
    assert rcode(conversation.refused(name).payload) == Rcode.REFUSED
    assert conversation.session.counters == {Reason.NAME_NOT_ALLOWED: 1}
    assert conversation.session.in_flight == 0
    (refusal,) = conversation.session.refused
    assert (refusal.pod, refusal.reason, refusal.address) == (pack(POD), Reason.NAME_NOT_ALLOWED, b"")


def test_the_last_refusals_are_remembered_each_once() -> None:
    conversation = talk()
    for number in (0, *range(REMEMBERED_REFUSALS), 1):
        conversation.refused(f"evil{number}.example")
    names = [refusal.name[0] for refusal in conversation.session.refused]
    assert len(names) == REMEMBERED_REFUSALS and names[-1] == b"evil1"
    conversation.refused("one.more")
    assert [refusal.name[0] for refusal in conversation.session.refused][::63] == [b"evil2", b"one"]


def test_a_pod_that_asks_for_ever_new_names_does_not_hide_what_another_was_refused() -> None:
    conversation = talk()
    conversation.refused("first.example", pod=OTHER_POD)
    for number in range(2 * REMEMBERED_REFUSALS):
        conversation.refused(f"evil{number}.example")
    assert len(conversation.session.refused) == REMEMBERED_REFUSALS
    assert next(iter(conversation.session.refused)).pod == pack(OTHER_POD)


def test_the_refusal_can_be_nxdomain() -> None:
    assert rcode(talk(refuse_with="NXDOMAIN").refused("evil.example").payload) == Rcode.NXDOMAIN


def test_a_pod_without_rules_may_ask_nothing() -> None:
    conversation = talk()
    reply = conversation.refused(API, pod="10.244.1.99")
    assert (rcode(reply.payload), reply.reason) == (Rcode.REFUSED, Reason.POD_UNKNOWN)


def test_a_zone_transfer_is_refused() -> None:
    assert talk().refused(API, "AXFR").reason is Reason.KIND_NOT_ALLOWED


def test_a_dot_inside_a_label_does_not_make_a_name_allowed() -> None:
    conversation = talk()
    payload = struct.pack("!6H", 1, 0x100, 1, 0, 0, 0) + b"\x06evil.x\2io\0" + b"\0\1\0\1"
    assert isinstance(conversation.say(payload), Reply)


def test_what_is_no_single_question_goes_nowhere() -> None:
    conversation = talk()
    command = conversation.say(question(API) + b"smuggled")
    assert command == Drop(Reason.QUERY_MALFORMED, "a query with bytes behind its end")


def test_a_query_only_name_is_answered_without_credit() -> None:
    conversation = talk()
    name = "db.svc.cluster.local"
    reply = conversation.answered(conversation.ask(name), f"{name}. 5 A 10.96.3.4")
    assert reply.credits == ()


def test_what_no_rule_names_is_to_be_remembered() -> None:
    conversation = Talk(endpoint(12, POD, {3: API}, queries=("*",)))
    told = conversation.answered(conversation.ask("x.io"), "x.io. 5 CNAME y.io.", "y.io. 5 A 192.0.2.1").unopened
    assert told == Unopened(12, (b"x", b"io"), (pack("192.0.2.1"),), pack(SERVER), 5)
    assert conversation.answered(conversation.ask("x.io"), "x.io. 5 CNAME y.io.").unopened is None
    for address in ("192.0.2.1", "192.168.86.7"):
        assert conversation.answered(conversation.ask(API), f"{API}. 5 A {address}").unopened is None


def test_an_alias_of_a_name_that_opens_gives_what_the_name_asked_gives() -> None:
    """Whoever owns a name that may be asked also says what lies behind it, of names that are not theirs too."""
    conversation = talk()
    for name, selectors in (("db.svc.cluster.local", []), ("a.x.io", [{5}])):
        asked = conversation.ask(name)
        reply = conversation.answered(asked, f"{name}. 5 CNAME {API}.", f"{API}. 5 A 203.0.113.66")
        assert reply.reason is Reason.ANSWERED
        assert [credit.selectors for credit in reply.credits] == selectors


SEARCH = ("openclaw.svc.cluster.local", "svc.cluster.local", "cluster.local", "home.lan")


def expanding(**more: Any) -> Talk:
    return Talk(endpoint(12, POD, {3: API, 5: "*.x.io"}, **more))


@pytest.mark.parametrize("domain", SEARCH)
def test_a_name_with_a_search_domain_is_refused_unless_the_domain_is_set(domain: str) -> None:
    assert expanding().refused(f"{API}.{domain}").reason is Reason.NAME_NOT_ALLOWED
    conversation = expanding(search=SEARCH)
    asked = conversation.ask(f"{API}.{domain}")
    answer = conversation.answered(
        asked, f"{API}.{domain}. 30 CNAME {API}.", f"{API}. 30 A 192.0.2.1"
    )  # as CoreDNS' autopath answers
    assert credited(answer)[1:4] == ((pack("192.0.2.1"),), frozenset({3}), (b"api", b"anthropic", b"com"))


@pytest.mark.parametrize(
    "name",
    [
        "evil.example.home.lan",
        f"secret.{API}.home.lan",
        f"{API}.home.lan.home.lan",
        f"{API}.secret.home.lan",
        f"{API}.other.svc.cluster.local",
        f"{API}.lan",
        f"{API}home.lan",
        "home.lan",
        "a.b.x.io.cluster.local",
    ],
)
def test_search_domains_are_no_way_to_any_other_name(name: str) -> None:
    assert expanding(search=SEARCH).refused(name).reason is Reason.NAME_NOT_ALLOWED


def test_where_any_name_may_be_asked_a_search_domain_decides_what_is_credited() -> None:
    """rules.dns with `*`: without the setting the address that autopath gives opens nothing (cilium#20191)."""
    name = f"{API}.svc.cluster.local"
    answer = f"{name}. 30 CNAME {API}.", f"{API}. 30 A 192.0.2.1"
    plain = expanding(queries=("*",))
    assert plain.answered(plain.ask(name), *answer).credits == ()
    conversation = expanding(queries=("*",), search=SEARCH)
    assert credited(conversation.answered(conversation.ask(name), *answer)).selectors == {3}


def test_a_search_domain_opens_no_private_address_unless_the_policy_of_the_name_does() -> None:
    name, record = f"{API}.home.lan", f"{API}.home.lan. 30 A 192.168.86.7"
    conversation = expanding(search=SEARCH)
    assert conversation.answered(conversation.ask(name), record).credits == ()
    conversation = expanding(search=SEARCH, lan=(3,))
    assert credited(conversation.answered(conversation.ask(name), record)).selectors == {3}


labels = st.lists(st.sampled_from(["api", "anthropic", "com", "x", "io", "home", "lan", "svc", "cluster", "local"]))


@given(labels.map(".".join).filter(bool), st.lists(st.sampled_from(SEARCH), unique=True))
def test_what_is_asked_and_credited_is_an_allowed_name_with_at_most_one_search_domain(
    name: str, search: list[str]
) -> None:
    allowed = re.compile(rf"({re.escape(API)}|[-a-z0-9_]*\.x\.io)({'|'.join(f'.{domain}' for domain in search)})?")
    conversation = expanding(search=tuple(search))
    command = conversation.say(question(name))
    assert isinstance(command, Forward) == bool(allowed.fullmatch(name))
    if isinstance(command, Forward):
        (_, answer) = conversation.session.answer(command.key, answer_to(command.payload, f"{name}. 9 A 192.0.2.1"), 1)
        assert isinstance(answer, Reply)
        bare = {".".join(label.decode() for label in credit.name) for credit in answer.credits}
        assert bare and bare <= {name, *(name.removesuffix(f".{domain}") for domain in search)}


def test_the_name_comes_back_as_the_pod_spelled_it() -> None:
    conversation = talk()
    asked = conversation.ask("aPi.AnThRoPiC.cOm")
    lowered = dataclasses.replace(asked, sent=asked.sent[:12] + asked.sent[12:].lower())
    reply = conversation.answered(lowered, f"{API}. 30 A 192.0.2.1")
    assert b"aPi\x09AnThRoPiC\x03cOm" in reply.payload
    assert credited(reply).addresses == (pack("192.0.2.1"),)


def test_addresses_behind_aliases_are_credited_to_the_name_asked() -> None:
    conversation = talk()
    reply = conversation.answered(
        conversation.ask(API),
        "b.cdn.io. 100000 A 192.0.2.7",
        f"{API}. 100000 CNAME a.cdn.io.",
        "a.cdn.io. 5000 CNAME b.cdn.io.",
    )
    credit = credited(reply)
    assert (credit.name, credit.selectors) == ((b"api", b"anthropic", b"com"), {3, 4})
    assert credit.until_s == conversation.now + 5000


def test_aliases_in_a_circle_open_nothing() -> None:
    conversation = talk()
    reply = conversation.answered(conversation.ask(API), f"{API}. 5 CNAME a.io.", f"a.io. 5 CNAME {API}.")
    assert reply.credits == ()


@pytest.mark.parametrize(
    "records",
    [
        ("other.anthropic.com. 5 A 192.0.2.1",),
        (f"{API}. 5 A 192.0.2.1", "evil.example. 5 A 198.51.100.1"),
        (f"{API}. 5 CNAME a.cdn.io.", "b.cdn.io. 5 A 192.0.2.1"),
        ("evil.example. 5 CNAME api.anthropic.com.",),
    ],
)
def test_a_record_beside_the_chain_spoils_the_answer(records: tuple[str, ...]) -> None:
    conversation = talk()
    reply = conversation.answered(conversation.ask(API), *records)
    assert (rcode(reply.payload), reply.credits, reply.reason) == (Rcode.SERVFAIL, (), Reason.ANSWER_MALFORMED)


def test_aaaa_and_https_hints_are_credited() -> None:
    conversation = talk()
    aaaa = credited(conversation.answered(conversation.ask(API, "AAAA"), f"{API}. 5 AAAA 2001:db8::5"))
    assert aaaa.addresses == (pack("2001:db8::5"),)
    reply = conversation.answered(conversation.ask(API, "HTTPS"), f"{API}. 5 HTTPS 1 . alpn=h2 ipv4hint=192.0.2.8")
    assert credited(reply).addresses == (pack("192.0.2.8"),)


@pytest.mark.parametrize("code", [Rcode.NXDOMAIN, Rcode.SERVFAIL])
def test_a_negative_answer_passes_and_opens_nothing(code: Rcode) -> None:
    conversation = talk()
    asked = conversation.ask(API)
    reply = conversation.hear(asked, answer_to(asked.sent, f"{API}. 5 A 192.0.2.1", rcode=code))
    assert isinstance(reply, Reply)
    assert (rcode(reply.payload), reply.credits) == (code, ())


def test_a_truncated_answer_passes_with_its_flag() -> None:
    conversation = talk()
    asked = conversation.ask(API)
    cut = bytearray(answer_to(asked.sent))
    cut[2] |= 0x02
    reply = conversation.hear(asked, bytes(cut))
    assert isinstance(reply, Reply)
    assert reply.payload[2] & 0x02


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.1.1", "0.0.0.0", "255.255.255.255", "::1", "fe80::1", "::ffff:7f00:1"]
)
def test_no_name_opens_the_node_itself(address: str) -> None:
    conversation = talk()
    kind = "AAAA" if ":" in address else "A"
    reply = conversation.answered(conversation.ask(API, kind), f"{API}. 5 {kind} {address}")
    assert (reply.credits, reply.reason) == ((), Reason.ANSWERED)
    assert conversation.session.counters[Reason.ADDRESS_GUARDED] == 1


def test_networks_of_the_settings_are_not_opened_while_others_of_the_answer_are() -> None:
    conversation = talk(never_open=("10.96.0.0/12",))
    reply = conversation.answered(conversation.ask(API), f"{API}. 5 A 10.96.0.1", f"{API}. 5 A 192.0.2.1")
    assert credited(reply).addresses == (pack("192.0.2.1"),)


PRIVATE = ["192.168.86.7", "10.9.9.9", "172.31.0.1", "100.64.0.9", "fd00::7", "::ffff:c0a8:101"]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_opens_private_addresses_where_its_policy_says_so(address: str) -> None:
    kind = "AAAA" if ":" in address else "A"
    conversation = Talk(endpoint(12, POD, {3: API, 4: "*.anthropic.com"}))
    assert conversation.answered(conversation.ask(API, kind), f"{API}. 5 {kind} {address}").credits == ()
    (refusal,) = conversation.session.refused
    assert (refusal.name, refusal.address) == ((b"api", b"anthropic", b"com"), pack(address))
    assert refusal.reason is Reason.ADDRESS_PRIVATE
    assert conversation.session.counters[Reason.ADDRESS_PRIVATE] == 1
    conversation = Talk(endpoint(12, POD, {3: API, 4: "*.anthropic.com"}, lan=(4,)))
    (credit,) = conversation.answered(conversation.ask(API, kind), f"{API}. 5 {kind} {address}").credits
    assert (credit.addresses, credit.selectors) == ((pack(address),), {4})
    assert list(conversation.session.refused) == []


def test_the_networks_around_the_node_are_private_from_when_they_are_known() -> None:
    """The same answer, byte for byte, before and after: what it means is kept."""
    conversation, address = talk(), "2001:db8:86::7"
    asked = endpoint(12, POD, {3: API})
    for around, opened in (([], True), (["2001:db8:86::/64"], False), (["2001:db8:87::/64"], True)):
        conversation.session.refresh(parse(rules_text(asked, lan=around)))
        answered = conversation.answered(conversation.ask(API, "AAAA"), f"{API}. 5 AAAA {address}")
        assert bool(answered.credits) is opened
    conversation.session.refresh(parse(rules_text(endpoint(12, POD, {3: API}, lan=(3,)), lan=[f"{address}/128"])))
    assert conversation.answered(conversation.ask(API, "AAAA"), f"{API}. 5 AAAA {address}").credits


def test_no_policy_opens_the_cluster_to_a_name() -> None:
    conversation = Talk(endpoint(12, POD, {3: API}, lan=(3,)), settings=DnsSettings(never_open=("10.96.0.0/12",)))
    reply = conversation.answered(conversation.ask(API), f"{API}. 5 A 10.96.0.1", f"{API}. 5 A 10.1.0.1")
    assert credited(reply).addresses == (pack("10.1.0.1"),)


def test_who_guesses_at_answers_ends_the_question() -> None:
    conversation = talk()
    asked, other = conversation.ask(API), conversation.ask("www.anthropic.com")
    forged = answer_to(asked.sent, f"{API}. 5 A 203.0.113.66")
    for guess in range(MAX_FOREIGN - 1):
        assert conversation.hear(asked, guess.to_bytes(2) + forged[2:]) == Drop(Reason.ANSWER_FOREIGN)
        conversation.hear(other, b"")
    ended = conversation.hear(asked, b"\0\0" + forged[2:])
    assert isinstance(ended, Reply)
    assert (rcode(ended.payload), ended.credits, ended.reason) == (Rcode.SERVFAIL, (), Reason.ANSWER_GUESSED)
    assert conversation.hear(asked, forged) is None
    assert conversation.answered(other, "www.anthropic.com. 5 A 192.0.2.1").credits
    assert conversation.session.in_flight == 0


def test_a_forged_answer_is_dropped_and_the_true_one_awaited() -> None:
    conversation = talk()
    asked = conversation.ask(API)
    forged = answer_to(asked.sent, f"{API}. 5 A 203.0.113.66")
    for wrong in (b"\0\0" + forged[2:], answer_to(question("evil.anthropic.com", ident=0x8000)), b"", forged[:20]):
        assert conversation.hear(asked, wrong) == Drop(Reason.ANSWER_FOREIGN)
    commands = conversation.session.answer(asked.key, answer_to(asked.sent, f"{API}. 5 A 192.0.2.1"), conversation.now)
    assert commands[0] == Close(asked.key), "a port that a forger has found serves no more"
    assert isinstance(commands[1], Reply)
    assert credited(commands[1]).addresses == (pack("192.0.2.1"),)


def test_the_socket_of_an_answer_that_came_alone_may_serve_again() -> None:
    conversation = talk()
    asked = conversation.ask(API)
    close, _ = conversation.session.answer(asked.key, answer_to(asked.sent, f"{API}. 5 A 192.0.2.1"), 1000.0)
    assert close == Close(asked.key, clean=True)
    for spoiled in (b"x", b""):
        asked = conversation.ask(API)
        payload = answer_to(asked.sent, f"{API}. 5 A 192.0.2.1")[: None if spoiled else -1] + spoiled
        close, _ = conversation.session.answer(asked.key, payload, 1000.0)
        assert close == Close(asked.key, clean=False)


def test_an_answer_with_bytes_behind_its_end_is_not_passed_on() -> None:
    conversation = talk()
    asked = conversation.ask(API)
    reply = conversation.hear(asked, answer_to(asked.sent, f"{API}. 5 A 192.0.2.1") + b"x")
    assert isinstance(reply, Reply)
    assert (rcode(reply.payload), reply.reason) == (Rcode.SERVFAIL, Reason.ANSWER_MALFORMED)


def test_an_answer_with_too_many_addresses_is_not_passed_on() -> None:
    conversation = talk(max_addresses_per_answer=3)
    reply = conversation.answered(conversation.ask(API), *(f"{API}. 5 A 192.0.2.{n}" for n in range(4)))
    assert (rcode(reply.payload), reply.reason) == (Rcode.SERVFAIL, Reason.ANSWER_TOO_LARGE)
    reply = conversation.answered(conversation.ask(API), *(f"{API}. 5 A 192.0.2.{n}" for n in range(3)))
    assert len(credited(reply).addresses) == 3


def test_an_answer_after_its_time_is_nobodys() -> None:
    conversation = talk()
    asked = conversation.ask(API)
    assert conversation.session.deadline() == 1005.0
    assert conversation.session.tick(1004.9) == []
    assert conversation.session.tick(1005.0) == [Close(asked.key), Drop(Reason.SERVER_SILENT)]
    assert conversation.hear(asked, answer_to(asked.sent)) is None
    assert conversation.session.deadline() is None


def test_a_server_that_cannot_be_reached_is_said_at_once() -> None:
    conversation = talk()
    asked = conversation.ask(API)
    close, reply = conversation.session.unreachable(asked.key)
    assert close == Close(asked.key)
    assert isinstance(reply, Reply)
    assert (rcode(reply.payload), reply.reason) == (Rcode.SERVFAIL, Reason.SERVER_UNREACHABLE)
    assert conversation.session.unreachable(asked.key) == []


def test_a_policy_that_went_while_the_server_thought_earns_nothing() -> None:
    conversation = talk()
    asked = conversation.ask(API)
    conversation.session.rules = parse(rules_text(endpoint(12, POD, {5: "*.x.io"})))
    reply = conversation.answered(asked, f"{API}. 5 A 192.0.2.1")
    assert (rcode(reply.payload), reply.reason) == (Rcode.SERVFAIL, Reason.ANSWER_STALE)


def test_the_next_pod_with_an_address_inherits_no_answer() -> None:
    conversation = talk()
    asked = conversation.ask(API)
    conversation.session.rules = parse(rules_text(endpoint(77, POD, {3: API})))
    assert conversation.answered(asked, f"{API}. 5 A 192.0.2.1").reason is Reason.ANSWER_STALE
    conversation.session.rules = Rules()
    assert conversation.refused(API).reason is Reason.POD_UNKNOWN


def test_what_a_message_means_is_kept_but_not_what_is_allowed() -> None:
    """The same question and the same answer, byte for byte, under other rules and an other identity of the server."""
    conversation = talk()
    conversation.answered(conversation.ask(API), f"{API}. 5 A 192.0.2.1")
    conversation.session.refresh(parse(rules_text(endpoint(12, POD, {8: API}))))
    credit = credited(conversation.answered(conversation.ask(API), f"{API}. 5 A 192.0.2.1"))
    assert credit.selectors == {8}
    of_one_server = endpoint(12, POD) | {"queries": [{"to": 7, "port": 53, "names": [{"matchName": API}]}]}
    rules = parse(rules_text(of_one_server))
    conversation.session.refresh(rules)
    conversation.refused(API)
    conversation.identities[SERVER] = 7
    conversation.session.refresh(rules)
    conversation.ask(API)


@pytest.mark.parametrize("length", [10, KEPT_BYTES])
def test_long_messages_are_judged_like_short_ones(length: int) -> None:
    conversation = talk()
    asked = conversation.ask(API)
    reply = conversation.answered(asked, f"{API}. 5 A 192.0.2.1", *(f'{API}. 5 TXT "{"t" * 50}"',) * (length // 50))
    assert credited(reply).addresses == (pack("192.0.2.1"),)
    padding = struct.pack("!HH", 12, length) + bytes(length)  # RFC 7830
    opt = b"\0" + struct.pack("!HHIH", 41, 1232, 0, len(padding)) + padding
    asking = bytearray(question(API) + opt)
    asking[11] = 1
    assert isinstance(conversation.say(bytes(asking)), Forward)
    assert conversation.say(bytes(asking) + b"x") == Drop(Reason.QUERY_MALFORMED, "a query with bytes behind its end")


def test_one_pods_flood_leaves_room_for_another() -> None:
    conversation = talk(max_in_flight_per_pod=2)
    first = conversation.ask(API)
    conversation.ask(API)
    busy = conversation.say(question(API))
    assert isinstance(busy, Reply)
    assert (rcode(busy.payload), busy.reason) == (Rcode.SERVFAIL, Reason.POD_BUSY)
    conversation.ask("only.other.io", pod=OTHER_POD)
    conversation.answered(first)
    conversation.ask(API)


def test_all_pods_together_have_a_limit_too() -> None:
    conversation = talk(max_in_flight=1)
    conversation.ask(API)
    busy = conversation.say(question("only.other.io"), OTHER_POD)
    assert isinstance(busy, Reply)
    assert busy.reason is Reason.PROXY_BUSY


def test_a_question_by_tcp_is_forwarded_by_tcp() -> None:
    command = talk().say(question(API), transport=Transport.TCP)
    assert isinstance(command, Forward)
    assert (command.client.transport, command.client.server) == (Transport.TCP, pack(SERVER))


@pytest.mark.parametrize(
    ("server", "in_whose_name"),
    [
        (IDENTITY_WORLD, None),
        (IDENTITY_HOST, None),
        (IDENTITY_PODS - 1, None),
        (IDENTITY_PODS, POD),
        (IDENTITY_PODS_END - 1, POD),
        (IDENTITY_PODS_END, None),
    ],
)
def test_a_server_that_is_a_pod_is_asked_in_the_name_of_who_asks(server: int, in_whose_name: str | None) -> None:
    conversation = talk()
    conversation.identities[SERVER] = server
    anywhere = endpoint(12, POD) | {"queries": [{"to": 0, "port": 53, "names": [{"matchName": API}]}]}
    conversation.session.refresh(parse(rules_text(anywhere)))
    asked = conversation.say(question(API))
    assert isinstance(asked, Forward)
    assert asked.source == (pack(in_whose_name) if in_whose_name else None)


def test_who_asks_with_edns_reads_why_it_was_refused() -> None:
    command = talk().say(question("evil.example", edns=True))
    assert isinstance(command, Reply)
    (opt,) = dnslib.DNSRecord.parse(command.payload).ar
    assert opt.rdata[0].data == b"\0\x0fname not allowed"


NAMES = st.sampled_from([API, "www.anthropic.com", "evil.example", "a.x.io", "x.svc.cluster.local", "only.other.io"])
PODS = st.sampled_from([POD, OTHER_POD, "10.244.1.99"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), NAMES, PODS),
        st.tuples(st.just("answer"), st.integers(0, 5), st.binary(max_size=40) | st.none()),
        st.tuples(st.just("fail"), st.integers(0, 5), st.none()),
        st.tuples(st.just("wait"), st.integers(0, 4), st.none()),
    ),
    max_size=30,
)


@given(STEPS)
def test_whatever_happens_every_question_ends_once_and_leaves_nothing(steps: list[tuple[str, object, object]]) -> None:
    conversation = talk(max_in_flight_per_pod=3, max_in_flight=5)
    open_ = []
    for verb, one, two in steps:
        if verb == "ask":
            command = conversation.say(question(str(one)), str(two))
            if isinstance(command, Forward):
                open_.append(conversation._asked[command.key])
        elif verb == "wait":
            conversation.now += float(str(one))
            closed = {c.key for c in conversation.session.tick(conversation.now) if isinstance(c, Close)}
            assert closed <= {asked.key for asked in open_}
            open_ = [asked for asked in open_ if asked.key not in closed]
        elif open_:
            asked = open_[int(str(one)) % len(open_)]
            if verb == "fail":
                assert conversation.session.unreachable(asked.key)[0] == Close(asked.key)
                open_.remove(asked)
            else:
                payload = answer_to(asked.sent, "api.anthropic.com. 5 A 192.0.2.1") if two is None else bytes(two)  # type: ignore[call-overload]
                if isinstance(conversation.hear(asked, payload), Reply):
                    open_.remove(asked)
        assert conversation.session.in_flight == len(open_) <= 5
    conversation.session.tick(conversation.now + 100)
    assert conversation.session.in_flight == 0
    assert not conversation.session._of_endpoint


@pytest.mark.parametrize("rcode_", [1, Rcode.SERVFAIL, 4, Rcode.REFUSED])
def test_an_error_without_a_question_is_told(rcode_: int) -> None:
    """Who hears FORMERR asks again without EDNS; it was dropped, and the pod waited for its time-out."""
    conversation = talk()
    command = conversation.say(question(API, edns=True))
    assert isinstance(command, Forward)
    bare = struct.pack("!6H", 0, 0x8180 | rcode_, 0, 0, 0, 0)[2:]
    close, reply = conversation.session.answer(command.key, command.payload[:2] + bare, conversation.now)
    assert isinstance(close, Close) and isinstance(reply, Reply)
    assert (reply.payload, reply.credits) == (b"\x12\x34" + bare, ())


@pytest.mark.parametrize(
    ("rcode_", "counts"), [(Rcode.NOERROR, [0, 0]), (Rcode.NXDOMAIN, [0, 0]), (1, [1, 0]), (1, [0, 1])]
)
def test_nothing_else_without_its_question_is_an_answer(rcode_: int, counts: list[int]) -> None:
    conversation = talk()
    asked = conversation.ask(API)
    payload = struct.pack("!6H", 0, 0x8180 | rcode_, 0, *counts, 0)[2:] + b"\0" + bytes(14)
    assert conversation.hear(asked, asked.sent[:2] + payload) == Drop(Reason.ANSWER_FOREIGN)


# policies on trial


def on_trial(**settings: Any) -> Talk:
    made = endpoint(12, POD, {3: API}, queries=("*",), passes=(API,)) | {"tried": [3]}
    return Talk(made, settings=DnsSettings(**settings))


def header(flags: int, questions: int, *more: int) -> bytes:
    return struct.pack("!6H", 0x1234, flags, questions, *more, *[0] * (3 - len(more)))


NO_LOOKUPS = {
    "zone transfer": question(API, "AXFR"),
    "increment": header(0x0100, 1, 0, 1) + question(API, "IXFR")[12:] + b"\xc0\x0c\0\6\0\1" + bytes(28),
    "CHAOS": question("version.bind", "TXT")[:-1] + b"\3",
    "update": header(0x2800, 1) + question("x.io", "SOA")[12:],
    "notify": header(0x2000, 1) + question("x.io", "SOA")[12:],
    "two questions": header(0x0100, 2) + 2 * question(API)[12:],
    "no question": header(0x0100, 0),
    "more behind": question(API) + b"more",
    "an answer": answer_to(question(API), f"{API}. 5 A 192.0.2.1"),
    "a name that ends nowhere": header(0x0100, 1) + b"\x3fx",
}


@pytest.mark.parametrize("payload", NO_LOOKUPS.values(), ids=NO_LOOKUPS)
def test_what_only_a_policy_on_trial_would_refuse_passes_there_and_back(payload: bytes) -> None:
    conversation = on_trial()
    command = conversation.say(payload)
    assert isinstance(command, Forward) and command.payload[2:] == payload[2:]
    (noted,) = conversation.session.refused
    assert (noted.reason, noted.on_trial) == (Reason.KIND_NOT_ALLOWED, True)
    assert conversation.session.counters == {Reason.ON_TRIAL: 1, Reason.FORWARDED: 1}
    answer = command.payload[:2] + bytes([payload[2] & 0x78 | 0x80, 0]) + bytes(8)
    other = answer[:2] + bytes([answer[2] ^ 0x10]) + answer[3:]
    assert isinstance(conversation.session.answer(command.key, other, 1000.0)[0], Drop)
    close, reply = conversation.session.answer(command.key, answer, 1000.0)
    assert isinstance(close, Close) and isinstance(reply, Reply)
    assert (reply.payload, reply.credits) == (payload[:2] + answer[2:], ())
    assert conversation.session.in_flight == 0


def test_what_cannot_be_passed_on_goes_nowhere_on_trial_too() -> None:
    conversation = on_trial()
    assert isinstance(conversation.say(b"short"), Drop)
    cut = question(API) + bytes(MAX_QUERY)
    assert isinstance(conversation.say(cut), Drop), "by who has received the datagram"
    assert isinstance(conversation.say(cut, transport=Transport.TCP), Forward)
    assert isinstance(talk().say(cut, transport=Transport.TCP), Drop)


def test_all_messages_of_a_zone_transfer_pass_on_trial() -> None:
    conversation = on_trial()
    command = conversation.say(question("x.io", "AXFR"), transport=Transport.TCP)
    assert isinstance(command, Forward)
    for message in (answer_to(command.payload, "x.io. 5 A 192.0.2.1"), command.payload[:2] + b"\x84" + bytes(9)):
        (reply,) = conversation.session.answer(command.key, message, conversation.now)
        assert isinstance(reply, Reply)
        assert (reply.payload, reply.credits) == (b"\x12\x34" + message[2:], ())
    assert conversation.session.unreachable(command.key) == [Close(command.key)], "the server has ended it"
    assert conversation.session.in_flight == 0


def test_an_update_that_nobody_answers_is_answered_without_a_question() -> None:
    conversation = on_trial()
    command = conversation.say(NO_LOOKUPS["update"])
    assert isinstance(command, Forward)
    _, reply = conversation.session.unreachable(command.key)
    assert isinstance(reply, Reply)
    assert reply.payload == struct.pack("!6H", 0x1234, 0xA882, 0, 0, 0, 0)


@pytest.mark.parametrize(("name", "noted"), [(API, False), ("evil.example", True)])
def test_a_name_that_a_policy_on_trial_does_not_name_is_noted_and_asked(name: str, noted: bool) -> None:
    conversation = on_trial()
    assert conversation.answered(conversation.ask(name), f"{name}. 5 A 192.0.2.1").reason is Reason.ANSWERED
    found = [(refusal.reason, refusal.on_trial) for refusal in conversation.session.refused]
    assert found == ([(Reason.NAME_NOT_ALLOWED, True)] if noted else [])
    assert conversation.session.judge(pack(POD), (name.encode(),), pack(SERVER), 53) is Reason.FORWARDED


def test_a_name_that_no_pattern_can_name_passes_on_trial() -> None:
    payload = header(0x0100, 1) + b"\x0aMy Printer\4_ipp\0\0\x0c\0\1"
    assert isinstance(on_trial().say(payload), Forward)
    assert isinstance(talk().say(payload), Reply)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([f"{API}. 5 A 192.0.2.{number}" for number in range(3)], Reason.ANSWER_TOO_LARGE),
        ([f"{API}. 5 A 192.0.2.1", "bank.example. 5 A 192.0.2.2"], Reason.ANSWER_MALFORMED),
    ],
)
def test_an_answer_of_which_nothing_is_learned_passes_on_trial(lines: list[str], reason: Reason) -> None:
    conversation = on_trial(max_addresses_per_answer=2)
    asked = conversation.ask("Api.Anthropic.com")
    answer = answer_to(asked.sent.lower(), *lines)
    reply = conversation.hear(asked, answer)
    assert isinstance(reply, Reply)
    assert (reply.payload[12:], reply.credits) == (asked.original[12:] + answer[len(asked.original) :], ())
    assert [(refusal.reason, refusal.on_trial) for refusal in conversation.session.refused] == [(reason, True)]
    enforced = talk(max_addresses_per_answer=2)
    refused = enforced.answered(enforced.ask(API), *lines)
    assert (rcode(refused.payload), refused.reason) == (Rcode.SERVFAIL, reason)


def test_a_trial_that_ends_before_the_answer_passes_no_more() -> None:
    conversation = on_trial()
    command = conversation.say(NO_LOOKUPS["CHAOS"])
    assert isinstance(command, Forward)
    conversation.session.refresh(parse(rules_text(endpoint(12, POD, {3: API}, queries=("*",)))))
    answer = command.payload[:2] + b"\x80" + bytes(9)
    _, reply = conversation.session.answer(command.key, answer, conversation.now)
    assert isinstance(reply, Reply) and reply.reason is Reason.ANSWER_STALE


def test_an_address_that_stays_closed_to_names_on_trial_alone_is_noted_so() -> None:
    conversation = on_trial()
    conversation.answered(conversation.ask(API), f"{API}. 5 A 10.0.0.1")
    (noted,) = conversation.session.refused
    assert (noted.reason, noted.on_trial) == (Reason.ADDRESS_PRIVATE, True)

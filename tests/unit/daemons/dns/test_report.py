from __future__ import annotations

from instruments.dns_talk import POD, SERVER, Talk, endpoint, rules_text
from netstack.core.address import pack
from netstack.dns import report
from netstack.dns.apply import Entry
from netstack.dns.heard import Fact
from netstack.dns.rules import parse


def test_status_counts_by_reason_and_names_the_last_refusals() -> None:
    talk = Talk(endpoint(12, POD, {3: "x.io"}))
    talk.ask("x.io")
    for _ in range(2):
        talk.refused("Evil.example")
    assert report.status(talk.session, 5, 2, None, talk.now + 3) == {
        "generation": 1,
        "rules_error": None,
        "broken": [],
        "pods": 1,
        "in_flight": 1,
        "learned": 5,
        "heard": 2,
        "counters": {"forwarded": 1, "name not allowed": 2},
        "refused": [
            {
                "pod": POD,
                "endpoint": 12,
                "name": "evil.example.",
                "reason": "name not allowed",
                "times": 2,
                "ago_s": 3,
            }
        ],
    }


def test_a_rules_file_that_is_not_in_force_is_told_where_netstack_status_looks() -> None:
    told = report.status(Talk().session, 0, 0, "/rules.json: (file): is not JSON", 0)
    assert told["broken"] == ["/rules.json: (file): is not JSON; rules of generation 1 stay in force"]


def test_a_name_is_judged_as_a_question_for_it_would_be() -> None:
    talk = Talk(endpoint(12, POD, {3: "x.io", 4: "*.io"}, queries=("y.org",)))

    def judged(name: str, pod: str = POD) -> tuple[bool, str, list[str]]:
        told = report.judge(talk.session, {"pod": pod, "name": name, "server": SERVER, "port": 53})
        return told["allowed"], told["reason"], told["opens"]

    assert judged("X.io.") == (True, "forwarded", ["matchName: x.io", "matchPattern: *.io"])
    assert judged("y.org") == (True, "forwarded", [])
    assert judged("evil.example") == (False, "name not allowed", [])
    assert judged("x.io", "10.244.1.99") == (False, "pod unknown", [])
    assert not talk.session.counters and not talk.session.refused


def test_status_names_addresses_that_stayed_closed() -> None:
    talk = Talk(endpoint(12, POD, {3: "x.io"}))
    talk.answered(talk.ask("x.io"), "x.io. 5 A 10.0.0.1")
    (refused,) = report.status(talk.session, 5, 2, None, talk.now)["refused"]
    assert (refused["pod"], refused["name"], refused["address"]) == (POD, "x.io.", "10.0.0.1")


def test_status_tells_refusals_of_pods_with_one_address_apart() -> None:
    talk = Talk(endpoint(12, POD, {3: "x.io"}))
    talk.refused("evil.example")
    talk.session.refresh(parse(rules_text(endpoint(14, POD, {3: "x.io"}))))
    talk.refused("evil.example")
    told = report.status(talk.session, 0, 0, None, talk.now)["refused"]
    assert [(item["endpoint"], item["times"]) for item in told] == [(12, 1), (14, 1)]


def test_names_says_by_which_rule_and_for_how_long() -> None:
    rules = Talk(endpoint(12, POD, {3: "x.io", 4: "*.io"})).session.rules
    entries = [
        Entry(13, pack("192.0.2.9"), {8: 500}, {}),
        Entry(12, pack("192.0.2.1"), {4: 200, 3: 150, 7: 300}, {(b"x", b"io"): pack("10.96.0.10")}),
    ]
    assert report.names(rules, entries, now=100.4) == [
        {
            "endpoint": 12,
            "pod": [POD],
            "address": "192.0.2.1",
            "names": ["x.io."],
            "from": {"x.io.": "10.96.0.10"},
            "selectors": [
                {"selector": 3, "rule": "matchName: x.io", "for_s": 50},
                {"selector": 4, "rule": "matchPattern: *.io", "for_s": 100},
                {"selector": 7, "rule": None, "for_s": 200},
            ],
        },
        {
            "endpoint": 13,
            "pod": [],
            "address": "192.0.2.9",
            "names": [],
            "from": {},
            "selectors": [{"selector": 8, "rule": None, "for_s": 400}],
        },
    ]


def test_what_policies_on_trial_want_is_told_apart() -> None:
    talk = Talk(endpoint(12, POD, {3: "x.io", 4: "*.io"}) | {"tried": [4]})
    (told,) = report.names(talk.session.rules, [Entry(12, pack("192.0.2.1"), {3: 200, 4: 200}, {})], now=100)
    assert [(item["selector"], item.get("on_trial", False)) for item in told["selectors"]] == [(3, False), (4, True)]
    judged = report.judge(talk.session, {"pod": POD, "name": "x.io", "server": SERVER, "port": 53})
    assert judged["opens"] == ["matchName: x.io"]


def test_what_was_heard_is_told_by_pod_and_address() -> None:
    web, server, other = pack("192.0.2.1"), pack("10.244.2.53"), pack("10.244.3.53")
    facts = [
        Fact(13, (b"x", b"io"), web, server, 0, 9),
        Fact(12, (b"x", b"io"), web, server, 0, 9),
        Fact(12, (b"y", b"io"), web, other, 0, 9),
        Fact(12, (b"x", b"io"), pack("192.0.2.2"), server, 0, 9),
    ]
    told = report.heard(facts, {web})
    assert told[0] == {
        "endpoint": 12,
        "pod": [],
        "address": "192.0.2.1",
        "names": ["x.io.", "y.io."],
        "from": {"x.io.": "10.244.2.53", "y.io.": "10.244.3.53"},
        "selectors": [],
        "heard": True,
    }
    assert [item["endpoint"] for item in told] == [12, 13]
    assert len(report.heard(facts)) == 3


def test_of_few_addresses_is_told_without_a_look_at_all() -> None:
    assert report.asked({}) is None
    assert report.asked({"addresses": ["192.0.2.1", "2001:db8::1"]}) == {pack("192.0.2.1"), pack("2001:db8::1")}

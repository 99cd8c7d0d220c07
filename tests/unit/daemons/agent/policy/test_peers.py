"""What a Resolver remembers. Who is meant by which peers: test_cilium.py, test_kubernetes.py."""

from __future__ import annotations

from instruments.calls import calls
from netstack.agent.identities import NAMESPACE, Identities, Peer
from netstack.agent.policy.peers import ANYONE, Resolver
from netstack.agent.policy.rules import Block, Name, Peers
from netstack.core.address import Prefix, pack
from netstack.core.table import Table
from netstack.source.selectors import LabelSelector, Requirement

WEB = Peers(selectors=(LabelSelector((Requirement("app", "In", ("web",)),)),))
NAMED = Peers(names=(Name("x.io", False),))


def pod(number: int, app: str) -> Peer:
    return Peer(number, "pods", {"app": app, NAMESPACE: "one"}, frozenset({"cluster"}))


def identities(*peers: Peer) -> Identities:
    return Identities(peers, Table("identities"), {}, {})


def test_the_answer_is_the_same_object_until_it_is_another() -> None:
    resolver = Resolver()
    resolver.update(identities(pod(1, "web"), pod(2, "db")), {}, [WEB])
    first = resolver.numbers(WEB)
    assert first == (1,)
    resolver.update(identities(pod(1, "web"), pod(3, "db")), {}, [WEB])
    assert resolver.numbers(WEB) is first
    resolver.update(identities(pod(1, "web"), pod(4, "web")), {}, [WEB])
    assert sorted(resolver.numbers(WEB)) == [1, 4]
    resolver.update(identities(pod(4, "web")), {}, [WEB])
    assert resolver.numbers(WEB) == (4,)


def test_a_number_with_other_labels_is_another_peer() -> None:
    resolver = Resolver()
    resolver.update(identities(pod(1, "web")), {}, [WEB])
    assert resolver.numbers(WEB) == (1,)
    before = resolver.version
    resolver.update(identities(pod(1, "db")), {}, [WEB])
    assert resolver.numbers(WEB) == ()
    assert resolver.version != before


def test_names_have_the_numbers_of_their_selectors() -> None:
    resolver = Resolver()
    resolver.update(identities(), {Name("x.io", False): 7}, [NAMED])
    assert resolver.numbers(NAMED) == (7,)
    resolver.update(identities(), {Name("x.io", False): 8}, [NAMED])
    assert resolver.numbers(NAMED) == (8,)
    assert resolver.numbers(None) is ANYONE


def test_a_long_list_of_ranges_is_not_gone_through_for_each_of_them() -> None:
    """Addresses to block, thousands of them: each is an identity too."""
    ranges = [Prefix(pack(f"10.{number >> 8}.{number & 255}.0"), 120) for number in range(1000)]
    listed = Peers(blocks=tuple(map(Block, ranges)))
    others = Peers(blocks=(Block(Prefix.parse("10.0.0.0/8"), tuple(ranges[1:])),))
    known = [Peer(number, str(item), {}, frozenset({"world"}), item) for number, item in enumerate(ranges, 1)]
    resolver = Resolver()
    resolver.update(identities(*known), {}, [listed, others])
    assert calls(lambda: resolver.numbers(listed)) < 50 * len(ranges)
    assert calls(lambda: resolver.numbers(others)) < 50 * len(ranges)
    assert len(resolver.numbers(listed)) == len(ranges) and resolver.numbers(others) == (1,)


def test_a_rule_for_a_range_asks_about_what_lies_in_it_alone() -> None:
    """One policy may have thousands of them."""
    ranges = [Prefix(pack(f"10.{number >> 8}.{number & 255}.0"), 120) for number in range(300)]
    rules = [Peers(blocks=(Block(item),)) for item in ranges]
    known = [Peer(number, str(item), {}, frozenset({"world"}), item) for number, item in enumerate(ranges, 1)]
    halves = [
        Peer(number, f"half {number}", {}, frozenset({"world"}), Prefix(item.address, 121))
        for number, item in enumerate(ranges, 1001)
    ]
    resolver = Resolver()
    resolver.update(identities(*known), {}, rules)
    assert calls(lambda: [resolver.numbers(item) for item in rules]) < 100 * len(ranges)
    assert [resolver.numbers(item) for item in rules] == [(peer.number,) for peer in known]
    assert calls(lambda: resolver.update(identities(*known, *halves), {}, rules)) < 100 * len(ranges)
    assert [resolver.numbers(item) for item in rules] == [
        (whole.number, half.number) for whole, half in zip(known, halves, strict=True)
    ]

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.dns.names import KEPT, KEPT_LABELS, Match, Matcher, Name, Rule, text


def name(presentation: str) -> Name:
    return tuple(presentation.lower().encode().removesuffix(b".").split(b".")) if presentation != "." else ()


def pattern(selector: int, words: str) -> Rule:
    return Rule(selector, Match.PATTERN, words)


def reference(rule: Rule, asked: str) -> bool:
    """The same rule as one anchored regular expression over text, the way the field documents it."""
    chars = "[-a-z0-9_]"
    words = rule.text.lower().removesuffix(".")
    if rule.match is Match.PATTERN and words == "*":
        return re.fullmatch(rf"({chars}+\.)+|\.", asked) is not None
    deep = words.startswith("**.")
    body = re.escape(words.removeprefix("**.")) if deep else re.escape(words)
    body = re.sub(r"(\\\*)+", f"{chars}*", body) + r"\."
    return re.fullmatch((rf"({chars}+\.)+" if deep else "") + body, asked) is not None


ACCEPTED = [
    ("cilium.io", ["cilium.io.", "CILIUM.io"]),
    ("*.cilium.io", ["a.cilium.io", "_x-1.cilium.io"]),
    ("*.ci*.io.", ["a.cilium.io", "a.ci.io", "a.ciliumandmore.io"]),
    ("*", [".", "io", "cilium.io", "_foobar._tcp.cilium.io"]),
    ("*cilium.io", ["cilium.io", "subcilium.io"]),
    ("**.cilium.io", ["a.cilium.io", "a.b.cilium.io", "a.b.c.cilium.io"]),
    ("a**.cilium.io", ["a.cilium.io", "abc.cilium.io"]),
    ("a*b*a.io", ["aba.io", "axxbyya.io"]),
    (".", ["."]),
]
REJECTED = [
    ("cilium.io", ["a.cilium.io", "cilium.io.evil.org", "xcilium.io", "io", "."]),
    ("*.cilium.io", ["cilium.io", "a.b.cilium.io", "a.xcilium.io"]),
    ("*.ci*.io.", ["cilium.io", "a.b.cilium.io", "a.xci.io"]),
    ("*cilium.io", ["a.cilium.io"]),
    ("**.cilium.io", ["cilium.io", "acilium.io"]),
    ("a**.cilium.io", ["a.b.cilium.io"]),
    ("a*b*a.io", ["aa.io", "ab.io", "abab.io"]),
    (".", ["io"]),
]


@pytest.mark.parametrize(("words", "asked"), [(w, a) for w, names in ACCEPTED for a in names])
def test_a_pattern_accepts(words: str, asked: str) -> None:
    assert Matcher([pattern(7, words)])(name(asked)) == {7}


@pytest.mark.parametrize(("words", "asked"), [(w, a) for w, names in REJECTED for a in names])
def test_a_pattern_rejects(words: str, asked: str) -> None:
    assert Matcher([pattern(7, words)])(name(asked)) == frozenset()


def test_a_name_satisfies_all_its_selectors_at_once() -> None:
    matcher = Matcher(
        [
            Rule(1, Match.NAME, "api.x.io"),
            pattern(2, "*.x.io"),
            pattern(3, "**.io"),
            pattern(4, "*"),
            pattern(5, "*.y.io"),
        ]
    )
    assert matcher((b"api", b"x", b"io")) == {1, 2, 3, 4}
    assert matcher((b"www", b"x", b"io")) == {2, 3, 4}
    assert matcher((b"org",)) == {4}


@pytest.mark.parametrize(
    "odd", [(b"evil.x", b"io"), (b"a b", b"x", b"io"), (b"\xe9", b"x", b"io"), (b"a\0", b"x", b"io")]
)
def test_a_label_with_an_odd_byte_satisfies_nothing(odd: Name) -> None:
    assert Matcher([pattern(1, "*"), pattern(2, "**.io"), pattern(3, "*.x.io")])(odd) == frozenset()


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (Rule(1, Match.NAME, "*.x.io"), "label '*' has characters beyond letters, digits, '-' and '_'"),
        (Rule(1, Match.NAME, ""), "it has an empty label"),
        (Rule(1, Match.PATTERN, "a..io"), "it has an empty label"),
        (Rule(1, Match.PATTERN, "a b.io"), "label 'a b' has characters"),
        (Rule(1, Match.NAME, "a" * 64 + ".io"), "a label has at most 63 bytes"),
        (Rule(1, Match.NAME, ".".join(["a" * 60] * 5)), "a name has at most 255 bytes"),
    ],
)
def test_a_bad_rule_is_refused_by_its_text(rule: Rule, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        Matcher([rule])


def test_text_escapes_what_would_mislead() -> None:
    assert text((b"a.b", b"x y", b"io")) == r"a\046b.x\032y.io."
    assert text(()) == "."


# A small alphabet makes matches likely; the shapes are what matters.
labels = st.text("ab-", min_size=1, max_size=4)
names_asked = st.lists(labels, max_size=4).map(lambda parts: ".".join(parts) + ".")
starred = st.text("ab-*", min_size=1, max_size=4)
patterns = st.one_of(
    st.just("*"),
    st.lists(starred, min_size=1, max_size=4).map(".".join),
    st.lists(starred, min_size=1, max_size=3).map(lambda parts: "**." + ".".join(parts)),
)
rules = st.one_of(
    st.builds(lambda words: Rule(0, Match.PATTERN, words), patterns),
    st.builds(lambda parts: Rule(0, Match.NAME, ".".join(parts)), st.lists(labels, min_size=1, max_size=4)),
)


@given(st.lists(rules, max_size=6), names_asked)
def test_the_trie_agrees_with_one_regular_expression_a_rule(found: list[Rule], asked: str) -> None:
    numbered = [Rule(selector, rule.match, rule.text) for selector, rule in enumerate(found, 1)]
    expected = {rule.selector for rule in numbered if reference(rule, asked)}
    assert Matcher(numbered)(name(asked)) == expected


def test_so_many_answers_are_kept_and_no_more_and_none_for_endless_names() -> None:
    matcher = Matcher([Rule(1, Match.PATTERN, "**.x.io")])
    deep = (b"a",) * KEPT_LABELS + (b"x", b"io")
    for _ in range(2):
        assert matcher(deep) == {1}
    assert matcher._known == {}
    for number in range(KEPT + 1):
        assert matcher((b"%d" % number, b"x", b"io")) == {1}
        assert len(matcher._known) <= KEPT
    assert len(matcher._known) == 1

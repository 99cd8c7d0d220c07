from __future__ import annotations

import json
import re
from typing import Any

import pytest

from netstack.core.address import pack
from netstack.core.errors import BadConfig
from netstack.dns.rules import parse


def file(**endpoint: Any) -> dict[str, Any]:
    whole = {"endpoint": 12, "addresses": ["10.244.1.5"], "names": [], "queries": []}
    return {"generation": 7, "endpoints": [whole | endpoint]}


def query(to: Any, port: Any, *names: str) -> dict[str, Any]:
    return {"to": to, "port": port, "names": [{"matchPattern": name} for name in names]}


def test_names_are_credited_and_queries_only_asked() -> None:
    rules = parse(
        json.dumps(
            file(
                addresses=["10.244.1.5", "fd00::5"],
                names=[{"selector": 3, "matchName": "api.x.io"}, {"selector": 4, "matchPattern": "*.x.io"}],
                queries=[query(0, 0, "*.local", "*.x.io")],
            )
        )
    )
    assert rules.generation == 7
    assert rules.ids == {12}
    endpoint = rules.endpoints[pack("10.244.1.5")]
    assert rules.endpoints[pack("fd00::5")] is endpoint
    assert endpoint.selectors((b"api", b"x", b"io")) == {3, 4}
    assert endpoint.selectors((b"www", b"x", b"io")) == {4}
    assert endpoint.selectors((b"db", b"local")) == frozenset()
    assert endpoint.may_ask((b"db", b"local"), 77, 53)
    assert not endpoint.may_ask((b"evil", b"org"), 77, 53)


def test_a_name_is_asked_of_the_servers_for_which_it_is_allowed_alone() -> None:
    queries = [query(77, 53, "a"), query(77, 0, "b"), query(0, 53, "c"), query(0, 0, "d"), query(78, 53, "e")]
    (endpoint,) = parse(json.dumps(file(queries=queries))).endpoints.values()
    asked = {
        server: "".join(name for name in "abcdef" if endpoint.may_ask((name.encode(),), *server))
        for server in ((77, 53), (77, 54), (78, 53), (79, 54))
    }
    assert asked == {(77, 53): "abcd", (77, 54): "bd", (78, 53): "cde", (79, 54): "d"}


def test_a_name_that_may_not_be_asked_is_not_asked_because_it_would_open_something() -> None:
    (endpoint,) = parse(json.dumps(file(names=[{"selector": 3, "matchName": "x"}]))).endpoints.values()
    assert not endpoint.may_ask((b"x",), 77, 53)


def test_fields_of_newer_versions_are_left_to_them_where_they_cannot_widen_anything() -> None:
    data = file(note="new")
    assert parse(json.dumps(data | {"written": "by someone"})).ids == {12}


def test_everything_passes_to_a_server_by_the_narrowest_entry_that_names_it() -> None:
    data = file(queries=[query(7, 53, "*.x"), query(0, 53, "*")], passes=[query(0, 53, "a")])
    (found,) = parse(json.dumps(data)).endpoints.values()
    matcher = found.trial(8, 53)
    assert matcher is not None and matcher((b"a",)) and not matcher((b"b",))
    assert found.trial(7, 53) is None, "an enforced policy says what may be asked there"
    assert found.trial(8, 54) is None, "no entry"


LAN: tuple[dict[str, bool], ...] = ({}, {"lan": True}, {"lan": False})


def test_selectors_that_lead_into_the_lan_are_known() -> None:
    names = [{"selector": 3 + number, "matchName": "x.io", **more} for number, more in enumerate(LAN)]
    (found,) = parse(json.dumps(file(names=names))).endpoints.values()
    assert found.lan == {4}
    assert found.selectors((b"x", b"io")) == {3, 4, 5}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "(file): must be an object, not []"),
        ({"endpoints": []}, "generation: must be a number, not None"),
        ({"generation": 1, "endpoints": {}}, "endpoints: must be a list, not {}"),
        (file(endpoint="12"), "endpoints[0].endpoint: must be a number, not '12'"),
        (file(endpoint=True), "endpoints[0].endpoint: must be a number, not True"),
        (file(addresses="10.0.0.1"), "endpoints[0].addresses: must be a list of addresses, not '10.0.0.1'"),
        (file(addresses=["10.0.0"]), "endpoints[0].addresses: '10.0.0' does not appear to be an IPv4 or IPv6 address"),
        (file(alike=[3]), "endpoints[0].alike: must be a list of lists of selectors, not [3]"),
        (file(alike=[["3"]]), "endpoints[0].alike: must hold selectors, not [['3']]"),
        (file(tried=3), "endpoints[0].tried: must be a list of selectors, not 3"),
        (file(tried=["3"]), "endpoints[0].tried: must be a list of selectors, not ['3']"),
        (file(names=["x.io"]), "endpoints[0].names[0]: must be an object, not 'x.io'"),
        (file(names=[{"matchName": "x.io"}]), "endpoints[0].names[0].selector: must be a number, not None"),
        (file(names=[{"selector": 0, "matchName": "x"}]), "endpoints[0].names[0].selector: must be between 1 and"),
        (file(names=[{"selector": 1, "matchName": 5}]), "endpoints[0].names[0].matchName: must be a string, not 5"),
        (file(names=[{"selector": 1, "matchName": "*.x"}]), "endpoints[0].names[0].matchName: '*.x' is no matchName"),
        (file(names=[{"selector": 1}]), "endpoints[0].names[0]: must hold selector and one of matchName, matchPattern"),
        (
            file(names=[{"selector": 1, "matchName": "x", "matchPattern": "*"}]),
            "and nothing else; it holds matchName, matchPattern, selector",
        ),
        (file(names=[{"selector": 1, "matchName": "x", "lan": 1}]), "endpoints[0].names[0].lan: must be true or false"),
        (file(names=[{"selector": 1, "matchName": "x", "port": 443}]), "and nothing else; it holds matchName, port"),
        (
            file(queries=[{"matchName": "x"}]),
            "endpoints[0].queries[0]: must hold to, port and names; it holds matchName",
        ),
        (
            file(queries=[query(1, 53) | {"of": 1}]),
            "endpoints[0].queries[0]: must hold to, port and names; it holds nam",
        ),
        (file(queries=[query("1", 53)]), "endpoints[0].queries[0].to: must be a number, not '1'"),
        (file(queries=[query(1, 53, "x..y")]), "endpoints[0].queries[0].names[0].matchPattern: 'x..y' is no"),
        (
            file(queries=[{"to": 1, "port": 53, "names": [{"selector": 1, "matchName": "x"}]}]),
            "endpoints[0].queries[0].names[0]: must hold one of matchName",
        ),
        (file() | {"lan": "home"}, "lan: must be a list of networks, not 'home'"),
        (file() | {"lan": ["10.0.0.0/8", "10.0.0.1/8"]}, "lan[1]: 10.0.0.1/8 has host bits set"),
        (
            file(passes=[{"to": 1, "port": 53}]),
            "endpoints[0].passes[0]: must hold to, port and names; it holds port, to",
        ),
        (file(search="home.lan"), "endpoints[0].search: must be a list of domains, not 'home.lan'"),
        (file(search=["home.lan", "a..b"]), "endpoints[0].search[1]: 'a..b' is no matchName: it has an empty label"),
        (file(search=["."]), "endpoints[0].search[0]: must not be the root"),
        (file(queries=[query(1, 53), query(1, 53)]), "endpoints[0].queries[1]: another entry has the same server"),
    ],
)
def test_what_is_wrong_is_named_by_its_field(data: Any, message: str) -> None:
    with pytest.raises(BadConfig, match=re.escape(message)):
        parse(json.dumps(data))


def test_an_id_or_address_belongs_to_one_endpoint() -> None:
    data = file()
    data["endpoints"].append({"endpoint": 12, "addresses": []})
    with pytest.raises(BadConfig, match=re.escape("endpoints[1].endpoint: 12 is named twice")):
        parse(json.dumps(data))
    data["endpoints"][1] = {"endpoint": 13, "addresses": ["10.244.1.5"]}
    with pytest.raises(BadConfig, match=re.escape("endpoints[1].addresses: belong to endpoint 12 too")):
        parse(json.dumps(data))


def test_what_is_no_json_says_so() -> None:
    with pytest.raises(BadConfig, match=re.escape("(file): is not JSON: Expecting value")):
        parse("")

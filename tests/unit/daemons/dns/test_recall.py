"""From what was heard to what is open. The ring and its wake-ups: tests/integration/test_dns_programs.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from instruments.dns_talk import POD, Talk, answer_to, endpoint, question, rules_text
from netstack.core.address import pack
from netstack.dns.apply import Learned
from netstack.dns.heard import Memory
from netstack.dns.recall import GRACE_S, Recall
from netstack.dns.rules import parse
from netstack.kernel.layout import Fqdn, FqdnKey, Heard

INSIDE, OUTSIDE = "10.244.2.53", "192.168.86.1"
WEB, ROOM = pack("192.0.2.1"), 3


class Table(dict[bytes, bytes]):
    def put(self, key: bytes, value: bytes) -> None:
        self[key] = value

    def delete(self, key: bytes) -> bool:
        return self.pop(key, None) is not None


class Scene:
    """A pod, 12, that no policy restricts yet."""

    def __init__(self, folder: Path) -> None:
        self.talk = Talk()
        self.table = Table()
        self.memory = Memory(self.talk.session.lifetime, most_per_answer=9)
        learned = Learned(self.table, Table(), max_per_pod=ROOM, max_per_name=ROOM)
        self.recall = Recall(self.memory, self.talk.session, learned, pack(INSIDE).__eq__, folder / "heard.json")

    def hears(self, *lines: str, name: str = "x.io", server: str = INSIDE, now: float = 1000, pod: int = 12) -> None:
        message = answer_to(question(name), *lines)
        self.memory.hear(Heard(pack(server), pod, len(message)).pack() + message, now)

    def begins(self, *entries: dict[str, object], now: float = 1010) -> dict[tuple[int, bytes], dict[int, int]]:
        """Rules come into force; what is open then."""
        self.talk.session.refresh(parse(rules_text(*entries)))
        self.recall.apply(now)
        keys = {key: FqdnKey.unpack(key) for key in self.table}
        return {(k.endpoint, k.address): Fqdn.read(self.table[key]) for key, k in keys.items()}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_what_stands_before_a_search_domain_was_meant(scene: Scene) -> None:
    scene.hears("x.io.home.lan. 7200 CNAME x.io.", "x.io. 7200 A 192.0.2.1", name="x.io.home.lan")
    scene.hears("y.io.home.lan. 7200 A 192.0.2.2", name="y.io.home.lan")
    assert scene.begins(endpoint(12, POD, {3: "x.io"}, search=("home.lan",))) == {(12, WEB): {3: 8200}}


def test_a_policy_opens_what_its_pod_was_told_by_names_that_it_allows(scene: Scene) -> None:
    scene.hears("x.io. 7200 A 192.0.2.1")
    scene.hears("y.io. 5 A 192.0.2.2", name="y.io")
    scene.hears("x.io. 5 A 192.0.2.3", pod=13)
    assert scene.begins(endpoint(12, POD, {3: "x.io", 4: "*.io"}, queries=("**.",))) != {}
    opened = scene.begins(endpoint(12, POD, {3: "x.io", 4: "x*.io"}))
    assert opened[12, WEB] == {3: 8200, 4: 8200}
    assert opened.keys() == {(12, WEB), (12, pack("192.0.2.2"))}


def test_it_opens_nothing_by_other_names_and_remembers_them(scene: Scene) -> None:
    scene.hears("y.io. 5 A 192.0.2.1", name="y.io")
    assert scene.begins(endpoint(12, POD, {3: "x.io"})) == {}
    assert len(scene.memory) == 1
    assert scene.begins(endpoint(12, POD, {3: "x.io", 4: "y.io"})).keys() == {(12, WEB)}


def test_what_could_be_asked_and_was_not_opened_opens_with_the_rule_that_comes(scene: Scene) -> None:
    """A policy that only looks at names, by rules.dns, and then one that names them."""
    assert scene.begins(endpoint(12, POD, {4: "y.io"}, queries=("*",))) == {}
    reply = scene.talk.answered(scene.talk.ask("x.io"), "x.io. 7200 A 192.0.2.1")
    assert reply.credits == () and reply.unopened is not None
    scene.recall.note(reply.unopened, now=1000)
    assert scene.begins(endpoint(12, POD, {4: "y.io"})) == {}
    assert scene.begins(endpoint(12, POD, {3: "x.io", 4: "y.io"})) == {(12, WEB): {3: 8200}}


def test_a_name_that_is_allowed_by_another_rule_from_now_on_stays_open(scene: Scene) -> None:
    """Else an edit that changes nothing about it would cut its connections until the pod asks again."""
    scene.hears("x.io. 7200 A 192.0.2.1")
    scene.begins(endpoint(12, POD, {3: "x.io"}))
    assert scene.begins(endpoint(12, POD, {4: "*.io"})) == {(12, WEB): {3: 8200, 4: 8200}}
    assert scene.begins(endpoint(12, POD, {5: "y.io"})) == {(12, WEB): {3: 8200, 4: 8200}}


def test_a_name_is_known_though_no_policy_restricts_its_pod_for_a_moment(scene: Scene) -> None:
    scene.hears("x.io. 7200 A 192.0.2.1")
    scene.begins(endpoint(12, POD, {3: "x.io"}))
    scene.begins()
    assert scene.begins(endpoint(12, POD, {4: "*.io"})) == {(12, WEB): {3: 8200, 4: 8200}}


def test_a_change_of_rules_prolongs_no_name(scene: Scene) -> None:
    scene.hears("x.io. 7200 A 192.0.2.1")
    scene.begins(endpoint(12, POD, {3: "x.io"}))
    assert scene.begins(endpoint(12, POD, {3: "x.io", 4: "y.io"}), now=9000) == {(12, WEB): {3: 8200}}
    assert scene.begins(endpoint(12, POD, {5: "*.io"}), now=9000) == {(12, WEB): {3: 8200, 5: int(9000 + GRACE_S)}}


def test_each_of_the_names_of_an_address_has_its_own_time(scene: Scene) -> None:
    scene.hears("x.io. 7200 A 192.0.2.1")
    scene.hears("y.io. 5 A 192.0.2.1", name="y.io")
    scene.begins(endpoint(12, POD, {3: "x.io", 4: "y.io"}))
    opened = scene.begins(endpoint(12, POD, {3: "x.io", 5: "y*.io"}))
    assert opened == {(12, WEB): {3: 8200, 4: 4600, 5: 4600}}


def test_each_fact_counts_once(scene: Scene) -> None:
    scene.hears("x.io. 5 A 192.0.2.1")
    scene.begins(endpoint(12, POD, {3: "x.io"}))
    assert len(scene.memory) == 0
    scene.table.clear()
    assert scene.begins(endpoint(12, POD, {3: "x.io"})) == {}


def test_what_is_older_than_its_time_opens_for_a_minute(scene: Scene) -> None:
    scene.hears("x.io. 5 A 192.0.2.1", now=1000)
    later = 1000.0 + scene.talk.settings.min_ttl_s
    assert scene.begins(endpoint(12, POD, {3: "x.io"}), now=later + 500) == {(12, WEB): {3: int(later + 500 + GRACE_S)}}


def test_a_server_outside_of_the_cluster_is_not_believed(scene: Scene) -> None:
    scene.hears("x.io. 5 A 192.0.2.1", server=OUTSIDE)
    assert scene.begins(endpoint(12, POD, {3: "x.io"})) == {}


def test_a_server_that_the_pod_may_not_ask_for_the_name_is_not_believed(scene: Scene) -> None:
    scene.hears("x.io. 5 A 192.0.2.1")
    entry = endpoint(12, POD, {3: "x.io"}) | {"queries": [{"to": 9, "port": 53, "names": [{"matchName": "x.io"}]}]}
    assert scene.begins(entry) == {}
    scene.talk.identities[INSIDE] = 9
    assert scene.begins(entry).keys() == {(12, WEB)}


@pytest.mark.parametrize(
    ("inward", "lan", "opens"), [("127.0.0.1", (3,), 0), ("10.9.9.9", (), 0), ("10.9.9.9", (3,), 1)]
)
def test_networks_that_are_closed_to_names_stay_closed(
    scene: Scene, inward: str, lan: tuple[int, ...], opens: int
) -> None:
    scene.hears(f"x.io. 5 A {inward}")
    assert len(scene.begins(endpoint(12, POD, {3: "x.io"}, lan=lan))) == opens


def test_no_more_addresses_than_a_pod_may_have(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.hears(*(f"x.io. 5 A 192.0.2.{number}" for number in range(ROOM + 1)))
    assert len(scene.begins(endpoint(12, POD, {3: "x.io"}))) == ROOM
    assert "x.io. at 192.0.2.3 stays closed: endpoint 12 has learned 3 addresses" in caplog.text


def test_the_next_daemon_remembers(scene: Scene, tmp_path: Path) -> None:
    scene.hears("x.io. 7200 A 192.0.2.1")
    scene.recall.copy.save()
    again = Scene(tmp_path)
    again.recall.copy.load()
    assert again.begins(endpoint(12, POD, {3: "x.io"})) == {(12, WEB): {3: 8200}}
    before = os.stat(tmp_path / "heard.json")
    scene.recall.copy.save()
    assert os.stat(tmp_path / "heard.json").st_ino == before.st_ino, "nothing new, nothing written"


def test_a_copy_that_cannot_be_read_is_said_and_nothing_is_known(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene.recall.copy.load()
    assert caplog.text == ""
    (tmp_path / "heard.json").write_text('[["half')
    scene.recall.copy.load()
    assert "heard.json" in caplog.text
    assert len(scene.memory) == 0


def test_a_copy_that_cannot_be_written_is_tried_again(scene: Scene, tmp_path: Path) -> None:
    scene.hears("x.io. 7200 A 192.0.2.1")
    (tmp_path / "heard.json").mkdir()
    with pytest.raises(OSError):
        scene.recall.copy.save()
    (tmp_path / "heard.json").rmdir()
    scene.recall.copy.save()
    assert (tmp_path / "heard.json").exists()

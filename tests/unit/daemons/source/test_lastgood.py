import json
import stat
from pathlib import Path

import pytest

from instruments.api_objects import secret, service
from netstack.core.ref import Ref
from netstack.source.directory import DirectorySource
from netstack.source.lastgood import LastGood
from netstack.source.models import Service
from netstack.source.parse import reference
from netstack.source.replica import Unsaved


def changes(*raws: dict) -> Unsaved:  # type: ignore[type-arg]
    return {reference(raw): json.dumps(raw).encode() for raw in raws}


def names(good: LastGood, kind: str = "Service") -> list[str]:
    return sorted(item["metadata"]["name"] for item in good.load(kind) or ())


def test_changes_follow_one_another(tmp_path: Path) -> None:
    good = LastGood(tmp_path)
    assert good.load("Service") is None
    good.save("Service", changes(*(service(f"s{i}") for i in range(200))))
    good.save("Service", {Ref("Service", "ns", f"s{i}"): None for i in range(198)} | changes(service("new")))
    assert names(good) == ["new", "s198", "s199"]
    good.save("Service", dict.fromkeys([Ref("Service", "ns", n) for n in names(good)]))
    assert good.load("Service") == [] and list(tmp_path.rglob("*.json")) == []


def test_one_change_writes_one_part(tmp_path: Path) -> None:
    good = LastGood(tmp_path)
    good.save("Service", changes(*(service(f"s{i}") for i in range(2000))))
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*.json")}
    assert len(before) == 64
    good.save("Service", changes(service("s7", "10.96.9.9")))
    after = {path: path.stat().st_ino for path in tmp_path.rglob("*.json")}
    assert sum(before[path] != after[path] for path in before) == 1


def test_what_is_not_wanted_any_more_is_not_kept(tmp_path: Path) -> None:
    good = LastGood(tmp_path)
    for want in ("secret", "secret.home.tls", "service"):
        good.save(want, changes(service("a")))
    (tmp_path / "secret" / ".00.json.x7").write_text("what a process was writing when it was killed")
    good.clear_others(["service", "secret.home.tls", "secret.web"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.home.tls", "service"]
    assert names(good, "secret.home.tls") == ["a"]


def test_without_a_whole_list_nothing_is_said_of_what_is_absent(tmp_path: Path) -> None:
    good = LastGood(tmp_path)
    good.save("Service", changes(service("a")))
    (tmp_path / "Service" / ".complete").unlink()  # as after a kill within the first list
    assert good.load("Service") is None
    good.save("Service", {})
    assert names(good) == ["a"]
    good.clear("Service")
    assert good.load("Service") is None


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    good = LastGood(tmp_path / "good")
    good.save("Secret", changes(secret("s")))
    for path in (tmp_path / "good", *(tmp_path / "good").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_the_directory_source_reads_the_same(tmp_path: Path) -> None:
    good = LastGood(tmp_path)
    good.save("Service", changes(service("a"), service("b")))
    assert {s.meta.name for s in DirectorySource(tmp_path).snapshot().all(Service)} == {"a", "b"}


def test_a_damaged_part_is_said(tmp_path: Path) -> None:
    good = LastGood(tmp_path)
    good.save("Service", changes(service("a")))
    (part,) = tmp_path.rglob("*.json")
    for text in ("{", "[]", '{"items": [{}]}'):
        part.write_text(text)
        with pytest.raises(ValueError):
            good.load("Service")
        with pytest.raises(ValueError):
            good.save("Service", changes(service("a")))

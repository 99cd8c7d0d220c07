"""Turns without HAProxy: the files, and what is said. With HAProxy: tests/integration."""

from __future__ import annotations

import asyncio
from pathlib import Path

from instruments.ingress_objects import Raw, endpoints, ingress, service, snapshot
from netstack.ingress.controller import Controller
from netstack.ingress.settings import IngressSettings
from netstack.source.status import StatusFolder


def controller(folder: Path, *objects: Raw | list[Raw]) -> Controller:
    (folder / "endpoint.json").write_text('{"ips": [{"address": "10.244.1.2/32"}]}')
    settings = IngressSettings(
        node="n1",
        manifests=folder / "manifests",
        status=folder / "status",
        state=folder / "state",
        socket=folder / "haproxy.sock",
        endpoint=folder / "endpoint.json",
    )
    return Controller(settings, snapshot(*objects), StatusFolder(settings.status, settings.manifests))


APP = [
    service("one"),
    *endpoints("one", "10.0.0.1:80"),
    ingress("site", ("ha.lab", "/", "one"), ("ha.lab", "/x", "gone")),
]


def test_files_come_before_and_without_haproxy(tmp_path: Path) -> None:
    made = controller(tmp_path, APP)
    line = asyncio.run(made.step())
    assert "ha.lab/ p1|" in (tmp_path / "state/routes.map").read_text()
    assert line == f"HAProxy does not answer at {tmp_path}/haproxy.sock"
    status = made.status()
    assert (status["haproxy"], status["in_step"], status["error"], status["reloads"]) == (None, False, line, [])
    assert [problem["reason"] for problem in status["problems"]] == ["BackendNotFound"]


def test_a_restart_assigns_the_same_pools(tmp_path: Path) -> None:
    asyncio.run(controller(tmp_path, APP).step())
    before = (tmp_path / "state/pools.cfg").read_text()
    more = [service("a"), *endpoints("a", "10.0.0.2:80"), ingress("more", ("a.lab", "/", "a"))]
    asyncio.run(controller(tmp_path, APP, more).step())
    after = (tmp_path / "state/pools.cfg").read_text()
    assert before != after
    assert before[: before.index("backend p2")] == after[: after.index("backend p2")]


def test_a_disk_that_takes_nothing_is_said(tmp_path: Path) -> None:
    made = controller(tmp_path, APP)
    (tmp_path / "state").write_text("a file in the way")
    assert asyncio.run(made.step()).startswith("the files stay as they were: ")


def test_refused_files_are_not_made_anew_every_turn_but_other_objects_are_tried_at_once(tmp_path: Path) -> None:
    made = controller(tmp_path, APP)
    obstacle = tmp_path / "state"
    obstacle.write_text("a file in the way")
    refusal = asyncio.run(made.step())
    obstacle.unlink()
    assert asyncio.run(made.step()) == refusal
    made.snapshot = snapshot(APP, service("another"))
    assert asyncio.run(made.step()) == f"HAProxy does not answer at {tmp_path}/haproxy.sock"


def test_every_route_is_shown_with_its_cause(tmp_path: Path) -> None:
    assert controller(tmp_path, APP).routes()[-1] == {
        "host": "ha.lab",
        "path": "/x",
        "type": "Prefix",
        "answer": 503,
        "redirect": False,
        "id": "default/site/1/0",
    }

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from netstack.core.unit import Unit
from netstack.kernel.layout import Event
from netstack.observer import __main__
from netstack.observer.settings import ObserverSettings


def test_what_comes_while_names_are_asked_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__main__.Map, "open", lambda path: None)
    monkeypatch.setattr(__main__, "Ring", lambda table: None)
    observer = __main__.Observer(ObserverSettings(), Unit("observer", tmp_path))
    ports = count(1)

    async def comes(*_: Any) -> None:
        observer.history.add([Event(port=next(ports)).pack()])

    monkeypatch.setattr(observer, "learn", comes)
    monkeypatch.setattr(observer, "learn_dns", comes)

    async def scene() -> list[int]:
        await comes()
        told = observer.flows({"follow": True})
        return [(await anext(told))["destination"]["port"] for _ in range(4)]

    assert asyncio.run(scene()) == [1, 2, 3, 4]

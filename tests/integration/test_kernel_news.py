"""News of devices, as ip(8) and tc(8) make it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator

import pytest

from bpf.namespaces import Namespace
from netstack.kernel.netlink import Netlink
from netstack.kernel.news import DeviceNews

pytestmark = pytest.mark.root


@pytest.fixture
def near() -> Iterator[Namespace]:
    namespace = Namespace()
    namespace.link("one", "two")
    yield namespace
    namespace.close()


def index(namespace: Namespace, name: str) -> int:
    with namespace.entered(), Netlink() as netlink:
        link = netlink.link(name)
    assert link is not None
    return link.index


def listen(namespace: Namespace, *steps: Callable[[], object]) -> list[set[int] | None]:
    """What is heard of each step, each awaited."""

    async def run() -> list[set[int] | None]:
        heard: asyncio.Queue[set[int] | None] = asyncio.Queue()
        with namespace.entered():
            news = DeviceNews(heard.put_nowait)
        found = []
        for step in steps:
            step()
            found.append(await asyncio.wait_for(heard.get(), 5))
            while not heard.empty():
                heard.get_nowait()
        news.close()
        return found

    return asyncio.run(run())


def test_links_and_filters(near: Namespace) -> None:
    one, two = index(near, "one"), index(near, "two")
    steps = (
        lambda: near.ip("link", "set", "one", "mtu", "1400"),
        lambda: near.run("tc", "qdisc", "add", "dev", "two", "clsact"),
        lambda: near.run("tc", "filter", "add", "dev", "two", "ingress", "bpf", "bytecode", "1,6 0 0 0"),
        lambda: near.run("tc", "filter", "del", "dev", "two", "ingress"),
        lambda: near.run("tc", "qdisc", "del", "dev", "two", "clsact"),
        lambda: near.ip("link", "del", "one"),
    )
    heard = listen(near, *steps)
    assert [one in (found or ()) for found in heard] == [True, False, False, False, False, True]
    assert [two in (found or ()) for found in heard][1:5] == [True] * 4


def test_what_was_lost_is_said(near: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    made = socket.socket

    def small(*kind: int) -> socket.socket:
        found = made(*kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        return found

    def much() -> None:
        for _ in range(20):
            near.ip("link", "set", "one", "up")
            near.ip("link", "set", "one", "down")

    monkeypatch.setattr("netstack.kernel.news.socket.socket", small)
    assert listen(near, much) == [None]

import socket
import threading
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from netstack.cli import __main__
from netstack.core import unit


@pytest.fixture
def observer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that ends within its second answer, and its successor."""
    monkeypatch.setattr(unit, "listen", partial(unit.listen, run=tmp_path))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "observer.sock"))
        server.listen()

        def tell() -> None:
            for said in (b'{"ok": 1}\n{"o', b'{"ok": 2}\n'):
                with server.accept()[0] as connection:
                    connection.recv(1 << 10)
                    connection.sendall(said)

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        yield
    thread.join(1)


def test_who_follows_goes_on_with_the_successor_of_one_that_ended_while_it_spoke(observer: None) -> None:
    assert list(islice(__main__._told({"command": "flows", "follow": True, "last": 20}), 2)) == [1, 2]


def test_who_does_not_follow_is_told_that_it_is_not_all(observer: None) -> None:
    told = __main__._told({"command": "flows", "follow": False, "last": 20})
    assert next(told) == 1
    with pytest.raises(ConnectionResetError, match="ended within its answer"):
        next(told)

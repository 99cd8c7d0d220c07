"""A control plane of a test's own, on the loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.controlplane import ControlPlane, skip_reason


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def control_plane(folder: Path, api_server_flags: Sequence[str] = ()) -> Iterator[ControlPlane]:
    """Running; where none can be had, the test is skipped with the reason."""
    why_not = skip_reason()
    if why_not is not None:
        pytest.skip(why_not)
    with ControlPlane(folder, port=free_port(), api_server_flags=api_server_flags) as running:
        yield running

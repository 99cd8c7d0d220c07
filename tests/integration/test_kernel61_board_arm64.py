"""A board of the boards' architecture, booted, under the whole playbook.

The playbook ends with the health gate: modules, the release's wheels, the programs' machine code and every daemon are
in force then. Unlike the lab's image this one has udev. How long it all lasts, test_kernel61_board.py shows on amd64.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kernel61.home import Home, home

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.environ.get("LONG") != "1", reason="many minutes of an interpreted machine: LONG=1"),
]


@pytest.fixture(scope="module")
def board() -> Iterator[Home]:
    with home("boardarm", "arm64") as made:
        yield made


def test_the_whole_playbook(board: Home) -> None:
    release, machine = board.board.run("uname -rm").stdout.split()
    assert release.startswith("6.1.") and machine == "aarch64"
    assert board.site() > 0
    board.ready()


def test_a_pod_of_the_board_is_served_to_the_lan(board: Home) -> None:
    board.serve()

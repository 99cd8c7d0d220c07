"""The programs on the boards' kernel: its verifier takes them, the loader loads them, they do what they do here.

Every Packet test runs there but those that ask the same programs about many policies, which are for LONG=1, as is what
the command line tells of a node.
"""

from __future__ import annotations

import os
import subprocess

import pytest

from instruments.depth import DEPTH
from kernel61 import REPOSITORY, Guest, Outcome, compiled
from kernel61.flow import refused_edges
from kernel61.jobs import LOADER, PROBE, QUICK, Run, packet_tests
from kernel61.report import Report, read
from netstack.kernel.attach import POD, UPLINK
from netstack.kernel.programs import CGROUP, PROGRAMS

pytestmark = pytest.mark.root

TESTS = REPOSITORY / "tests" / "bpf"
# A C compiler's view of a header: says nothing about a kernel, and a node has none.
NOT_OF_A_KERNEL = {"test_abi.py"}
# They compile or load again and again, minutes on an interpreted processor: for a soak (DEPTH above `make test`'s).
COMPILING = {"test_compile.py", "test_loader.py", "test_swap.py"}
SOAK = DEPTH > 8
# What the command line tells of a node: nothing that a kernel may see differently, and a load of all programs each.
COMMANDS = {"test_cli_collect.py", "test_cli_inquire.py", "test_cli_ipv6.py", "test_cli_reasons.py"}
LONG = SOAK or os.environ.get("LONG") == "1"
# Objects are compiled for most of their time; other files send such packets through the same programs.
SUITE = {"test_judgement.py", "test_netpol.py", "test_trial.py"}
LEFT_OUT = NOT_OF_A_KERNEL | (set() if SOAK else COMPILING) | (set() if LONG else COMMANDS | SUITE)
# A lane for each of the guest's processors, of about the same length (the loader's start and the probe follow on the
# first): there are the files that make what they need, in the second those that share one instrument.
FIRST_LANE = {"test_attach.py", "test_bpf.py", "test_events.py", "test_ring.py", "test_sock.py", "test_wire.py"} | (
    (COMMANDS | SUITE) - LEFT_OUT
)

SOCKETS = [spec.name for spec in PROGRAMS.values() if spec.hook == CGROUP]
# The verifier gives up at a million instructions looked at; half of it is where we would start to cut a program.
MOST_VERIFIED = 500_000


def test_no_loop_is_closed_by_falling_through() -> None:
    programs = compiled.host_set().programs
    assert {name: list(refused_edges(program.instructions)) for name, program in programs.items()} == {
        name: [] for name in PROGRAMS
    }


def test_a_loop_is_closed_by_a_jump() -> None:
    nothing, end = "b700000000000000", "9500000000000000"
    tested_first = [nothing, "0500010000000000", nothing, "1500feff00000000", end]  # 2 falls into 3, the head
    tested_last = [nothing, nothing, "1500feff00000000", end]
    assert list(refused_edges(bytes.fromhex("".join(tested_first)))) == [(2, 3)]
    assert list(refused_edges(bytes.fromhex("".join(tested_last)))) == []


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Run:
    exchange = tmp_path_factory.mktemp("exchange")
    subprocess.run([REPOSITORY / "tests/collection-tree.sh"], stdout=subprocess.DEVNULL, check=True)
    first = " ".join(f"tests/bpf/{name}" for name in sorted(FIRST_LANE))
    others = " ".join(f"--ignore=tests/bpf/{name}" for name in sorted(FIRST_LANE | LEFT_OUT))
    depth = 1 if LONG else QUICK
    jobs = {
        "first": packet_tests("first.xml", first, depth),
        "second": packet_tests("second.xml", f"{others} tests/bpf", depth),
        "loader": LOADER,
        "probe": PROBE,
    }
    machine = Guest(exchange)
    compiled.seed(machine.kernel)
    return Run(exchange, machine.run(jobs, timeout_s=3600 if SOAK else 1200))


@pytest.fixture(scope="module")
def lanes(guest: Run) -> list[Report]:
    return [read(guest.exchange / name) for name in ("first.xml", "second.xml")]


def test_it_is_the_boards_series(guest: Run) -> None:
    assert guest.words("release").startswith("6.1.")


def test_nothing_is_probed_off(guest: Run) -> None:
    guest.assert_nothing_is_probed_off("x86_64")


def test_the_loader_puts_everything_in_force(guest: Run) -> None:
    assert guest.outcomes["loader"] == Outcome(0, "")
    *_, last = guest.words("first").splitlines()
    assert set(last.removeprefix("in force; new or changed: ").split(", ")) == {*SOCKETS, *UPLINK}


def test_a_second_start_changes_nothing(guest: Run) -> None:
    assert guest.words("second") == "in force; new or changed: none\n"
    assert guest.programs("programs-after") == guest.programs("programs")


def test_every_program_is_translated_and_far_from_the_verifiers_limit(guest: Run) -> None:
    programs = guest.programs("programs")
    assert len(programs) == len(PROGRAMS) == len({*SOCKETS, *UPLINK, *POD})
    for name, program in programs.items():
        assert program["machine_code"], name
        assert 0 < program["verified"] < MOST_VERIFIED, name


def test_detaching_leaves_nothing(guest: Run) -> None:
    guest.assert_detached()


def test_the_packet_tests_hold_and_none_is_skipped(guest: Run, lanes: list[Report]) -> None:
    assert {name: reason for lane in lanes for name, reason in lane.failed.items()} == {}
    assert {name: reason for lane in lanes for name, reason in lane.skipped.items()} == {}
    assert [guest.outcomes[name].exit for name in ("first", "second")] == [0, 0]


def test_every_file_of_packet_tests_ran(lanes: list[Report]) -> None:
    assert set.union(*(lane.files for lane in lanes)) == {path.name for path in TESTS.glob("test_*.py")} - LEFT_OUT

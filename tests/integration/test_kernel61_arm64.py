"""The boards' architecture: the programs, the probes and the release on an arm64 kernel of the boards' series.

Short: every program is loaded, and a choice of the Packet tests holds. With LONG=1 all of them run, on what a compiler
of that architecture makes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernel61 import REPOSITORY, Guest, Outcome, compiled
from kernel61.flow import refused_edges
from kernel61.jobs import COMPILE, LOADER, PROBE, Run, packet_tests
from kernel61.report import Report, read
from lab import image
from netstack.kernel.programs import PROGRAMS, Compiled

pytestmark = pytest.mark.root

LONG = os.environ.get("LONG") == "1"
# What compiles or loads again and again is for a soak, and test_abi.py asks a C compiler, which no node has.
NEVER = ("test_abi.py", "test_compile.py", "test_loader.py", "test_swap.py")
# Of each program what is peculiar to it: byte order, checksums, helpers, maps.
SMOKE = (
    "test_attach.py",
    "test_sock.py::test_connect_reaches_a_backend_and_shows_the_service",
    "test_sock.py::test_an_ipv6_service",
    "test_sock.py::test_datagrams_without_connect",
    "test_sock.py::test_connected_datagrams",
    "test_pod_ingress.py::test_default_deny",
    "test_pod_ingress.py::test_the_gateway_is_answered_on_the_spot",
    "test_pod_ingress.py::test_a_learned_name_opens_its_address_for_that_pod_and_rule_only",
    "test_pod_ingress.py::test_a_service_is_translated_before_policy",
    "test_pod_ingress.py::test_ipv6_takes_the_same_path",
    "test_pod_egress.py::test_default_deny_and_a_rule_for_the_peer",
    "test_pod_egress.py::test_lives_are_ciliums",
    "test_pod_egress.py::test_ipv6_takes_the_same_path",
    "test_question.py",
    "test_uplink.py::test_an_owned_vip_is_answered_until_the_deadline",
    "test_uplink.py::test_a_backend_here_keeps_the_client_and_answers_as_the_service",
    "test_uplink.py::test_a_backend_elsewhere_gets_the_packet_unchanged",
    "test_uplink.py::test_connections_spread_and_a_connection_stays",
    "test_uplink.py::test_an_error_about_a_masqueraded_packet_finds_the_pod",
)
SMOKE_ARGUMENTS = " ".join(f"tests/bpf/{name}" for name in SMOKE)
ALL_ARGUMENTS = " ".join([*(f"--ignore=tests/bpf/{name}" for name in NEVER), "tests/bpf"])

CONFIGURATIONS = {
    "agent": "{node: n1, node_address: 192.168.86.21, pod_cidr: 10.244.1.0/24}",
    "announcer": "{node: n1, node_address: 192.168.86.21, key_file: /etc/netstack/announcer.key}",
    "dns": "{}",
    "ingress": "{node: n1}",
}
# The release as a node gets it: staged by the collection's module, from the archive that the role ships.
RELEASE = f"""
export PYTHONPATH={REPOSITORY}/.cache/collections
cat > /run/arguments-release.json <<END
{{"ANSIBLE_MODULE_ARGS": {{"state": "staged", "id": "$(cat /exchange/release-id)", "src": "/exchange/release.tar.gz"}}}}
END
python3 plugins/modules/release.py /run/arguments-release.json
unset PYTHONPATH
release=/opt/netstack/releases/$(cat /exchange/release-id)
for daemon in {" ".join(CONFIGURATIONS)}; do
    $release/bin/netstack check-config $daemon /exchange/$daemon.yaml
    $release/bin/netstack-$daemon --help > /dev/null
done
$release/bin/python -c "import cryptography, sys, yaml; from cryptography.hazmat.bindings import _rust
for module in (cryptography, yaml, _rust): print(getattr(module, '__file__', module))
assert cryptography.__file__.startswith(sys.prefix)" > /exchange/native
"""


def build_release(exchange: Path) -> None:
    """As roles/release does it for a board, on this machine."""
    role = REPOSITORY / "roles/release/files"
    built = subprocess.run(
        [
            *(sys.executable, str(role / "build_release.py"), "--source", str(REPOSITORY)),
            *("--constraints", str(role / "constraints.txt"), "--cache", str(image.cache() / "releases")),
            *("--target", "aarch64-3.11"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    release = json.loads(built.stdout)
    (exchange / "release-id").write_text(release["id"])
    shutil.copy(release["archives"]["aarch64-3.11"], exchange / "release.tar.gz")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Compiled | None:
    """With LONG=1, what a board compiles: minutes of an interpreted compiler."""
    if not LONG:
        return None
    exchange = tmp_path_factory.mktemp("compiler")
    assert Guest(exchange, "arm64").run({"compile": COMPILE}, timeout_s=3600) == {"compile": Outcome(0, "")}
    return Compiled.from_json((exchange / "compiled").read_text())


@pytest.fixture(scope="module")
def guest(own: Compiled | None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    exchange = tmp_path_factory.mktemp("exchange")
    subprocess.run([REPOSITORY / "tests/collection-tree.sh"], stdout=subprocess.DEVNULL, check=True)
    build_release(exchange)
    for daemon, text in CONFIGURATIONS.items():
        (exchange / f"{daemon}.yaml").write_text(text)
    jobs = {
        "release": RELEASE,  # the longest, beside all others
        "loader": LOADER,
        "probe": PROBE,
        "packets": packet_tests("packets.xml", *((ALL_ARGUMENTS, 1) if LONG else (SMOKE_ARGUMENTS,))),
    }
    machine = Guest(exchange, "arm64")
    compiled.seed(machine.kernel, own)
    return Run(exchange, machine.run(jobs, timeout_s=7200 if LONG else 1200))


@pytest.fixture(scope="module")
def packets(guest: Run) -> Report:
    return read(guest.exchange / "packets.xml")


def test_it_is_the_boards_series(guest: Run) -> None:
    release = guest.words("release").strip()
    assert release.startswith("6.1.") and release.endswith("-arm64")


def test_nothing_is_probed_off(guest: Run) -> None:
    guest.assert_nothing_is_probed_off("aarch64")


def test_every_program_is_in_force_and_translated(guest: Run) -> None:
    assert guest.outcomes["loader"] == Outcome(0, "")
    assert guest.words("second") == "in force; new or changed: none\n"
    programs = guest.programs("programs")
    assert set(programs) == set(PROGRAMS)
    assert all(program["machine_code"] and program["verified"] for program in programs.values())
    guest.assert_detached()


@pytest.mark.skipif(not LONG, reason="minutes of an interpreted compiler: LONG=1")
def test_a_board_compiles_the_same_maps_and_programs(own: Compiled | None) -> None:
    """The Packet tests and the verifier say whether the programs are good."""
    assert own is not None
    ours = compiled.host_set()
    assert (own.maps, own.programs.keys()) == (ours.maps, ours.programs.keys())
    assert {name for name, program in own.programs.items() if list(refused_edges(program.instructions))} == set()


def test_the_packet_tests_hold_and_none_is_skipped(guest: Run, packets: Report) -> None:
    assert (packets.failed, packets.skipped) == ({}, {})
    assert guest.outcomes["packets"].exit == 0
    assert packets.files >= {name.partition("::")[0] for name in SMOKE}


def test_the_release_for_boards_starts(guest: Run) -> None:
    assert guest.outcomes["release"].exit == 0, guest.outcomes["release"].log
    assert "_rust" in guest.words("native")

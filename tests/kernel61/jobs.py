"""What guests of either architecture are given to do, and what they leave of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lab import image

from .guest import REPOSITORY, Outcome

# Two starts of the loader and its end, as on a node that has no pods; what the kernel holds before, between and after.
LOADER = f"""
uname -r > /exchange/release
ip link add eth0 type dummy
ip link set eth0 up
cat > /run/agent.yaml <<END
datapath: {{bpf_source: {REPOSITORY}/files/bpf, cache: {image.cache()}/programs}}
END
export PYTHONPATH={REPOSITORY}/daemons/src
loader="python3 -m netstack.kernel.loader --config /run/agent.yaml"
pinned="python3 tests/kernel61/pinned.py /sys/fs/bpf/netstack/progs"
look() {{
    find /sys/fs/bpf
    tc qdisc show dev eth0
    bpftool cgroup show /sys/fs/cgroup
}}
look > /exchange/before
$loader 2> /exchange/first
$pinned > /exchange/programs
$loader 2> /exchange/second
$pinned > /exchange/programs-after
look > /exchange/loaded
$loader --detach
look > /exchange/detached
"""

COMPILE = f"""
export PYTHONPATH={REPOSITORY}/daemons/src
python3 -m netstack.kernel.compile {REPOSITORY}/files/bpf /exchange/compiled
"""

# The collection's own look at the kernel, as ansible would start it on a node; tests/collection-tree.sh comes first.
PROBE = f"""
export PYTHONPATH={REPOSITORY}/.cache/collections
echo '{{"ANSIBLE_MODULE_ARGS": {{}}}}' > /run/arguments.json
python3 plugins/modules/kernel_facts.py /run/arguments.json > /exchange/kernel_facts
PYTHONPATH={REPOSITORY}/daemons/src python3 - > /exchange/probe <<END
import json
from pathlib import Path
from netstack.kernel.probe import probe
print(json.dumps(probe(Path("/sys/fs/bpf"), Path("/sys/fs/cgroup"))))
END
"""


QUICK = 0.1
"""DEPTH of a short run: random clusters are compiled by Python, which is the same on every kernel."""


def packet_tests(report: str, arguments: str, depth: float = QUICK) -> str:
    """Plugins that happen to be in the environment are not loaded, and neither is what only other folders' tests need:
    each costs seconds on an interpreted processor."""
    return (
        f"DEPTH={depth} OWN_CLOCK=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python3 -m pytest -q -p no:cacheprovider "
        "--confcutdir=tests/bpf --tb=short "
        f"--durations=8 --junitxml=/exchange/{report} {arguments}"
    )


@dataclass(frozen=True, slots=True)
class Run:
    """One guest, after its end."""

    exchange: Path
    outcomes: dict[str, Outcome]

    def words(self, name: str) -> str:
        return (self.exchange / name).read_text()

    def assert_detached(self) -> None:
        """Nothing is left of pins, hooks on the device and hooks of the cgroup, all of which were there."""
        loaded = self.words("loaded")
        for sign in ("/sys/fs/bpf/netstack/maps/", "qdisc clsact", "connect4"):
            assert sign in loaded, loaded
        assert self.words("detached") == self.words("before")

    def assert_nothing_is_probed_off(self, architecture: str) -> None:
        """PROBE found all that netstack can use; `architecture` as uname has it."""
        assert self.outcomes["probe"] == Outcome(0, "")
        facts = json.loads(self.words("kernel_facts"))["ansible_facts"]["netstack_kernel"]
        assert facts["missing"] == []
        assert facts["arch"] == architecture and facts["btf"] and facts["jit"]
        probed = json.loads(self.words("probe"))
        assert probed and [name for name, there in probed.items() if not there] == []

    def programs(self, name: str) -> dict[str, dict[str, int]]:
        """Pinned program's name -> what kernel61/pinned.py tells of it."""
        described: dict[str, dict[str, int]] = json.loads(self.words(name))
        return described

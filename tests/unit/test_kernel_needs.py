"""What the kernel is asked for before anything is installed, against what the programs call and the maps are."""

from __future__ import annotations

import re
from pathlib import Path

from ansible_collections.kubelab.netstack.plugins.module_utils import _bpf

from netstack.kernel import layout
from netstack.kernel.programs import PROGRAMS

SOURCES = Path(__file__).parents[2] / "files/bpf"


def test_what_is_asked_for_is_what_is_used() -> None:
    kinds = {spec.kind for spec in (layout.MAPS | layout.INNER).values()}
    assert {kind for kind, *_ in _bpf.MAP_TYPES.values()} == kinds - {layout.HASH_OF_MAPS}
    assert {kind for kind, _ in _bpf.PROG_TYPES.values()} == {spec.kind for spec in PROGRAMS.values()}
    programs = "".join(path.read_text() for path in sorted(SOURCES.rglob("*.[ch]")))
    assert [name for name in _bpf.HELPERS if not re.search(rf"\b(bpf_)?{name}\(", programs)] == []

"""Prints every pinned program as JSON (run in the guest): its id, bytes of machine code, instructions looked at by the
verifier. Debian's bpftool does not tell the last.

    python3 tests/kernel61/pinned.py /sys/fs/bpf/netstack/progs
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

from netstack.kernel.bpf import Program

MACHINE_CODE, VERIFIED = 16, 216  # offsets of jited_prog_len and verified_insns in struct bpf_prog_info


def described(path: Path) -> dict[str, int]:
    with Program.open(path) as program:
        info = program.info(VERIFIED + 8)
        (machine_code,), (verified,) = (struct.unpack_from("=I", info, at) for at in (MACHINE_CODE, VERIFIED))
        return {"id": program.id, "machine_code": machine_code, "verified": verified}


if __name__ == "__main__":
    print(json.dumps({path.name: described(path) for path in sorted(Path(sys.argv[1]).iterdir())}))

"""C to instructions, by bcc: the only file that imports it, run as a process of its own that ends.

    python -m netstack.kernel.compile SOURCES OUTPUT

LLVM costs 128 MB and 4 s, so nothing that stays may load it; the result is kept (netstack.kernel.programs) and is all
that a boot needs. Exit status 1 with the compiler's words on stderr.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from bcc import BPF, lib

from netstack.core.files import write_atomic
from netstack.kernel.bpf import Map
from netstack.kernel.programs import PROGRAMS, Compiled, ProgramSpec, flatten, unlinked

# part of libbcc's interface that its Python wrapper does not declare
lib.bpf_num_tables.restype, lib.bpf_num_tables.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
lib.bpf_table_name.restype, lib.bpf_table_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_size_t]

FLAGS = ["-Wall", "-Werror", "-Wno-unused-function", "-Wno-macro-redefined"]


def _maps(module: BPF) -> Iterator[tuple[int, Map]]:
    """(descriptor in the instructions, map) of every map that bcc made for this module."""
    for index in range(lib.bpf_num_tables(module.module)):
        name = lib.bpf_table_name(module.module, index)
        descriptor = lib.bpf_table_fd(module.module, name)
        yield descriptor, Map(os.dup(descriptor), name.decode())


def compile_sources(sources: Path, programs: Mapping[str, ProgramSpec] = PROGRAMS) -> Compiled:
    """Every one of `programs`. Exception (bcc has but one) if one does not compile."""
    compiled = Compiled({}, {})
    for source in sorted({spec.source for spec in programs.values()}):
        module = BPF(text=flatten(sources / source), cflags=FLAGS)
        names: dict[int, str] = {}
        for descriptor, made in _maps(module):
            with made:
                names[descriptor] = made.name
                compiled.maps[made.name] = made.definition
        for spec in programs.values():
            if spec.source == source:
                start = lib.bpf_function_start(module.module, spec.name.encode())
                size = lib.bpf_function_size(module.module, spec.name.encode())
                if not start:
                    raise LookupError(f"{source} has no function {spec.name}")
                compiled.programs[spec.name] = unlinked(ctypes.string_at(start, size), names)
        module.cleanup()
    return compiled


def main(arguments: list[str]) -> int:
    logging.basicConfig(format="%(message)s")
    sources, output = map(Path, arguments)
    try:
        write_atomic(output, compile_sources(sources).to_json())
    except Exception as error:  # bcc raises bare Exception; its own words are on stderr already
        logging.error("%s: %s", sources, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

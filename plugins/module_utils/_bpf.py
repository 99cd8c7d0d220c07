# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask the running kernel what its bpf(2) can do, without a compiler and without leaving anything behind.

A map type is there when a one-entry map of it can be made. A helper is there for a program type when the verifier,
given a program of that type that does nothing but call it, complains about anything else than the call itself (it
will complain: the arguments are not initialised; the order of its checks is what we read). Every file descriptor is
closed at once, so the kernel forgets map and program. A full run is some thirty system calls, a few milliseconds.

Numbers are from linux/bpf.h (enum bpf_map_type, bpf_prog_type, bpf_attach_type, bpf_func_id), which is ABI.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

SYS_BPF = {"x86_64": 321, "aarch64": 280}
MAP_CREATE, PROG_LOAD = 0, 5

# What the programs need. Of maps not hash_of_maps, which is older than these and takes another map to make one.
# name -> (type, key size, value size, map flags)
MAP_TYPES = {
    "hash": (1, 4, 4, 0),
    "array": (2, 4, 4, 0),
    "percpu_array": (6, 4, 8, 0),
    "lru_hash": (9, 4, 4, 0),
    "lpm_trie": (11, 8, 4, 1),  # BPF_F_NO_PREALLOC, which a trie demands
    "ringbuf": (27, 0, 0, 0),
}
RINGBUF_BYTES = 4096 * 16  # a power of two and a multiple of every page size in use (4, 16, 64 KiB)

# name -> (type, expected attach type)
PROG_TYPES = {"sched_cls": (3, 0), "cgroup_sock_addr": (18, 10)}

# helper -> (number, program type it is called from)
HELPERS = {
    "skb_store_bytes": (9, "sched_cls"),
    "l3_csum_replace": (10, "sched_cls"),
    "l4_csum_replace": (11, "sched_cls"),
    "redirect": (23, "sched_cls"),
    "skb_load_bytes": (26, "sched_cls"),
    "csum_diff": (28, "sched_cls"),
    "fib_lookup": (69, "sched_cls"),
    "sk_lookup_tcp": (84, "sched_cls"),
    "sk_lookup_udp": (85, "sched_cls"),
    "skc_lookup_tcp": (99, "sched_cls"),
    "sk_assign": (124, "sched_cls"),
    "ringbuf_output": (130, "sched_cls"),
    "redirect_neigh": (152, "sched_cls"),
    "check_mtu": (163, "sched_cls"),
    "get_socket_cookie": (46, "cgroup_sock_addr"),
    "get_netns_cookie": (122, "cgroup_sock_addr"),
    "set_retval": (187, "cgroup_sock_addr"),
}

LOG_BYTES = 4096
MOV_R0_1 = struct.pack("<BBhi", 0xB7, 0, 0, 1)
EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)


def call(number: int) -> bytes:
    """The instruction that calls helper `number`."""
    return struct.pack("<BBhi", 0x85, 0, 0, number)


class NotPermitted(Exception):
    """bpf(2) is closed to this process: no privilege, or a seccomp filter of a container."""


def _bpf(command: int, attributes: bytes) -> int:
    """One bpf(2) call; a file descriptor, or OSError."""
    machine = platform.machine()
    if machine not in SYS_BPF:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) on {machine} is not known")
    libc = ctypes.CDLL(None, use_errno=True)
    attr = ctypes.create_string_buffer(attributes, 128)
    fd = int(libc.syscall(SYS_BPF[machine], command, attr, len(attr)))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


def has_map_type(name: str) -> bool:
    kind, key, value, flags = MAP_TYPES[name]
    entries = RINGBUF_BYTES if name == "ringbuf" else 1
    try:
        os.close(_bpf(MAP_CREATE, struct.pack("<5I", kind, key, value, entries, flags)))
    except OSError as refused:
        if refused.errno == errno.EPERM:
            raise NotPermitted() from refused
        return False
    return True


def load(prog_type: str, instructions: bytes) -> str | None:
    """Offer a program to the verifier: None when it is taken, else the verifier's words (maybe empty)."""
    kind, attach_type = PROG_TYPES[prog_type]
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(LOG_BYTES)
    # prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, prog_name[16],
    # prog_ifindex, expected_attach_type
    attributes = struct.pack(
        "<IIQQIIQII16sII", kind, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(licence),
        1, LOG_BYTES, ctypes.addressof(log), 0, 0, b"", 0, attach_type)  # fmt: skip
    try:
        os.close(_bpf(PROG_LOAD, attributes))
    except OSError as refused:
        words = log.value.decode(errors="replace")
        if refused.errno == errno.EPERM and not words:
            raise NotPermitted() from refused
        return words
    return None


def has_prog_type(name: str) -> bool:
    return load(name, MOV_R0_1 + EXIT) is None


def knows_helper(words: str | None) -> bool:
    """Read the verifier's answer to a bare call of a helper.

    6.1 says "invalid func NAME#N" or "unknown func NAME#N"; newer kernels add "program of this type cannot use
    helper NAME#N". An empty answer means that the program type itself was refused.
    """
    if words is None:
        return True
    return bool(words) and not any(no in words for no in ("invalid func", "unknown func", "cannot use helper"))


def has_helper(name: str) -> bool:
    number, prog_type = HELPERS[name]
    return knows_helper(load(prog_type, call(number) + MOV_R0_1 + EXIT))


def probe() -> dict[str, object]:
    """{'allowed': bool, 'map_types': {name: bool}, 'prog_types': {name: bool}, 'helpers': {name: bool}}"""
    try:
        return {
            "allowed": True,
            "map_types": {name: has_map_type(name) for name in MAP_TYPES},
            "prog_types": {name: has_prog_type(name) for name in PROG_TYPES},
            "helpers": {name: has_helper(name) for name in HELPERS},
        }
    except NotPermitted:
        return {"allowed": False, "map_types": {}, "prog_types": {}, "helpers": {}}

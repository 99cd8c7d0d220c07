"""bpf(2) by ctypes: what the daemons need of it and nothing else. No bcc, no libbpf, nothing but the interpreter.

Offsets are those of `union bpf_attr` and `struct bpf_*_info` (include/uapi/linux/bpf.h), stable since each command
exists. Keys and values are bytes; netstack.kernel.layout gives them meaning. Every failure is a BpfError with errno,
operation and name, except "no such key", which is an answer.
"""

from __future__ import annotations

import ctypes
import errno as errnos
import os
import platform
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280}[platform.machine()]
_LIBC = ctypes.CDLL(None, use_errno=True)

# enum bpf_cmd
_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY = range(5)
_PROG_LOAD, _OBJ_PIN, _OBJ_GET, _ATTACH, _DETACH, _TEST_RUN = range(5, 11)
_MAP_GET_FD_BY_ID = 14
_OBJ_INFO, _QUERY, _LOOKUP_BATCH, _UPDATE_BATCH = 15, 16, 24, 26
_ENOTSUPP = 524  # the kernel's own number, which leaks to user space from maps without batch operations
_BATCH = 4096

SCHED_CLS, CGROUP_SOCK_ADDR = 3, 18  # program types
ALLOW_MULTI, REPLACE = 2, 4  # flags of attach
_PER_CPU = (5, 6, 10)  # PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH
_LOG_BYTES = (1 << 24) - 1


class BpfError(OSError):
    """bpf(2) refused. `operation` is what was tried, `name` on what; `log` the verifier's words, if it spoke."""

    def __init__(self, errno: int, operation: str, name: str, log: str = "") -> None:
        super().__init__(errno, os.strerror(errno))
        self.operation = operation
        self.name = name
        self.log = log

    def __str__(self) -> str:
        text = f"{self.operation} {self.name}: {self.strerror} (errno {self.errno})"
        return f"{text}\n{self.log}" if self.log else text


def _bpf(command: int, attr: bytes | ctypes.Array[ctypes.c_char], operation: str, name: str) -> int:
    buffer = attr if isinstance(attr, ctypes.Array) else ctypes.create_string_buffer(attr, len(attr))
    result = int(_LIBC.syscall(_SYSCALL, command, buffer, len(buffer)))
    if result < 0:
        raise BpfError(ctypes.get_errno(), operation, name)
    return result


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def _buffer(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, max(len(data), 1))


def possible_cpus() -> int:
    """How many values a per-CPU map holds under one key."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip().split(",")
    bounds = [(text.split("-")[0], text.split("-")[-1]) for text in ranges]
    return sum(int(last) - int(first) + 1 for first, last in bounds)


class Object:
    """A file descriptor of a map or program: closed once, pinned under a path, usable in `with`."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def pin(self, path: Path | str) -> None:
        """Make `path` (under a bpffs, must not exist) hold the object. BpfError EEXIST, ENOENT."""
        text = _buffer(os.fsencode(path) + b"\0")
        _bpf(_OBJ_PIN, struct.pack("=QII", _address(text), self.fd, 0), "pin", str(path))

    def info(self, size: int = 128) -> bytes:
        """The first `size` bytes of struct bpf_map_info or bpf_prog_info."""
        info = ctypes.create_string_buffer(size)
        _bpf(_OBJ_INFO, struct.pack("=IIQ", self.fd, size, _address(info)), "describe", self.name)
        return info.raw


def _open(path: Path | str) -> int:
    text = _buffer(os.fsencode(path) + b"\0")
    return _bpf(_OBJ_GET, struct.pack("=QII", _address(text), 0, 0), "open", str(path))


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """What must agree for a pinned map to be used again. Sizes in bytes, `kind` and `flags` the kernel's numbers."""

    kind: int
    key_size: int
    value_size: int
    entries: int
    flags: int = 0

    def __str__(self) -> str:
        return (
            f"type {self.kind}, key {self.key_size} bytes, value {self.value_size} bytes, "
            f"{self.entries} entries, flags {self.flags:#x}"
        )


class Map(Object):
    """A map, opened from its pin or created. `get` and `items` of a per-CPU map give the values of all CPUs joined."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        kind, self.id, key, value, entries, flags = struct.unpack("=6I", self.info()[:24])
        self.definition = MapDefinition(kind, key, value, entries, flags)
        self._value_bytes = (value + 7) // 8 * 8 * possible_cpus() if kind in _PER_CPU else value

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """The map pinned at `path`; BpfError ENOENT if there is none."""
        return cls(_open(path), Path(path).name)

    @classmethod
    def of_id(cls, number: int, name: str) -> Self:
        """The map of this id, as a map of maps tells it; BpfError ENOENT if it is gone. Needs CAP_SYS_ADMIN."""
        return cls(_bpf(_MAP_GET_FD_BY_ID, struct.pack("=3I", number, 0, 0), "open map", name), name)

    @classmethod
    def create(cls, name: str, definition: MapDefinition, inner: Map | None = None) -> Self:
        """`inner`: for a map of maps, one that is like those which it will hold."""
        d, like = definition, 0 if inner is None else inner.fd
        attr = struct.pack("=7I16s", d.kind, d.key_size, d.value_size, d.entries, d.flags, like, 0, name.encode()[:15])
        return cls(_bpf(_MAP_CREATE, attr, "create map", name), name)

    def get(self, key: bytes) -> bytes | None:
        value = ctypes.create_string_buffer(self._value_bytes)
        return value.raw if self._element(_LOOKUP, "look up in", self._key(key), value) else None

    def put(self, key: bytes, value: bytes) -> None:
        """Whether or not it is there. BpfError E2BIG when the map is full."""
        held_key, held_value = _buffer(self._key(key)), _buffer(self._value(value))
        attr = struct.pack("=IIQQQ", self.fd, 0, _address(held_key), _address(held_value), 0)
        _bpf(_UPDATE, attr, "write to", self.name)

    def delete(self, key: bytes) -> bool:
        """True if it was there. An array's elements cannot be deleted (BpfError EINVAL)."""
        return self._element(_DELETE, "delete from", self._key(key), None)

    def keys(self) -> Iterator[bytes]:
        """Every key, one call each; a key deleted meanwhile may restart the walk, so twice is possible."""
        key: ctypes.Array[ctypes.c_char] | None = None
        following = ctypes.create_string_buffer(self.definition.key_size)
        while self._element(_NEXT_KEY, "walk", key, following):
            yield following.raw
            key = _buffer(following.raw)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every (key, value): in batches where the map has them, else one by one."""
        try:
            yield from self._items_batched()
        except BpfError as error:
            if error.errno not in (_ENOTSUPP, errnos.EINVAL):
                raise
            yield from self._items_singly()

    def sums(self) -> dict[int, int]:
        """Of a per-CPU array of counts: index -> what all CPUs have counted together."""
        width = struct.calcsize("=Q")
        return {
            int.from_bytes(key, sys.byteorder): sum(struct.unpack(f"={len(counts) // width}Q", counts))
            for key, counts in self.items()
        }

    def put_batch(self, entries: Mapping[bytes, bytes]) -> None:
        """Write all; on BpfError some may have been written."""
        items = list(entries.items())
        for start in range(0, len(items), _BATCH):
            chunk = items[start : start + _BATCH]
            keys = b"".join(self._key(key) for key, _ in chunk)
            values = b"".join(value for _, value in chunk)
            if len(values) != len(chunk) * self._value_bytes:
                raise ValueError(f"{self.name}: a value has {self._value_bytes} bytes")
            if not self._put_joined(keys, values, len(chunk)):
                for key, value in chunk:
                    self.put(key, value)

    def delete_batch(self, keys: Iterable[bytes]) -> None:
        """Delete all; absent keys are no error."""
        for key in keys:  # the kernel's batch stops at the first absent key, which an LRU may have made absent
            self.delete(key)

    def _key(self, key: bytes) -> bytes:
        if len(key) != self.definition.key_size:
            raise ValueError(f"{self.name}: a key has {self.definition.key_size} bytes, not {len(key)}")
        return key

    def _value(self, value: bytes) -> bytes:
        if len(value) != self._value_bytes:
            raise ValueError(f"{self.name}: a value has {self._value_bytes} bytes, not {len(value)}")
        return value

    def _element(
        self,
        command: int,
        operation: str,
        key: bytes | ctypes.Array[ctypes.c_char] | None,
        value: ctypes.Array[ctypes.c_char] | None,
    ) -> bool:
        """One of the element commands; False for ENOENT."""
        held = _buffer(key) if isinstance(key, bytes) else key
        key_at = 0 if held is None else _address(held)
        value_at = 0 if value is None else _address(value)
        try:
            _bpf(command, struct.pack("=IIQQQ", self.fd, 0, key_at, value_at, 0), operation, self.name)
        except BpfError as error:
            if error.errno == errnos.ENOENT:
                return False
            raise
        return True

    def _items_singly(self) -> Iterator[tuple[bytes, bytes]]:
        for key in self.keys():
            value = self.get(key)
            if value is not None:
                yield key, value

    def _items_batched(self) -> Iterator[tuple[bytes, bytes]]:
        size, wide = self.definition.key_size, self._value_bytes
        capacity = min(self.definition.entries, _BATCH)
        # the cursor is a bucket number (hash) or a key (others); in and out may not overlap
        cursor, following = (ctypes.create_string_buffer(max(size, 8)) for _ in range(2))
        first = done = False
        while not done:
            keys, values = ctypes.create_string_buffer(size * capacity), ctypes.create_string_buffer(wide * capacity)
            attr = ctypes.create_string_buffer(
                struct.pack(
                    "=QQQQIIQQ",
                    _address(cursor) if first else 0,
                    _address(following),
                    _address(keys),
                    _address(values),
                    capacity,
                    self.fd,
                    0,
                    0,
                ),
                56,
            )
            try:
                _bpf(_LOOKUP_BATCH, attr, "read", self.name)
            except BpfError as error:
                if error.errno == errnos.ENOSPC:  # one bucket holds more than the batch
                    capacity *= 2
                    continue
                if error.errno != errnos.ENOENT:
                    raise
                done = True
            (count,) = struct.unpack_from("=I", attr, 32)
            key_data, value_data = keys.raw, values.raw
            for i in range(count):
                yield key_data[i * size : (i + 1) * size], value_data[i * wide : (i + 1) * wide]
            cursor, following, first = following, cursor, True

    def _put_joined(self, keys: bytes, values: bytes, count: int) -> bool:
        """False if the map has no batch operation."""
        held_keys, held_values = _buffer(keys), _buffer(values)
        attr = struct.pack("=QQQQIIQQ", 0, 0, _address(held_keys), _address(held_values), count, self.fd, 0, 0)
        try:
            _bpf(_UPDATE_BATCH, attr, "write to", self.name)
        except BpfError as error:
            if error.errno == _ENOTSUPP:
                return False
            raise
        return True


class SoloMap(Map):
    """A map that one thread alone uses, and often: the buffers of `get` and `put` are made once."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        self._held_key = ctypes.create_string_buffer(self.definition.key_size)
        self._held_value = ctypes.create_string_buffer(self._value_bytes)
        attr = struct.pack("=IIQQQ", fd, 0, _address(self._held_key), _address(self._held_value), 0)
        self._attr = ctypes.create_string_buffer(attr, len(attr))

    def get(self, key: bytes) -> bytes | None:
        self._held_key.raw = self._key(key)
        if _LIBC.syscall(_SYSCALL, _LOOKUP, self._attr, len(self._attr)) < 0:
            if (number := ctypes.get_errno()) == errnos.ENOENT:
                return None
            raise BpfError(number, "look up in", self.name)
        return self._held_value.raw

    def put(self, key: bytes, value: bytes) -> None:
        self._held_key.raw, self._held_value.raw = self._key(key), self._value(value)
        _bpf(_UPDATE, self._attr, "write to", self.name)


class Program(Object):
    """A loaded program. `tag` is the kernel's hash of its instructions without map numbers."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        self.kind, self.id, self.tag = struct.unpack_from("=II8s", self.info())

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """The program pinned at `path`; BpfError ENOENT if there is none."""
        return cls(_open(path), Path(path).name)

    @classmethod
    def load(cls, name: str, kind: int, instructions: bytes, *, attach_type: int = 0) -> Self:
        """Have the verifier accept `instructions` (8 bytes each, map descriptors filled in). BpfError with its log."""
        code, license_ = _buffer(instructions), _buffer(b"GPL\0")
        for log_bytes in (0, _LOG_BYTES):  # the log costs time: only when the first attempt was refused
            log = ctypes.create_string_buffer(max(log_bytes, 1))
            attr = struct.pack(
                "=IIQQIIQII16sII",
                *(kind, len(instructions) // 8, _address(code), _address(license_)),
                *((1, log_bytes, _address(log)) if log_bytes else (0, 0, 0)),
                *(0, 0, name.encode()[:15], 0, attach_type),
            )
            try:
                return cls(_bpf(_PROG_LOAD, attr, "load program", name), name)
            except BpfError as error:
                lines = log.value.decode(errors="replace").splitlines()
                refusal = BpfError(error.errno or 0, error.operation, name, "\n".join(lines[-40:]))
        raise refusal

    def map_ids(self) -> frozenset[int]:
        """Ids of the maps that the program uses."""
        (count,) = struct.unpack_from("=I", self.info(), 52)
        ids = (ctypes.c_uint32 * max(count, 1))()
        info = ctypes.create_string_buffer(128)
        struct.pack_into("=IIQ", info, 48, 0, count, ctypes.addressof(ids))
        _bpf(_OBJ_INFO, struct.pack("=IIQ", self.fd, 128, _address(info)), "describe", self.name)
        return frozenset(ids[:count])

    def test_run(self, data: bytes, context: bytes = b"", *, repeat: int = 1) -> tuple[int, bytes, bytes, int]:
        """(returned value, packet after, context after, nanoseconds a run). BpfError if the input is refused."""
        data_in, data_out = _buffer(data), ctypes.create_string_buffer(len(data) + 512)
        ctx_in, ctx_out = _buffer(context), ctypes.create_string_buffer(max(len(context), 1))
        attr = ctypes.create_string_buffer(
            struct.pack(
                "=4IQQ4IQQ4I",
                *(self.fd, 0, len(data), len(data_out), _address(data_in), _address(data_out)),
                *(repeat, 0, len(context), len(context)),
                *(_address(ctx_in) if context else 0, _address(ctx_out) if context else 0),
                *(0, 0, 0, 0),
            ),
            80,
        )
        _bpf(_TEST_RUN, attr, "run", self.name)
        (returned,) = struct.unpack_from("=I", attr, 4)
        (size,) = struct.unpack_from("=I", attr, 12)
        (duration,) = struct.unpack_from("=I", attr, 36)
        return returned, data_out.raw[:size], ctx_out.raw[: len(context)], duration


def attach_cgroup(cgroup_fd: int, program: Program, attach_type: int, replaced: Program | None = None) -> None:
    """Attach beside others (ALLOW_MULTI); with `replaced`, in its place and without a moment in between."""
    flags = ALLOW_MULTI if replaced is None else ALLOW_MULTI | REPLACE
    old = 0 if replaced is None else replaced.fd
    attr = struct.pack("=5I", cgroup_fd, program.fd, attach_type, flags, old)
    _bpf(_ATTACH, attr, "attach to the cgroup", program.name)


def detach_cgroup(cgroup_fd: int, program: Program, attach_type: int) -> None:
    _bpf(_DETACH, struct.pack("=4I", cgroup_fd, program.fd, attach_type, 0), "detach from the cgroup", program.name)


def query_cgroup(cgroup_fd: int, attach_type: int) -> list[int]:
    """Ids of the programs attached to this cgroup itself, in the order in which they run."""
    capacity = 64  # BPF_CGROUP_MAX_PROGS
    ids = (ctypes.c_uint32 * capacity)()
    attr = ctypes.create_string_buffer(
        struct.pack("=4IQII", cgroup_fd, attach_type, 0, 0, ctypes.addressof(ids), capacity, 0), 32
    )
    _bpf(_QUERY, attr, "query the cgroup for", f"attach type {attach_type}")
    (count,) = struct.unpack_from("=I", attr, 24)
    return list(ids[:count])

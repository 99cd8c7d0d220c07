"""The frames by which announcers hear one another: beats and their acknowledgements.

They travel as Ethernet frames of the local experimental ethertype 0x88B5 (IEEE 802): the path that ARP takes, no port,
no address, no firewall. Layout of the payload, big endian:

    version u8 = 1, kind u8 (1 beat, 2 ack), boot u64, sequence u32, name length u8 + UTF-8
    beat: flags u8, heard count u8, each name length u8 + UTF-8, claim count u8, each address 16, term u32, stage u8
    ack:  own boot u64, refused count u8, each address 16
    HMAC-SHA256 over all of it, first 16 bytes (RFC 2104, section 5)

In an ack, `boot` and `sequence` are those of the acknowledged beat, so an ack is proof of nothing but that beat and a
replayed one is harmless. A beat is new if its sequence is above the last one of the same boot; `boot` is drawn at
random when a process starts. Padding that a driver adds behind a short frame is cut off by parsing from the front:
the MAC is where the content says that it ends.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

from netstack.announcer.frames import FrameError

ETH_BEAT = 0x88B5
VERSION = 1
BEAT, ACK = 1, 2
MAC_BYTES = 16
KEY_BYTES = 16
"""Least length of the cluster's key."""
CLAIMS_MAX = 32
"""Addresses that one node may hold."""
NAMES_MAX = 1500 - 80 - CLAIMS_MAX * 21
"""Bytes of all nodes' names together, a length byte each: then a full beat fits the smallest Ethernet MTU."""

_HEAD = struct.Struct("!BBQI")
_CLAIM = struct.Struct("!16sIB")
_BOOT = struct.Struct("!Q")


class Stage(IntEnum):
    """How far a claim has come."""

    CANDIDATE = 1
    """Asks for support; does not answer yet."""
    OWNER = 2
    YIELDING = 3
    """Still answers, and gives the address to the first candidate that asks."""


class Flag(IntFlag):
    LISTENING = 1
    """Has just started: claims nothing yet."""
    MUTE = 2
    """Has only just started: acknowledges nothing, for it has forgotten what it supported before."""
    DRAINING = 4
    """Is leaving: gives its addresses away and takes none."""
    GATEWAY = 8
    """Has had an answer from the witness lately."""


ALL_FLAGS = Flag.LISTENING | Flag.MUTE | Flag.DRAINING | Flag.GATEWAY
NO_FLAGS = Flag(0)


@dataclass(frozen=True, slots=True)
class Claim:
    address: bytes
    term: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class Beat:
    """What a node says of itself, ten times a second."""

    node: str
    boot: int
    sequence: int
    flags: Flag = NO_FLAGS
    heard: tuple[str, ...] = ()
    """Peers whose beats arrived lately."""
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True)
class Ack:
    """`node` has received the beat (boot, sequence) and supports each of its claims but the refused ones."""

    node: str
    boot: int
    sequence: int
    own_boot: int
    refused: tuple[bytes, ...] = ()


def encode(message: Beat | Ack, key: bytes) -> bytes:
    kind = BEAT if isinstance(message, Beat) else ACK
    parts = [_HEAD.pack(VERSION, kind, message.boot, message.sequence), _text(message.node)]
    if isinstance(message, Beat):
        parts.append(bytes((message.flags, len(message.heard))))
        parts.extend(map(_text, message.heard))
        parts.append(bytes((len(message.claims),)))
        parts.extend(_CLAIM.pack(claim.address, claim.term, claim.stage) for claim in message.claims)
    else:
        parts.append(_BOOT.pack(message.own_boot) + bytes((len(message.refused),)))
        parts.extend(message.refused)
    body = b"".join(parts)
    return body + _seal(body, key)


def decode(payload: bytes, key: bytes) -> Beat | Ack:
    """The message in a frame's payload; FrameError if it is cut short, of another version, or not sealed by `key`."""
    cursor = _Cursor(payload)
    try:
        version, kind, boot, sequence = cursor.take(_HEAD)
        if version != VERSION or kind not in (BEAT, ACK):
            raise FrameError(f"version {version}, kind {kind} is not spoken here")
        node = cursor.text()
        message = _beat(cursor, node, boot, sequence) if kind == BEAT else _ack(cursor, node, boot, sequence)
        end = cursor.at
        seal = cursor.bytes(MAC_BYTES)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise FrameError(f"frame of {len(payload)} bytes does not parse: {error}") from error
    if not hmac.compare_digest(seal, _seal(payload[:end], key)):
        raise FrameError("not sealed by this cluster's key")
    return message


def _beat(cursor: _Cursor, node: str, boot: int, sequence: int) -> Beat:
    flags = Flag(cursor.byte() & ALL_FLAGS)
    heard = tuple(cursor.text() for _ in range(cursor.byte()))
    claims = tuple(
        Claim(address, term, Stage(stage))
        for address, term, stage in (cursor.take(_CLAIM) for _ in range(cursor.byte()))
    )
    return Beat(node, boot, sequence, flags, heard, claims)


def _ack(cursor: _Cursor, node: str, boot: int, sequence: int) -> Ack:
    (own_boot,) = cursor.take(_BOOT)
    return Ack(node, boot, sequence, own_boot, tuple(cursor.bytes(16) for _ in range(cursor.byte())))


def _seal(body: bytes, key: bytes) -> bytes:
    return hmac.digest(key, body, "sha256")[:MAC_BYTES]


def _text(name: str) -> bytes:
    encoded = name.encode()
    return bytes((len(encoded),)) + encoded


class _Cursor:
    """Reads from the front; struct.error or ValueError where the bytes end too early."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, form: struct.Struct) -> tuple[Any, ...]:
        values = form.unpack_from(self.data, self.at)
        self.at += form.size
        return values

    def byte(self) -> int:
        return self.bytes(1)[0]

    def bytes(self, count: int) -> bytes:
        part = self.data[self.at : self.at + count]
        if len(part) != count:
            raise ValueError(f"cut short at byte {len(self.data)}")
        self.at += count
        return part

    def text(self) -> str:
        return self.bytes(self.byte()).decode()

"""Addresses of one family: 16 bytes everywhere, IPv4 as v4-mapped (RFC 4291, section 2.5.5.2).

In tables an address is `bytes` of length 16 in network order; text form is the usual dotted or colon form.
All functions raise ValueError with the text that was refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

V4_MAPPED = bytes(10) + b"\xff\xff"
ANY = bytes(16)


def pack(text: str) -> bytes:
    """'10.0.0.1' or 'fd00::1' as 16 bytes."""
    address = ipaddress.ip_address(text)
    return V4_MAPPED + address.packed if address.version == 4 else address.packed


def unpack(address: bytes) -> str:
    """16 bytes as text; v4-mapped addresses in dotted form."""
    if len(address) != 16:
        raise ValueError(f"an address has 16 bytes, not {len(address)}")
    if is_v4(address):
        return ".".join(map(str, address[12:]))
    return str(ipaddress.IPv6Address(address))


def is_v4(address: bytes) -> bool:
    return address.startswith(V4_MAPPED)


@dataclass(frozen=True, slots=True, order=True)
class Prefix:
    """A network: 16-byte base address with no host bit set, and a length in bits of 128. One of IPv6 holds no IPv4
    address, though the v4-mapped ones lie inside `::/64`."""

    address: bytes
    bits: int

    @classmethod
    def parse(cls, text: str, *, strict: bool = False) -> Prefix:
        """'10.0.0.0/8', 'fd00::/64' or a bare address. With `strict`, host bits are refused."""
        network = ipaddress.ip_network(text, strict=strict)
        offset = 96 if network.version == 4 else 0
        return cls(pack(str(network.network_address)), offset + network.prefixlen)

    def __str__(self) -> str:
        v4 = is_v4(self.address) and self.bits >= 96
        base = unpack(self.address) if v4 or not is_v4(self.address) else "::"
        return f"{base}/{self.bits - 96 if v4 else self.bits}"

    def __contains__(self, address: bytes) -> bool:
        shift = 128 - self.bits
        same = int.from_bytes(address) >> shift == int.from_bytes(self.address) >> shift
        return same and (self.bits >= V4.bits or not is_v4(address))

    def covers(self, other: Prefix) -> bool:
        return self.bits <= other.bits and other.address in self

    def nth(self, index: int) -> bytes:
        """The address at `index` from the base; IndexError beyond the end."""
        if not 0 <= index < 1 << (128 - self.bits):
            raise IndexError(f"{self} has no address number {index}")
        return (int.from_bytes(self.address) + index).to_bytes(16)


V4, V6 = Prefix(V4_MAPPED + bytes(4), 96), Prefix(ANY, 0)
"""All addresses of a family."""


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """An inclusive run of addresses of one family, as MetalLB writes them."""

    first: bytes
    last: bytes

    @classmethod
    def parse(cls, text: str) -> Range:
        """'192.168.86.5-192.168.86.19' or a CIDR."""
        if "-" in text:
            first, last = (pack(part.strip()) for part in text.split("-", 1))
            if is_v4(first) != is_v4(last):
                raise ValueError(f"{text!r} mixes address families")
            if first > last:
                raise ValueError(f"{text!r} is upside down: its first address is above its last")
            return cls(first, last)
        prefix = Prefix.parse(text.strip(), strict=True)
        return cls(prefix.address, (int.from_bytes(prefix.address) | (1 << (128 - prefix.bits)) - 1).to_bytes(16))

    def __str__(self) -> str:
        return f"{unpack(self.first)}-{unpack(self.last)}"

    def __len__(self) -> int:
        return int.from_bytes(self.last) - int.from_bytes(self.first) + 1

    def __contains__(self, address: bytes) -> bool:
        return self.first <= address <= self.last

    def __iter__(self) -> Iterator[bytes]:
        for number in range(int.from_bytes(self.first), int.from_bytes(self.last) + 1):
            yield number.to_bytes(16)

    def overlaps(self, other: Range) -> bool:
        return self.first <= other.last and other.first <= self.last

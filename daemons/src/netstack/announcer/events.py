"""What an election asks its caller to do, in the order in which it must be done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Send:
    """Put `payload` on the wire as a beat frame."""

    destination: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class SetDeadline:
    """Answer for `address` while now < `deadline` (seconds, monotonic); 0 = stop now."""

    address: bytes
    deadline: float


@dataclass(frozen=True, slots=True)
class Owned:
    """This node has become the owner. `dark_s`: how long nobody may have answered, None if there was no owner
    before."""

    address: bytes
    term: int
    reason: str
    dark_s: float | None


@dataclass(frozen=True, slots=True)
class Lost:
    address: bytes
    term: int
    reason: str


@dataclass(frozen=True, slots=True)
class Alive:
    """`node` is believed alive until `until`."""

    node: str
    until: float


@dataclass(frozen=True, slots=True)
class AskGateway:
    """Ask the gateway for its MAC; the answer comes back as `gateway_answered`."""


Output = Send | SetDeadline | Owned | Lost | Alive | AskGateway

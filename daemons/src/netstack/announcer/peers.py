"""What one announcer knows of another: its session, its latest beat, and what it has acknowledged.

A session is one life of the peer's process, named by the random `boot` in its beats; within it sequences only rise, so
what is old, doubled or replayed is dropped. Another `boot` is believed only once the session before has been silent: a
recording of an earlier life cannot talk over a peer that is alive. (Recordings of a *dead* peer can feign its life, as
whoever can send frames on this LAN can claim any address by ARP anyway: a stated limit.)
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from netstack.announcer.beat import NO_FLAGS, Beat, Flag

NEVER = float("-inf")
FORMER = 16
"""Ended sessions that are remembered, so that none is believed again."""


@dataclass(slots=True)
class Peer:
    name: str
    mac: bytes = b""
    """Source of its last believed beat; empty until then."""
    boot: int = 0
    sequence: int = 0
    heard_at: float = NEVER
    doubted_at: float = NEVER
    """When a beat of another life arrived that could not yet be believed: the peer may live, whatever it holds."""
    beat: Beat | None = None
    acked: int = 0
    """Newest own beat that it acknowledged."""
    former: deque[int] = field(default_factory=lambda: deque(maxlen=FORMER))

    def hear(self, beat: Beat, mac: bytes, now: float, silence_s: float) -> bool:
        """Take in a beat; False if it is not new."""
        if beat.boot != self.boot:
            if beat.boot in self.former:
                return False
            if now - self.heard_at < silence_s:
                self.doubted_at = now
                return False
            if self.beat is not None:
                self.former.append(self.boot)
            self.boot = beat.boot
        elif beat.sequence <= self.sequence:
            return False
        self.sequence = beat.sequence
        self.heard_at = now
        self.mac = mac
        self.beat = beat
        return True

    @property
    def flags(self) -> Flag:
        return self.beat.flags if self.beat else NO_FLAGS

    def counts(self, now: float, silence_s: float) -> bool:
        """Whether its support is waited for: it is heard and can take part, or it is in doubt."""
        heard = now - self.heard_at < silence_s and self.takes_part
        return heard or now - self.doubted_at < silence_s

    @property
    def takes_part(self) -> bool:
        """Whether it can acknowledge and hold anything: not while it has just started, nor while it hears nothing."""
        if self.beat is None or Flag.MUTE in self.beat.flags:
            return False
        return bool(self.beat.heard) or Flag.GATEWAY in self.beat.flags

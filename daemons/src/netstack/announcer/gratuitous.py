"""When to announce an owned address unasked: often just after it moved, then now and then.

0 and 50 ms cover a lost frame; 1.1 s covers kernels that ignore an ARP update within a second of the last one; 5 s a
switch port that had to learn. The repetition keeps switches (MAC ageing 300 s) and routers (ARP ageing up to 20 min)
from disagreeing about a silent owner.
"""

from __future__ import annotations

from dataclasses import dataclass

STEPS_S = (0.0, 0.05, 0.2, 1.1, 2.2, 5.0)
"""After an address was taken."""
GATEWAY_STEPS = (0, 2)
"""Of these, the ones at which the gateway is also asked from the address: its own entry follows the question."""


@dataclass(frozen=True, slots=True)
class Announce:
    address: bytes
    ask_gateway: bool


@dataclass(slots=True)
class _Plan:
    since: float
    step: int
    at: float


class Gratuitous:
    """The schedule of one interface."""

    def __init__(self, refresh_s: float) -> None:
        """`refresh_s`: between repetitions; 0 = none."""
        self._refresh_s = refresh_s
        self._plans: dict[bytes, _Plan] = {}

    def owned(self, address: bytes, now: float) -> None:
        self._plans[address] = _Plan(now, 0, now)

    def lost(self, address: bytes) -> None:
        self._plans.pop(address, None)

    def again(self, now: float) -> None:
        """The link came back: whoever listens may have forgotten."""
        for address in self._plans:
            self.owned(address, now)

    @property
    def wakeup(self) -> float:
        return min((plan.at for plan in self._plans.values()), default=float("inf"))

    def due(self, now: float) -> list[Announce]:
        """What is to be sent now; each is said once."""
        result = []
        for address, plan in self._plans.items():
            if now < plan.at:
                continue
            result.append(Announce(address, plan.step in GATEWAY_STEPS or plan.step >= len(STEPS_S)))
            plan.step += 1
            if plan.step < len(STEPS_S):
                plan.at = plan.since + STEPS_S[plan.step]
            elif self._refresh_s:
                plan.at = now + self._refresh_s * (0.9 + 0.2 * address[15] / 255)  # spread, not all at once
            else:
                plan.at = float("inf")
        return result

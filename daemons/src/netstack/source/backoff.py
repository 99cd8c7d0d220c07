"""How long to wait before the next attempt: exponential with decorrelated jitter.

Many nodes lose the same API server at the same moment. Each draws its next pause between `base_s` and three times its
last one (Brooker, "Exponential Backoff And Jitter", 2015), so they drift apart at once and come back spread over
`cap_s`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Draw = Callable[[float, float], float]
"""random.uniform, or a test's own."""


@dataclass(slots=True)
class Backoff:
    draw: Draw
    base_s: float = 0.25
    cap_s: float = 30.0
    last_s: float = 0.0
    """The last pause; 0 after a success."""

    def pause_s(self, at_least_s: float = 0.0) -> float:
        """The next pause. `at_least_s`: what the server asked for (Retry-After); jitter comes on top of it."""
        self.last_s = min(self.cap_s, self.draw(self.base_s, max(self.base_s, 3 * self.last_s)))
        return at_least_s + self.last_s

    def reset(self) -> None:
        self.last_s = 0.0

"""Settings of netstack-observer, /etc/netstack/observer.yaml."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ObserverSettings:
    maps: str = "/sys/fs/bpf/netstack/maps"
    """Folder of the pinned tables: events is read here, event_budget says what was lost."""

    keep: int = 32768
    """How many events are kept for who asks later; about 100 bytes each."""

    pace_s: float = 0.02
    """The ring is read at most once in this time: 50 batches a second cost less than 10,000 wake-ups."""

    refresh_s: float = 2.0
    """How often the agent is asked for new names. A pod that comes and goes faster stays without one."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, not {self.keep}")
        if not 0 < self.pace_s <= 1:
            raise ValueError(f"pace_s must be above 0 and at most 1, not {self.pace_s}")
        if self.refresh_s <= 0:
            raise ValueError(f"refresh_s must be above 0, not {self.refresh_s}")

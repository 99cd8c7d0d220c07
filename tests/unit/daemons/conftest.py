"""What holds for every property test."""

from __future__ import annotations

from hypothesis import settings

from instruments.depth import SOAK

settings.register_profile("netstack", derandomize=not SOAK, deadline=None)
settings.load_profile("netstack")

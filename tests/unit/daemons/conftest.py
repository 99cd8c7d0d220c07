"""What holds for every property test."""

from __future__ import annotations

import os

from hypothesis import settings

# The same examples in every run: a change is judged by its own faults. A soak looks for new ones.
settings.register_profile("netstack", derandomize="SOAK" not in os.environ, deadline=None)
settings.load_profile("netstack")

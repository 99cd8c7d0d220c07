"""What belongs to a lab is named by its prefix, so that two labs run side by side and a dead one can be swept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

RUN = Path("/run/netstack-lab")
SHARE = Path(__file__).with_name("share")  # programs of the lab; nodes have it as /opt/lab/share


@dataclass(frozen=True, slots=True)
class Names:
    """Names of one lab's things outside of its own namespaces."""

    prefix: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]{0,11}", self.prefix):
            raise ValueError(f"prefix {self.prefix!r}: 1-12 small letters and digits, a letter first")

    @property
    def run(self) -> Path:
        """The lab's tmpfs: disks of the nodes, logs, manifests, what is known of the pods."""
        return RUN / self.prefix

    @property
    def claim(self) -> str:
        """The abstract socket that a lab's owner holds; it ends with the owner's process, and leaves no file."""
        return f"\0netstack-lab-{self.prefix}"

    @property
    def cgroup(self) -> str:
        """Below the root of each cgroup hierarchy; every process of the lab is in it or below."""
        return f"netstack-lab-{self.prefix}"

    @property
    def manifests(self) -> Path:
        """The folder that plays the API server, mounted into every node at /etc/netstack/manifests."""
        return self.run / "manifests"

    def netns(self, member: str) -> str:
        return f"{self.prefix}-{member}"

    def netns_path(self, member: str) -> Path:
        return Path("/run/netns") / self.netns(member)

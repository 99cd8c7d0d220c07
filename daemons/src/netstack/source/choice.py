"""The choice of a source, as every daemon's settings make it, and what follows from it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netstack.source import Source
from netstack.source.directory import DirectorySource
from netstack.source.resources import Want
from netstack.source.status import Statuses, StatusFolder

SOURCES = ("directory", "kubernetes")
KUBECONFIG = "/etc/netstack/kubeconfig"


@dataclass(frozen=True, slots=True)
class Choice:
    """`kubeconfig`: path of the node's; "" = the files of a pod's service account."""

    source: str
    kubeconfig: str
    node: str
    manifests: Path
    status: Path
    keep: Path
    """Folder of the last known good objects."""

    def open(
        self,
        wants: Sequence[Want],
        patience_s: Callable[[], float] = lambda: random.uniform(0.0, 1.0),  # noqa: S311 - no secret
    ) -> tuple[Source, Statuses]:
        """The source, and where the daemon says what became of the objects. `patience_s`: see StatusApi."""
        if self.source == "directory":
            return DirectorySource(self.manifests, self.status, self.keep), StatusFolder(self.status, self.manifests)
        # Here, so that nobody else pays for http.client.
        from netstack.source.kubernetes import KubernetesSource
        from netstack.source.statusapi import StatusApi

        source = KubernetesSource(self.kubeconfig, wants, self.keep / "kubernetes")
        return source, StatusApi(source, self.node, patience_s=patience_s, draw=random.uniform)


def check(source: str) -> None:
    """ValueError for a source that there is not."""
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, not {source!r}")


def unready(source: Source) -> list[str]:
    """Why the daemon has nothing to work on; empty if it has."""
    if source.ready:
        return []
    reasons = [f"{problem['kind']}: {problem['reason']}" for problem in source.report()["problems"]]
    return ["; ".join(["nothing is known from the API server or from before", *reasons])]


def report(source: Source, statuses: Statuses) -> dict[str, Any]:
    """Both in one, for the daemons' `status`."""
    said = source.report()
    return {**said, "problems": [*said["problems"], *statuses.report()]}

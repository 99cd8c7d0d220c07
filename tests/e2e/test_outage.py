"""Without an API server the network stays as it was last known, and catches up when there is one again.

LONG=1: the outage under churn lasts an hour. OUTAGE: so many seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from e2e.demo import DAEMONS, LISTED, MANIFESTS, Home, get_ha, reaches, refused, wait_ready
from e2e.outage import Churn, costs, ingress, serves, silencing, stale, table
from lab.router import ATTACKER
from lab.shell import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.parametrize("performance", ["kubernetes"], indirect=True),
]

OUTAGE_S = float(os.environ.get("OUTAGE") or (3600 if os.environ.get("LONG") == "1" else 30))
PERIOD_S = min(10.0, OUTAGE_S / 10)
CATCH_UP_S = 60.0
LINES_MAX = 60
"""Of a daemon's log in one outage, however long: a few for each of its dozen kinds."""
GROWTH_MAX_MB = 10.0


@pytest.fixture
def churn(home: Home) -> Iterator[Churn]:
    """The home while its control plane is gone, with pods of its own: the demo's lost their nodes' power."""
    churn = Churn.begin(home)
    yield churn
    home.lab.plug("ctl")
    home.lab.controlplane.start()
    churn.end()


def test_the_network_stays_as_it_was_under_churn_and_catches_up(churn: Churn) -> None:
    lab, began, seen = churn.home.lab, time.time(), {}
    start = time.monotonic()
    seen["before"] = costs(lab, began)
    killed = time.time()
    lab.controlplane.kill()
    churn.go_on(start + OUTAGE_S / 4, PERIOD_S)
    churn.said(killed)
    churn.reboot()
    churn.go_on(start + OUTAGE_S / 2, PERIOD_S)
    seen["refused"] = costs(lab, began)
    lab.unplug("ctl")
    lab.controlplane.start()
    churn.go_on(start + OUTAGE_S * 3 / 4, PERIOD_S, churn.change)
    seen["silent"] = costs(lab, began)
    churn.go_on(start + OUTAGE_S, PERIOD_S, churn.change)
    churn.said(killed)
    churn.decide()
    seen["still"] = costs(lab, began)
    lab.plug("ctl")
    try:
        churn.catch_up()
    finally:
        seen["caught up"] = costs(lab, began)
        print(f"\n{churn.rounds} rounds in {OUTAGE_S:.0f} s\n{table(seen)}", *churn.failures, sep="\n")
    assert churn.failures == []
    assert stale(lab) == {}
    for name, cost in seen["caught up"].items():
        assert cost.lines <= LINES_MAX, f"{name}: {cost.lines} lines"
        assert cost.megabytes <= seen["before"][name].megabytes + GROWTH_MAX_MB, name


def test_an_api_server_that_no_longer_admits_its_nodes_opens_nothing(churn: Churn) -> None:
    """A definition that is uninstalled, rights that are taken away, certificates that expire, and a server that comes
    and goes."""
    lab = churn.home.lab
    lab.delete("CustomResourceDefinition", "", "ciliumnetworkpolicies.cilium.io")
    churn.wait(lambda: churn.hears("its definition is", ["CiliumNetworkPolicy"]), "the definition to be missed")
    churn.go_on(0, PERIOD_S)
    for binding in lab.api.list("ClusterRoleBinding"):
        if binding["metadata"]["name"].startswith("netstack-"):
            lab.delete("ClusterRoleBinding", "", binding["metadata"]["name"])
    flap(churn)
    churn.wait(lambda: churn.hears("403 Forbidden"), "the nodes to be refused")
    lab.apply(silencing("bound"))
    churn.go_on(0, PERIOD_S)
    with churn.expired():
        flap(churn)
        churn.wait(lambda: churn.hears("401 Unauthorized"), "the nodes to be unknown")
        churn.go_on(0, PERIOD_S)
        lab.controlplane.apply_crds()  # and the rights
        lab.apply(MANIFESTS / "openclaw.yaml")  # went with its definition
        churn.decide()
    churn.catch_up()
    reaches(churn.agent, LISTED)
    refused(churn.home, churn.agent, LISTED, ATTACKER, to_peer=True)
    assert churn.failures == []
    assert stale(lab) == {}


def flap(churn: Churn) -> None:
    for _ in range(2):
        churn.home.lab.controlplane.kill()
        churn.go_on(0, PERIOD_S)
        churn.home.lab.controlplane.start()


def test_daemons_that_start_without_an_api_server_know_what_they_knew(home: Home) -> None:
    lab = home.lab
    agent = lab.pod("n3", "openclaw", "survivor", {"app": "openclaw"})
    wait_until(lambda: serves(lab, "ha.home.lab"), "the web to be served", CATCH_UP_S)
    lab.controlplane.kill()
    try:
        lab.node(agent.node).run(f"systemctl restart {DAEMONS}")
        wait_until(lambda: serves(lab, "ha.home.lab"), "the web to be served", CATCH_UP_S)
        get_ha(lab)
        reaches(agent, LISTED)
        refused(home, agent, LISTED, ATTACKER, to_peer=True)
    finally:
        lab.controlplane.start()
    agent.delete()


def test_it_catches_up(home: Home) -> None:
    lab = home.lab
    lab.controlplane.kill()
    lab.controlplane.start()
    lab.apply(ingress("late.home.lab"))
    wait_until(lambda: serves(lab, "late.home.lab"), "the new name to be served", CATCH_UP_S)
    for node in lab.nodes:
        wait_ready(node)
    lab.delete("Ingress", "home", "late")
    wait_until(lambda: not serves(lab, "late.home.lab"), "the deleted name to be gone", CATCH_UP_S)

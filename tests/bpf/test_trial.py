"""Trials on a node with the real programs in force: the verdict and rule of the programs, and no trace of it."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest

from bpf.populated import ALLOW, DENY, HOST_MAC, MAC, OTHER, A, populated
from netstack.cli.frames import Flow, first_packet
from netstack.core.address import pack
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l
from netstack.kernel.ring import Ring
from netstack.kernel.trial import WRITTEN, Trial

pytestmark = pytest.mark.root


def test_a_trial_tells_verdict_and_rule_and_leaves_no_trace(tmp_path: Path) -> None:
    flows = [Flow(pack(A), pack(to), 443, "TCP") for to in ("192.0.2.1", "192.0.2.66", OTHER)]
    with populated(tmp_path) as node:
        with node.namespace.entered(), Trial(node.settings) as trial:
            device = socket.if_nametoindex("veth-a")
            frames = [first_packet(flow, MAC, HOST_MAC) for flow in flows]
            found = [trial.run("pod_ingress", frame, device=device, came_by=device) for frame in frames]
            assert list(trial.differing()) == []
        assert [(outcome.verdict, outcome.rule) for outcome in found] == [
            (Verdict.FORWARDED, ALLOW),
            (Verdict.POLICY_DENIED, DENY),
            (Verdict.DEFAULT_DENY, 0),
        ]
        # the devices have had packets of their own: but none that a policy judged
        told = ("counters", "events", "event_seen", "event_budget", "heard")
        for name in WRITTEN:
            if name not in (*told, "conntrack"):
                with node.map(name) as table:
                    assert list(table.items()) == [], name
        flows = dict(node.flows().all())
        assert flows.keys() == {11, 12} and all(not dict(table.items()) for table in flows.values())
        with closing(Ring(node.map("events"))) as ring:
            assert not [record for record in ring.read() if l.Event.unpack(record).endpoint]
        with closing(Ring(node.map("heard"))) as ring:
            assert ring.read() == []
        with node.map("counters") as table:
            assert not any(table.get(l.Number(Verdict.POLICY_DENIED).pack()) or b"")

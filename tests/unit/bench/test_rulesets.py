"""The peers' rules have kube-proxy's shape: what a packet meets, counted."""

from __future__ import annotations

from bench.rulesets import BATCH, Balanced, Server, iptables, nftables

SERVERS = [Server("10.244.1.3", 8080), Server("10.244.1.4", 8080)]


def services(count: int, protocol: str = "tcp") -> list[Balanced]:
    return [
        Balanced(f"s{i}", f"10.97.{i >> 8}.{i & 255}", f"172.20.{i >> 8}.{i & 255}", protocol, 80) for i in range(count)
    ]


def test_iptables_walks_two_rules_a_service_and_jumps_to_one_endpoint_of_two() -> None:
    lines = iptables(services(3), SERVERS).splitlines()
    jumps = [line for line in lines if line.startswith("-A KUBE-SERVICES") and "--dport 80" in line]
    assert len(jumps) == 6
    assert sum("-j DNAT --to-destination" in line for line in lines) == 6
    chances = [line for line in lines if "--probability 0.5000000000" in line]
    assert len(chances) == 6  # in KUBE-SVC and KUBE-SVL of each
    last = [line for line in lines if line.startswith("-A KUBE-SERVICES")][-1]
    assert "KUBE-NODEPORTS" in last


def test_every_chain_that_iptables_jumps_to_is_declared_in_its_table() -> None:
    for part in iptables(services(2), SERVERS).split("COMMIT"):
        declared = {line.split()[0][1:] for line in part.splitlines() if line.startswith(":")}
        targets = {line.rpartition("-j ")[2].split()[0] for line in part.splitlines() if " -j " in line}
        targets |= {line.split()[1] for line in part.splitlines() if line.startswith("-A ")}
        assert {name for name in targets - declared if name.startswith("KUBE-")} == set()


def test_nftables_looks_up_one_map() -> None:
    head, body = nftables(services(3, "udp"), SERVERS)
    assert "th dport vmap @service-ips" in head
    assert body.count("udp . 80 : goto service-") == body.count("udp . 80 : goto external-") == 3
    assert body.count("numgen random mod 2 vmap") == 6
    assert body.count("dnat to 10.244.1.3:8080") == 3


def test_nftables_comes_in_batches() -> None:
    assert len(list(nftables(services(BATCH + 1), SERVERS))) == 3

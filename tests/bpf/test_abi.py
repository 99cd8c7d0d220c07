"""abi.h as a C compiler lays it out, against kernel/layout.py: offsets, sizes and constants."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from netstack.kernel import layout as l

ABI = Path(__file__).parents[2] / "files" / "bpf" / "lib" / "abi.h"
STRUCTS: dict[type[l.Record], str] = {
    l.ServiceKey: "service_key",
    l.Service: "service",
    l.Backend: "backend",
    l.Tuple: "tuple",
    l.Nat: "nat",
    l.SocketPeer: "socket_peer",
    l.SocketOrigin: "socket_origin",
    l.Endpoint: "endpoint",
    l.PrefixKey: "prefix",
    l.Identity: "identity",
    l.PolicyKey: "policy_key",
    l.PolicyRule: "policy_rule",
    l.FqdnKey: "fqdn_key",
    l.FlowKey: "flow_key",
    l.Flow: "flow",
    l.Event: "event",
    l.EventKey: "event_key",
    l.EventSeen: "event_seen",
    l.Budget: "budget",
    l.VipKey: "vip_key",
    l.Vip: "vip",
    l.AddressKey: "addr",
}


@cache
def text() -> str:
    return re.sub(r"/\*.*?\*/", "", ABI.read_text(), flags=re.DOTALL)


def fields(struct: str) -> list[str]:
    body = re.search(rf"^struct {struct} {{(.*?)^}};", text(), re.DOTALL | re.MULTILINE)
    assert body is not None
    names = [name for line in body[1].split(";") for name in re.findall(r"(\w+)(?:\[\w+\])?\s*(?:,|$)", line.strip())]
    return [name for name in names if name != "pad"]


def evaluate(expressions: list[str], tmp_path: Path) -> list[int]:
    prints = "\n".join(f'printf("%ld\\n", (long)({expression}));' for expression in expressions)
    headers = "".join(f"#include {name}\n" for name in ("<stddef.h>", "<stdio.h>", "<linux/types.h>", f'"{ABI}"'))
    source = f"{headers} int main(void) {{ {prints} }}"
    program = tmp_path / "abi"
    subprocess.run(["cc", "-x", "c", "-w", "-o", str(program), "-"], input=source, text=True, check=True)
    return [int(line) for line in subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()]


@pytest.mark.parametrize("record", STRUCTS, ids=lambda record: record.__name__)
def test_offsets_and_size(record: type[l.Record], tmp_path: Path) -> None:
    name = f"struct {STRUCTS[record]}"
    wanted = [f"offsetof({name}, {field})" for field in fields(STRUCTS[record])] + [f"sizeof({name})"]
    assert evaluate(wanted, tmp_path) == [*record.offsets().values(), record.size()]


def test_config_is_two_families_and_the_node(tmp_path: Path) -> None:
    inner = ("node", "pod_net", "pod_net_bits")
    paths = [f"{family}.{field}" for family in ("v4", "v6") for field in inner] + [
        "uplink",
        "generation",
        "host",
        "unfinished",
    ]
    wanted = [f"offsetof(struct config, {path})" for path in paths] + ["sizeof(struct config)"]
    assert evaluate(wanted, tmp_path) == [*l.Config.offsets().values(), l.Config.size()]


def test_fqdn_is_eight_pairs(tmp_path: Path) -> None:
    paths = [f"learned[{i}].{field}" for i in range(8) for field in ("selector", "expires_s")]
    wanted = [f"offsetof(struct fqdn, {path})" for path in paths] + ["sizeof(struct fqdn)"]
    assert evaluate(wanted, tmp_path) == [*l.Fqdn.offsets().values(), l.Fqdn.size()]


def test_a_heard_message_follows_its_head(tmp_path: Path) -> None:
    wanted = [f"offsetof(struct heard, {field})" for field in ("server", "endpoint", "length", "message")]
    assert evaluate(wanted, tmp_path) == [*l.Heard.offsets().values(), l.Heard.size()]


def test_every_constant_is_the_same_on_both_sides(tmp_path: Path) -> None:
    names = re.findall(r"^#define (\w+)[ \t]+\S", text(), re.MULTILINE)
    assert len(names) > 40
    assert evaluate(names, tmp_path) == [getattr(l, name) for name in names]


def test_every_struct_is_compared() -> None:
    elsewhere = {"family_config", "config", "fqdn", "fqdn_learned", "heard"}
    assert set(re.findall(r"^struct (\w+) {", text(), re.MULTILINE)) == set(STRUCTS.values()) | elsewhere

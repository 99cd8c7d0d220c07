"""Who has which address and number."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from netstack.agent.register import INGRESS_NAME, LAST_ID, Full, Register
from netstack.core.address import Prefix, pack

CIDR = Prefix.parse("10.244.1.0/29")  # .3 to .6 are for pods


def reserve(register: Register, container: str) -> Register:
    return register.reserve(CIDR, container, "eth0", f"nst-{container}", "default", container)


def found(register: Register, container: str) -> tuple[int, str]:
    record = register.find(container, "eth0")
    assert record is not None
    return record.id, record.address


def test_addresses_from_3_on_in_rotation_and_numbers_never_twice() -> None:
    register = Register("boot")
    for name in "abcd":
        register = reserve(register, name)
    assert [found(register, name) for name in "abcd"] == [
        (1, "10.244.1.3"), (2, "10.244.1.4"), (3, "10.244.1.5"), (4, "10.244.1.6"),
    ]  # fmt: skip
    with pytest.raises(Full, match=r"10.244.1.0/29 is full: all 4 addresses are in use"):
        reserve(register, "e")
    register = reserve(register.release(2).release(1), "e")
    assert found(register, "e") == (5, "10.244.1.3")


def test_an_address_that_somebody_else_uses_is_not_given() -> None:
    register = Register("boot").reserve(CIDR, "a", "eth0", "d", "default", "a", (pack("10.244.1.3"), pack("fd00::3")))
    assert found(register, "a") == (1, "10.244.1.4")


def test_a_freed_address_rests() -> None:
    register = reserve(reserve(Register("boot"), "a").release(1), "b")
    assert found(register, "b") == (2, "10.244.1.4")


def test_the_ingress_endpoint_has_an_address_of_its_own_even_when_all_others_are_taken() -> None:
    register = Register("boot")
    for name in "abcd":
        register = reserve(register, name)
    register = reserve(register, INGRESS_NAME)
    assert found(register, INGRESS_NAME) == (5, "10.244.1.2")
    record = register.find(INGRESS_NAME, "eth0")
    assert record is not None and record.ingress
    with pytest.raises(Full, match=r"10.244.1.2 is in use"):
        register.reserve(CIDR, INGRESS_NAME, "eth1", "d", "ns", "p")


def test_a_restart_keeps_everything_and_a_reboot_only_the_counters() -> None:
    register = reserve(reserve(Register("boot"), "a"), "b")
    assert Register.load(register.dump(), "boot") == register
    after = Register.load(register.dump(), "another boot")
    assert after.records == ()
    assert found(reserve(after, "c"), "c") == (3, "10.244.1.5")
    assert Register.load("", "boot") == Register("boot")


def test_a_register_is_read_by_the_first_release_and_that_ones_by_this() -> None:
    register = reserve(reserve(Register("boot"), "a"), "b")
    record = register.find("b", "eth0")
    assert record is not None
    later = {"uid": "u1", "namespace_labels": {"team": "red"}, "ports": (("web", "TCP", 80),)}
    register = register.put(replace(record, **later))
    assert Register.load(register.dump(), "boot") == register
    written = json.loads(register.dump())
    assert written.pop("later")["2"] == {**later, "ports": [["web", "TCP", 80]]}
    assert not any(later.keys() & item.keys() for item in written["records"])
    assert Register.load(json.dumps(written), "boot") == register.put(record)


@pytest.mark.parametrize(
    "text", ["{", "[]", "\0", "{}", '{"boot": "b", "next_id": 1, "last_host": 2, "records": [{"x": 1}]}']
)
def test_a_torn_register_is_an_error_and_never_an_empty_one(text: str) -> None:
    with pytest.raises(ValueError, match="is no register of endpoints"):
        Register.load(text, "b")


def test_numbers_end() -> None:
    with pytest.raises(Full, match="endpoint numbers"):
        reserve(Register("boot", next_id=LAST_ID + 1), "a")


def test_only_attached_records_are_endpoints() -> None:
    register = reserve(reserve(Register("boot"), "a"), "b")
    record = register.find("a", "eth0")
    assert record is not None
    register = register.put(replace(record, ifindex=7, mac="02" * 6, host_mac="06" * 6, labels={"app": "a"}))
    (endpoint,) = register.endpoints()
    assert (endpoint.id, endpoint.address, endpoint.mac) == (1, pack("10.244.1.3"), b"\x02" * 6)
    assert endpoint.labels == {"app": "a"}

import socket

from netstack.core.protocol import PROTOCOL_NAMES, PROTOCOLS


def test_the_numbers_are_those_of_the_internet() -> None:
    for name, number in PROTOCOLS.items():
        assert number == getattr(socket, f"IPPROTO_{name.upper()}")
        assert PROTOCOL_NAMES[number] == name

"""who_has.py ADDRESS SECONDS: ask the LAN for an IPv4 address by ARP; print every MAC that answers, one a line.

It listens for the whole time, because two who answer is what one wants to know.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import time

ETH_P_ARP, REQUEST, REPLY = 0x0806, 1, 2
ARP = struct.Struct("!HHBBH6s4s6s4s")  # RFC 826
SIOCGIFADDR = 0x8915


def main() -> None:
    address, wait_s = socket.inet_aton(sys.argv[1]), float(sys.argv[2])
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP)) as wire:
        wire.bind(("eth0", ETH_P_ARP))
        mac = wire.getsockname()[4]
        own = fcntl.ioctl(socket.socket(), SIOCGIFADDR, struct.pack("256s", b"eth0"))[20:24]
        question = ARP.pack(1, 0x0800, 6, 4, REQUEST, mac, own, bytes(6), address)
        wire.send(b"\xff" * 6 + mac + ETH_P_ARP.to_bytes(2, "big") + question)
        deadline, heard = time.monotonic() + wait_s, set[bytes]()
        while (left := deadline - time.monotonic()) > 0:
            wire.settimeout(left)
            try:
                frame = wire.recv(2048)
            except TimeoutError:
                break
            _, _, _, _, operation, sender, said, target, _ = ARP.unpack_from(frame, 14)
            if (operation, said, target) == (REPLY, address, mac):
                heard.add(sender)
    for answer in sorted(heard):
        print(answer.hex(":"))


main()

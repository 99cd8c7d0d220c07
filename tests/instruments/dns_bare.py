"""A DNS forwarder that looks at nothing: `python dns_bare.py ADDRESS PORT SERVER`. What sockets cost a Python process.

As netstack-dns does it: a socket of its own for every question under way, all of them in one epoll set. Nothing is
read, judged, remembered or opened.
"""

from __future__ import annotations

import select
import socket
import sys

DNS_PORT = 53


def main(address: str, port: int, server: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as pods, select.epoll() as ready:
        pods.bind((address, port))
        pods.setblocking(False)
        ready.register(pods, select.EPOLLIN)
        idle: list[socket.socket] = []
        waiting: dict[int, tuple[socket.socket, tuple[str, int]]] = {}
        while True:
            for descriptor, _ in ready.poll():
                if descriptor == pods.fileno():
                    question, pod = pods.recvfrom(4096)
                    upstream = idle.pop() if idle else _towards(server, ready)
                    waiting[upstream.fileno()] = upstream, pod
                    upstream.send(question)
                elif (asked := waiting.pop(descriptor, None)) is not None:
                    upstream, pod = asked
                    pods.sendto(upstream.recv(4096), pod)
                    idle.append(upstream)


def _towards(server: str, ready: select.epoll) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((server, DNS_PORT))
    ready.register(sock, select.EPOLLIN)
    return sock


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])

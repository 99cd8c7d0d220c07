"""Finds the device of each pod that netstack did not connect (unmanaged.py), and takes it down if a policy selects the
pod.

The kernel is asked which addresses lie behind each device that leads into another network namespace. That is true of
every plugin that gives a pod one end of a pair, with a bridge (flannel) or without (Cilium, Calico), whatever the range
of its addresses. Where the host routes an address, or behind which port a bridge has seen it, says less: the one is
undone when the plugin goes, the other anybody on the bridge can forge. No namespace has to be entered, which the
agent's unit would not permit. A pod that may change its own addresses (NET_ADMIN) could hide one later, so whose a
device is stays as it was first seen.

A device that is down passes nothing in either direction, whatever programs another plugin left on it. Its alias says
who took it down and why, and that it may go up again when no policy selects the pod any more, in another process too.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection, Iterable, Mapping

from netstack.agent.unmanaged import Unmanaged
from netstack.core.ref import Ref
from netstack.kernel.netlink import Link, Netlink
from netstack.source.models import Pod

PAIRS = ("veth", "netkit")
"""Kinds of devices whose other end is a pod's."""
MARK = "isolated by netstack: "
log = logging.getLogger("agent")


class Isolation:
    """`uplink`: a device that is never a pod's, also where this node is itself a container."""

    def __init__(self, netlink: Netlink, uplink: str) -> None:
        self._netlink = netlink
        self._uplink = uplink
        self._known: dict[tuple[Ref, bytes], set[tuple[str, int]]] = {}
        """Pod and address -> name and ifindex of each device behind which it was seen."""

    def foreign(self, ours: Collection[str]) -> dict[bytes, list[Link]]:
        """Every address behind devices that are none of `ours` -> these devices."""
        found: dict[bytes, list[Link]] = {}
        for link in self._pairs(ours):
            for address in self._netlink.addresses_behind(link):
                found.setdefault(address, []).append(link)
        return found

    def _pairs(self, ours: Collection[str]) -> list[Link]:
        named = {self._uplink, *ours}
        return [link for link in self._netlink.links() if link.kind in PAIRS and link.name not in named]

    def find(self, suspects: Mapping[bytes, Pod], ours: Collection[str]) -> dict[bytes, list[Link]]:
        """The devices of those addresses that are in use; more than one if somebody else claims an address too."""
        if not suspects:
            self._known = {}
            return {}
        found = self.foreign(ours)
        links = {(link.name, link.index): link for link in self._pairs(ours)}
        known = {}
        for address, pod in suspects.items():
            places = self._known.get((pod.meta.ref, address), set())
            places = (places | {(link.name, link.index) for link in found.get(address, ())}) & links.keys()
            if places:
                known[pod.meta.ref, address] = places
        self._known = known
        return {address: [links[place] for place in sorted(places)] for (_, address), places in known.items()}

    def apply(self, pods: Iterable[Unmanaged], devices: Mapping[bytes, Iterable[Link]]) -> None:
        """Devices of pods that are to be isolated go down; those that we took down and that are to be no more, up."""
        wanted = {link.index: item for item in pods if item.isolated for link in devices[item.address]}
        for link in {link.index: link for links in devices.values() for link in links}.values():
            try:
                self._settle(link, wanted.get(link.index))
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise

    def _settle(self, link: Link, item: Unmanaged | None) -> None:
        """`item`: who is to be isolated."""
        if item is not None and link.up:
            self._netlink.set_alias(link.index, f"{MARK}{item.pod.key}")
            self._netlink.set_up(link.index, False)
            log.error("%s: %s; %s is taken down", item.pod, item, link.name)
        elif item is None and not link.up and link.alias.startswith(MARK):
            self._netlink.set_up(link.index)
            self._netlink.set_alias(link.index, "")
            log.info("no policy selects the pod behind %s any more: it is up again", link.name)

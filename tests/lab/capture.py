"""What was on a wire: tcpdump on any link of the lab, surely running before the traffic and complete after it."""

from __future__ import annotations

import re
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from . import network
from .cgroups import joined
from .shell import run, wait_until

# Whole frames, in the file as soon as they have passed; and do not change the user, who could not write there. Of the
# usual 2 MB each frame takes as much as the largest could: too few have room for a busy machine's pauses.
TCPDUMP = ("tcpdump", "-n", "-s", "0", "-U", "--immediate-mode", "-B", "32768", "-Z", "root")

PCAP_FILE_HEADER, PCAP_RECORD_HEADER = 24, 16  # bytes; draft-ietf-opsawg-pcap sections 4 and 5


class Capture:
    """A context manager. Inside of it packets are recorded; after it, `frames`, `lines` and the file `pcap` tell.

    >>> with lab.capture("n1", "arp") as wire:
    ...     lab.client(1).get("http://192.168.86.18/")
    >>> wire.lines()
    """

    def __init__(self, netns: Path, device: str, expression: str, pcap: Path, cgroup_procs: list[Path]) -> None:
        self.pcap = pcap
        self._said = pcap.with_suffix(".log")
        tcpdump = [*TCPDUMP, "-i", device, "-w", str(pcap), expression]
        self._argv = joined(cgroup_procs, network.in_netns(netns, tcpdump))

    def __enter__(self) -> Capture:
        with self._said.open("wb") as said:
            self._tcpdump = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        # tcpdump says so once socket and filter are in place
        wait_until(lambda: "listening on" in self._heard(), f"tcpdump to listen:\n{self._heard()}")
        captured, received, _ = self._counts()
        self._unfiltered = received - captured
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._tcpdump.poll() is None:
            wait_until(self._drained, "tcpdump to write down what it received", 60)
            self._tcpdump.send_signal(signal.SIGINT)
        self._tcpdump.wait(10)

    def _heard(self) -> str:
        if self._tcpdump.poll() is not None:
            raise RuntimeError(f"tcpdump ended: {self._said.read_text()}")
        return self._said.read_text()

    def _drained(self) -> bool:
        """Whether all that was received is in the file. What came before the filter was in place counts as received
        and is thrown away, so it is never captured. RuntimeError if anything was lost: what is not in the file may then
        have been there."""
        captured, received, lost = self._counts()
        if lost:
            raise RuntimeError(f"tcpdump had no room for {lost} of {received} packets")
        return captured >= received - self._unfiltered

    def _counts(self) -> tuple[int, int, int]:
        """(captured, received by filter, dropped for want of room), which SIGUSR1 makes tcpdump print."""
        shown = len(self._heard())
        self._tcpdump.send_signal(signal.SIGUSR1)
        said = r"(\d+) packets? captured\D+(\d+) packets? received by filter\D+(\d+) packets? dropped by kernel"
        wait_until(lambda: re.search(said, self._heard()[shown:]) is not None, "tcpdump's counts")
        captured, received, lost = re.findall(said, self._heard())[-1]
        return int(captured), int(received), int(lost)

    def lines(self, *options: str) -> list[str]:
        """One line a packet, as tcpdump prints it; `-e` among the options shows MACs."""
        return run(["tcpdump", "-n", "-tt", *options, "-r", str(self.pcap)]).stdout.splitlines()

    def frames(self) -> list[bytes]:
        """Every frame, whole."""
        return list(_records(self.pcap.read_bytes()))


def _records(data: bytes) -> Iterator[bytes]:
    offset = PCAP_FILE_HEADER
    while offset + PCAP_RECORD_HEADER <= len(data):
        (size,) = struct.unpack_from("<8xI", data, offset)
        offset += PCAP_RECORD_HEADER
        yield data[offset : offset + size]
        offset += size

"""The boards' kernel: a guest that runs what the host's newer kernel cannot prove.

    with tempfile.TemporaryDirectory() as exchange:
        outcome = Guest(Path(exchange)).run({"tests": "python3 -m pytest tests/bpf"})["tests"]

The boards run a kernel of the 6.1 series; its verifier refuses what later ones take. The guest is Debian's 6.1 in QEMU,
for amd64 or for the boards' own architecture (`Guest(exchange, "arm64")`), interpreted (no KVM: slow, yet everywhere
the same), with no device but a console and folders of the host:

* its root is the lab's node image, or for arm64 packages laid out as files (tree.py), read-only, under a tmpfs: gone
  when the power goes off;
* this repository and its virtual environment at their own paths, read-only;
* a folder in which the jobs lie and where their words and exit codes are left.

Nothing of the host's network is in it. `tests/setup.sh kernels` fetches what is needed.
"""

from .guest import REPOSITORY, Guest, GuestFailed, Outcome
from .kernel import Kernel, NotPrepared, find

__all__ = ["REPOSITORY", "Guest", "GuestFailed", "Kernel", "NotPrepared", "Outcome", "find"]

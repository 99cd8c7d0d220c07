"""`python -m lab.supervisor PREFIX NUMBER`: the process that keeps one node powered (node.supervise)."""

from __future__ import annotations

import sys

from .names import Names
from .node import Node, supervise

if __name__ == "__main__":
    supervise(Node(Names(sys.argv[1]), int(sys.argv[2])))

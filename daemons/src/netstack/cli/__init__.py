"""`netstack`: what an operator asks of a node, and what playbooks and modules read with --json."""

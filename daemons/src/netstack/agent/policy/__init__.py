"""Network policy: objects -> rules (accept, cilium, kubernetes) -> entries of the `policy` map (entries)."""

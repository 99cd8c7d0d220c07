"""The kernel's side of the product: bpf(2), the layout of its maps, loading, netlink. Daemons import it, never bcc."""

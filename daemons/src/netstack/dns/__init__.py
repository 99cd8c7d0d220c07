"""netstack-dns: the transparent DNS proxy, and the only writer of which pod learned which name's address."""

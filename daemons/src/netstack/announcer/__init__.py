"""netstack-announcer: who gets which LoadBalancer address, and which node answers for it on the LAN."""

"""netstack-observer: what the programs tell of packets, kept for a while, and named when somebody asks.

* settings.py   /etc/netstack/observer.yaml
* names.py      numbers of events -> pods, nodes, DNS names, policies (pure)
* flows.py      an event with its names; which of them somebody wants to see (pure)
* history.py    the last events, and who waits for the next (pure)
* __main__.py   the wiring: ring -> history -> control socket
"""

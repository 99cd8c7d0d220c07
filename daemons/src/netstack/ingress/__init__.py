"""netstack-ingress: Ingress objects become the state of a running HAProxy, without a reload.

* settings.py      what the operator may set
* routes.py        objects -> routes, backends, certificates and what is wrong with them (pure)
* options.py       ingress-nginx's annotations: served, refused, or closing their paths (pure)
* certificates.py  PEM checked before HAProxy sees it; the self-signed default
* slots.py         backends -> pools of pre-allocated server slots (pure)
* render.py        all of that -> haproxy.cfg, pools.cfg, routes.map, crt-list (pure)
* changes.py       running state -> wanted state as an ordered list of changes (pure)
* haproxy.py       the runtime socket: read, change, read back, reload as the last resort
* publish.py       the EndpointSlice that this node stands for and the status of each Ingress (pure)
* files.py         what HAProxy starts from, written before the process is changed
* report.py        writes what publish says
* controller.py    one turn of the daemon: all of the above in order
* endpoint.py      HAProxy's own network namespace, wired like a pod by the CNI plugin
"""

"""netstack: the network of a bare-metal Kubernetes home cluster.

Every daemon has one shape: a *source* delivers Kubernetes objects, pure functions *compile* them into the
tables that should exist, and *apply* makes reality equal those tables.
"""

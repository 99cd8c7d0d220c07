"""The bench: every figure that netstack claims, from real traffic in namespaces of its own, beside its peers.

    make bench                   every figure; a table, and tests/bench/results.json
    make bench ONLY=lb.tcp_new   those whose names are this or begin with `lb.tcp_new.`; several with commas
    make bench ONLY=list         what there is

How it is kept from flattering:
- What is compared runs interleaved, round by round, in an order that rotates; a ratio is the median of the rounds'
  ratios, because absolute rates of a shared machine drift by a third within minutes and ratios hardly do.
- Every value has the half-width of its 95 % interval, bootstrapped. A ratio counts only if that is at most a third of
  its margin: of its distance from the target, or from 1 where there is none. The table marks those that do not count;
  in results.json they are those with `"counts": false`.
- "direct" is the same topology, made anew, with no program, rule or connection tracking anywhere, and the same client
  asking the same addresses, which its routes then lead straight to the servers.
- results.json holds what was measured and nothing else: each result with the commit and date of its own run. All
  samples are kept in tests/bench/raw/.

Modules: `figures` is the registry, `estimate` the statistics, `results` the file and the table, `rig` the namespaces
with `load.c`, `rulesets` what kube-proxy would load; and one module an area, each with its FIGURES and `measure`.
"""

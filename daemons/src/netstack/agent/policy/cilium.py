"""cilium.io/v2 CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy -> rules (cilium v1.17 pkg/policy/api).

A policy is taken as a whole or refused as a whole, with the field that is the reason: a field that is not enforced is
never accepted and ignored. What a refused policy means is decided in accept.py.

Three details of the API that are easy to get wrong:
* a rule without any peer field means anyone, one with an empty list of peers means nobody, and a rule without peers
  and without ports (`- {}`) allows nothing: it only turns the default deny on;
* a selector in a namespaced policy means pods of that namespace unless it names a namespace itself;
* ranges mean pods or nodes only where the settings say so (identities.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from netstack.agent.identities import CLUSTER, CLUSTER_NAME, NAMESPACE, NAMESPACE_LABELS, WORLDS
from netstack.agent.policy.names import read_name
from netstack.agent.policy.ports import read_icmp, read_port
from netstack.agent.policy.rules import (
    ANY_PROTOCOL,
    Action,
    Block,
    Direction,
    Groups,
    Name,
    Peers,
    Port,
    Rule,
    Services,
    Spec,
)
from netstack.core.protocol import TCP, UDP
from netstack.core.ref import Ref, RuleRef
from netstack.source.fields import Fields
from netstack.source.selectors import LabelSelector, Requirement

ENTITIES = (
    *("all", "world", *WORLDS, "cluster", "host", "remote-node", "kube-apiserver", "init", "ingress"),
    *("health", "unmanaged", "none"),
)
SECTIONS = (
    ("ingress", Direction.INGRESS, Action.ALLOW),
    ("ingressDeny", Direction.INGRESS, Action.DENY),
    ("egress", Direction.EGRESS, Action.ALLOW),
    ("egressDeny", Direction.EGRESS, Action.DENY),
)
PREFIXES = ("k8s:", "any:")
UNSUPPORTED = ("fromNodes", "toNodes", "fromGroups", "toGroups")
"""Fields of the API that are not enforced here."""
MAX_PORTS = 40
"""Per toPorts entry (cilium pkg/policy/api: maxPorts)."""


def read_cilium(ref: Ref, data: Mapping[str, Any], path: str) -> Spec:
    """One spec. BadObject names the field that makes the policy unusable."""
    spec = Fields(ref, data, path)
    nodes = "nodeSelector" in spec
    subject = read_subject(spec)
    spec.raw("description")
    spec.raw("labels")
    sections = {name: list(spec.children(name)) for name, _, _ in SECTIONS}
    wanted = {direction for name, direction, _ in SECTIONS if sections[name]}
    override = spec.child("enableDefaultDeny")
    default_deny = frozenset(
        direction for direction in Direction if override.boolean(direction.name.lower(), direction in wanted)
    )
    override.close()
    spec.close()
    rules: list[Rule] = []
    for name, direction, action in SECTIONS:
        for item in sections[name]:
            rules.extend(_rule(ref, item, direction, action))
            if nodes:
                _check_for_nodes(item, rules)
    return Spec(ref, subject, default_deny, tuple(rules), nodes=nodes)


def read_subject(spec: Fields) -> LabelSelector:
    """endpointSelector, within the policy's namespace; or nodeSelector."""
    if "nodeSelector" in spec:
        if spec.ref.namespace:
            spec.fail("nodeSelector", "only a cluster-wide policy can select nodes")
        if "endpointSelector" in spec:
            spec.fail("nodeSelector", "cannot be combined with endpointSelector")
        if not isinstance(spec.raw("nodeSelector"), Mapping):
            spec.fail("nodeSelector", "must be a mapping")
        return _selector(spec.child("nodeSelector"))
    if not isinstance(spec.raw("endpointSelector"), Mapping):
        spec.fail("endpointSelector", "is required")
    selector = _selector(spec.child("endpointSelector"))
    namespace = spec.ref.namespace
    if not namespace:
        return selector
    for requirement in selector.requirements:
        if requirement.key == NAMESPACE and not requirement.holds({NAMESPACE: namespace}):
            spec.fail("endpointSelector", f"cannot select pods outside the policy's namespace {namespace}")
    return _in_namespace(selector, namespace)


def read_directions(data: Mapping[str, Any]) -> frozenset[Direction]:
    """The directions that a spec, perhaps a broken one, has rules for; both if none can be told."""
    named = frozenset(direction for name, direction, _ in SECTIONS if data.get(name))
    return named or frozenset(Direction)


def _check_for_nodes(item: Fields, rules: list[Rule]) -> None:
    """What rules for pods can say and rules for nodes cannot."""
    if any(rule.action is Action.REDIRECT_DNS for rule in rules):
        item.fail("toPorts", "rules.dns is not enforced for nodes")
    if any(rule.peers and rule.peers.names for rule in rules):
        item.fail("toFQDNs", "names are not enforced for nodes")
    if any(rule.direction is Direction.INGRESS and port.name for rule in rules for port in rule.ports):
        item.fail("toPorts", "a node has no ports with names")


def _rule(ref: Ref, fields: Fields, direction: Direction, action: Action) -> Iterator[Rule]:
    prefix = "from" if direction is Direction.INGRESS else "to"
    for name in UNSUPPORTED:
        if name in fields:
            fields.fail(name, "is not supported, so the whole policy is refused")
    if "authentication" in fields:
        authentication = fields.child("authentication")
        if authentication.string("mode") != "disabled":
            authentication.fail("mode", "only disabled is supported, so the whole policy is refused")
        authentication.close()
    if f"{prefix}Requires" in fields:
        lacking = _endpoints(fields, f"{prefix}Requires").selectors
        place = RuleRef(ref, fields.at(f"{prefix}Requires"))
        yield Rule(place, direction, Action.DENY, _or_unknown(Peers(lacking=lacking)))
    peers = _peers(fields, prefix, direction, action)
    if peers is not None and action is Action.DENY:
        peers = _or_unknown(peers)
    groups = list(fields.children("toPorts"))
    ports = [port for group in groups if not _filters(group) for port in _ports(group)]
    icmps = list(fields.children("icmps"))
    if icmps:
        if groups:
            fields.fail("icmps", "cannot be combined with toPorts in one rule")
        items = [item for group in icmps for item in _icmp_fields(group)]
        ports = [port for item in items if (port := read_icmp(item, denies=action is Action.DENY))]
    filtered = [group for group in groups if _filters(group)]
    for group in filtered:
        if direction is not Direction.EGRESS or action is not Action.ALLOW:
            group.fail("rules", "only rules of egress that allow can name what may be asked")
        if peers is not None and peers.names:
            group.fail("rules", "cannot be combined with toFQDNs in one rule")
        asked = tuple(_questions(group))
        servers = tuple(_server_ports(group))
        yield Rule(RuleRef(ref, group.path), direction, Action.REDIRECT_DNS, peers, servers, asked)
    fields.close()
    if ports or (peers is not None and not groups and not icmps):
        yield Rule(RuleRef(ref, fields.path), direction, action, peers, tuple(ports))


def _peers(fields: Fields, prefix: str, direction: Direction, action: Action) -> Peers | None:
    """The rule's peers; None if it has no peer field at all."""
    readers = {f"{prefix}Endpoints": _endpoints, f"{prefix}Entities": _entities, f"{prefix}CIDR": _cidrs}
    readers[f"{prefix}CIDRSet"] = _cidr_sets
    if direction is Direction.EGRESS:
        readers["toServices"] = _services
    if direction is Direction.EGRESS and action is Action.ALLOW:
        readers["toFQDNs"] = _names
    given = {name: readers[name](fields, name) for name in readers if name in fields}
    some = [name for name in given if fields.data[name]]  # charts write empty lists, which add nobody
    if len(some) > 1:
        fields.fail(some[1], f"cannot be combined with {some[0]} in one rule")
    return next((given[name] for name in (*some, *given)), None)


def _or_unknown(denied: Peers) -> Peers:
    """Who denies pods denies who has a pod's address and is not known: a pod sends its first packets before all nodes
    have its object, and what else would let it through (the entity `cluster`, a rule without peers) does not ask."""
    if not (denied.selectors or denied.lacking or denied.services):
        return denied
    return replace(denied, entities=denied.entities | {"unmanaged"})


def _endpoints(fields: Fields, name: str) -> Peers:
    selectors = []
    for item in fields.children(name):
        selector = _selector(item)
        own_namespace = not any(
            requirement.key == NAMESPACE or requirement.key.startswith(NAMESPACE_LABELS)
            for requirement in selector.requirements
        )
        if own_namespace and fields.ref.namespace:
            selector = _in_namespace(selector, fields.ref.namespace)
        elif own_namespace:  # cluster-wide: any pod, but nothing that is not a pod
            selector = LabelSelector((*selector.requirements, Requirement(NAMESPACE, "Exists")))
        selectors.append(selector)
    return Peers(selectors=tuple(selectors))


def _entities(fields: Fields, name: str) -> Peers:
    entities = fields.strings(name)
    for index, entity in enumerate(entities):
        if entity not in ENTITIES:
            fields.fail(f"{name}[{index}]", f"must be one of {', '.join(ENTITIES)}, not {entity!r}")
    return Peers(entities=frozenset(entities))


def _cidrs(fields: Fields, name: str) -> Peers:
    return Peers(blocks=tuple(map(Block, fields.prefixes(name))))


def _cidr_sets(fields: Fields, name: str) -> Peers:
    blocks, groups = [], []
    for item in fields.children(name):
        given = [kind for kind in ("cidr", "cidrGroupRef", "cidrGroupSelector") if kind in item]
        if len(given) != 1:
            item.fail("cidr", "exactly one of cidr, cidrGroupRef and cidrGroupSelector must be given")
        if given == ["cidr"]:
            blocks.append(read_block(item))
            continue
        excluded = item.prefixes("except")
        if given == ["cidrGroupRef"]:
            groups.append(Groups(name=_object(item, "cidrGroupRef"), excluded=excluded))
        else:
            groups.append(Groups(labels=LabelSelector.parse(item.child("cidrGroupSelector")), excluded=excluded))
        item.close()
    return Peers(blocks=tuple(blocks), groups=tuple(groups))


def read_block(fields: Fields) -> Block:
    """`{cidr, except}`; each exception must lie inside the range."""
    prefix, excluded = fields.prefix("cidr"), fields.prefixes("except")
    for index, hole in enumerate(excluded):
        if not prefix.covers(hole):
            fields.fail(f"except[{index}]", f"{hole} is not inside {prefix}")
    fields.close()
    return Block(prefix, excluded)


def _services(fields: Fields, name: str) -> Peers:
    """toServices: `k8sService` names one, `k8sServiceSelector` has labels; in the namespace they name, else in ours."""
    services = []
    for item in fields.children(name):
        given = [kind for kind in ("k8sService", "k8sServiceSelector") if kind in item]
        if len(given) != 1:
            item.fail("k8sService", "exactly one of k8sService and k8sServiceSelector must be given")
        wanted = item.child(given[0])
        namespace = wanted.string("namespace", "") or fields.ref.namespace
        if given == ["k8sService"]:
            if not namespace:
                wanted.fail("namespace", "is required in a cluster-wide policy")
            services.append(Services(namespace, name=_object(wanted, "serviceName")))
        elif "selector" not in wanted:
            wanted.fail("selector", "is required")
        else:
            services.append(Services(namespace, labels=LabelSelector.parse(wanted.child("selector"))))
        wanted.close()
        item.close()
    return Peers(services=tuple(services))


def _object(fields: Fields, name: str) -> str:
    """The name of an object. Without one, as a chart writes it that lacks a value, all would be meant."""
    found = fields.string(name)
    if not found:
        fields.fail(name, "must not be empty")
    return found


def _icmp_fields(group: Fields) -> Iterator[Fields]:
    items = list(group.children("fields"))
    if not items:
        group.fail("fields", "is required and must not be empty")
    yield from items
    group.close()


def _names(fields: Fields, name: str) -> Peers:
    return Peers(names=tuple(read_name(item) for item in fields.children(name)))


def _filters(group: Fields) -> bool:
    """`rules: {}` holds none (cilium pkg/policy/api/l7.go, IsEmpty)."""
    return "rules" in group and group.data["rules"] != {}


def _ports(group: Fields) -> Iterator[Port]:
    """The ports of one toPorts entry without `rules`."""
    count = 0
    for item in group.children("ports"):
        yield read_port(item, "ANY", zero=True)
        count += 1
    if not count:
        group.fail("ports", "is required and must not be empty")
    if count > MAX_PORTS:
        group.fail("ports", f"has {count} entries, more than {MAX_PORTS}")
    for name in group.data:
        if name not in ("ports", "rules"):
            group.fail(str(name), "is not supported, so the whole policy is refused")


def _server_ports(group: Fields) -> Iterator[Port]:
    """The ports at which DNS is asked: each of its own, over UDP, TCP or both."""
    for port in _ports(group):
        if port.protocol not in (ANY_PROTOCOL, UDP, TCP) or port.first != port.last or not (port.first or port.name):
            group.fail("ports", "with rules.dns each must be one port of UDP, TCP or ANY, such as 53")
        for protocol in (UDP, TCP):
            if port.protocol in (ANY_PROTOCOL, protocol):
                yield replace(port, protocol=protocol)


def _questions(group: Fields) -> Iterator[Name]:
    """rules.dns. Every other kind of rule is refused."""
    rules = group.child("rules")
    for name in rules.data:
        if name != "dns":
            rules.fail(str(name), "is not supported, so the whole policy is refused")
    items = list(rules.children("dns"))
    if not items:
        rules.fail("dns", "must not be empty")
    yield from (read_name(item) for item in items)
    rules.close()


def _selector(fields: Fields) -> LabelSelector:
    """A selector whose keys have lost their source (`k8s:`, `any:`); other sources are refused."""
    requirements = []
    for requirement in LabelSelector.parse(fields).requirements:
        key = requirement.key
        for source in PREFIXES:
            key = key.removeprefix(source)
        if ":" in key:
            fields.fail("matchLabels", f"label source of {key!r} is not supported; entities have fields of their own")
        bare = replace(requirement, key=key)
        if key == CLUSTER and not bare.holds({CLUSTER: CLUSTER_NAME}):  # it would select nobody, and pass for enforced
            fields.fail(key, f"must mean {CLUSTER_NAME!r}, the cluster of all pods here")
        requirements.append(bare)
    return LabelSelector(tuple(sorted(requirements)))


def _in_namespace(selector: LabelSelector, namespace: str) -> LabelSelector:
    return LabelSelector((*selector.requirements, Requirement(NAMESPACE, "In", (namespace,))))

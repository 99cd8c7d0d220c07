"""No object stops the agent, whatever its author wrote wherever: it is read, or refused with its name and field."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from instruments.cluster import Cluster
from netstack.agent.desired import Before, compile_all
from netstack.core.errors import BadObject
from netstack.source.parse import parse, reference
from netstack.source.snapshot import Broken, Snapshot

OBJECTS = list(
    yaml.safe_load_all("""
apiVersion: v1
kind: Namespace
metadata: {name: one, labels: {a: b}}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: one, labels: {app: other}}
spec:
  nodeName: n2
  serviceAccountName: robot
  containers: [{name: main, ports: [{name: web, containerPort: 80, protocol: TCP}]}]
status: {phase: Running, podIPs: [{ip: 10.244.2.9}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: one}
spec:
  clusterIP: 10.96.0.9
  externalIPs: [192.0.2.9]
  externalTrafficPolicy: Local
  selector: {app: other}
  ports: [{name: web, port: 80, targetPort: web, nodePort: 30080, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: one, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: web, port: 80, protocol: TCP}]
endpoints: [{addresses: [10.244.2.9], nodeName: n2, conditions: {ready: true, terminating: false}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: kubernetes, namespace: one}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [a]}]}
  policyTypes: [Ingress, Egress]
  egress: [{ports: [{port: web, protocol: TCP}]}]
  ingress:
    - from:
        - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
        - {namespaceSelector: {matchLabels: {a: b}}, podSelector: {}}
      ports: [{port: web, protocol: TCP}, {port: 80, endPort: 90}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: cilium, namespace: one, annotations: {netstack.kubelab.io/audit: "false"}}
specs:
  - endpointSelector: {matchLabels: {app: a}}
    enableDefaultDeny: {egress: false}
    ingress:
      - fromEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": one}}]
        fromRequires: [{matchLabels: {app: other}}]
      - fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}, {cidrGroupRef: group}]
        icmps: [{fields: [{type: 8, family: IPv4}]}]
    egressDeny: [{toServices: [{k8sService: {serviceName: web, namespace: one}}]}]
    egress:
      - toFQDNs: [{matchName: a.example}, {matchPattern: "*.b.example"}]
      - toPorts: [{ports: [{port: "53", protocol: ANY, endPort: 60}], rules: {dns: [{matchPattern: "*"}]}}]
      - toEntities: [world, kube-apiserver]
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: nodes}
spec: {nodeSelector: {matchLabels: {a: b}}, ingress: [{fromEntities: [cluster], toPorts: [{ports: [{port: "22"}]}]}]}
---
apiVersion: cilium.io/v2alpha1
kind: CiliumCIDRGroup
metadata: {name: group}
spec: {externalCIDRs: [192.0.2.0/24]}
""")
)
VALUES = (
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    "",
    "x",
    "\U0001f600",
    300 * "a",
    "0.0.0.0/0",
    "1.2.3.4/33",
    [],
    [None],
    [[]],
    [{}],
)
VALUES += (["x", "x"], [1], {}, {"": ""}, {1: 2}, {"a": None}, {"a": {"b": [{}]}})
Place = tuple[str | int, ...]


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    yield place
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*place, key))


NAMES = ((), ("apiVersion",), ("kind",), ("metadata",), ("metadata", "name"), ("metadata", "namespace"))


def changed(document: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(document)
    part: Any = made
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    return made


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    made = Cluster()
    made.pod("one/a", {"app": "a"})
    made.put(*OBJECTS)
    return made


@pytest.mark.parametrize("document", OBJECTS, ids=lambda document: document["kind"])
def test_no_value_anywhere_in_an_object_stops_the_compile(cluster: Cluster, document: dict[str, Any]) -> None:
    ref, endpoints, read = reference(document), tuple(cluster.endpoints.values()), 0
    for place, value in itertools.product((found for found in places(document) if found not in NAMES), VALUES):
        objects, broken = dict(cluster.objects), list[Broken]()
        try:
            model = parse(changed(document, place, value))
        except BadObject as error:
            del objects[ref]
            broken.append(Broken("test.yaml", error, kept=False))
        else:
            assert model is not None
            objects[ref] = model
            read += 1
        try:
            compile_all(Snapshot(objects, tuple(broken)), endpoints, cluster.place, Before(), cluster.sizes).dns_rules()
        except Exception as error:
            raise AssertionError(f"{place} = {value!r}") from error
    assert read, "nothing is shown if all are refused where they are read"

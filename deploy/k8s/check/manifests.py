"""Rendered manifests as objects: workloads, the containers' environment, and who may talk to whom."""

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import yaml

WORKLOADS = ("Deployment", "StatefulSet")
# Ports of CloudNativePG's pods, which its operator makes: PostgreSQL and the instance manager.
CNPG_PORTS = {"postgres": 5432, "status": 8000}


@dataclass
class Pods:
    """The pods of a workload."""

    kind: str
    name: str
    labels: dict
    spec: dict = field(default_factory=dict)
    # By name. Several containers of a pod have no port in common.
    ports: dict = field(default_factory=dict)

    def containers(self):
        return self.spec.get("initContainers", []) + self.spec.get("containers", [])

    def service(self):
        """The container that serves, when it is one of ours."""
        return next((c for c in self.spec.get("containers", []) if c["name"] == "service"), None)


class Manifests:
    """Everything that one overlay renders to."""

    def __init__(self, text):
        self.objects = [document for document in yaml.safe_load_all(text) if document]
        self.pods = [self._workload(o) for o in self.objects if o["kind"] in WORKLOADS]
        for cluster in self.of_kind("Cluster"):
            name = cluster["metadata"]["name"]
            self.pods.append(Pods("Cluster", name, {"cnpg.io/cluster": name}, ports=CNPG_PORTS))
        self.policies = [o["spec"] for o in self.of_kind("NetworkPolicy")]

    @staticmethod
    def _workload(workload):
        template = workload["spec"]["template"]
        spec = template["spec"]
        ports = {p["name"]: p["containerPort"] for c in spec["containers"] for p in c.get("ports", [])}
        return Pods(workload["kind"], workload["metadata"]["name"], template["metadata"]["labels"], spec, ports)

    def of_kind(self, kind):
        return [o for o in self.objects if o["kind"] == kind]

    def find(self, kind, name):
        return next((o for o in self.of_kind(kind) if o["metadata"]["name"] == name), None)

    def matching(self, selector):
        return [pods for pods in self.pods if matches(selector, pods.labels)]

    def behind(self, host):
        """The pods behind a Service, by its name; None when there is no such Service."""
        name = host.split(".")[0]
        # The operator makes the Services of its clusters: NAME-rw, NAME-ro and NAME-r.
        cluster = re.fullmatch(r"(.+)-(rw|ro|r)", name)
        if cluster and self.find("Cluster", cluster[1]):
            return self.matching({"matchLabels": {"cnpg.io/cluster": cluster[1]}})
        service = self.find("Service", name)
        return service and self.matching({"matchLabels": service["spec"]["selector"]})

    def environment(self, container):
        """Name and value of each variable, as kubelet makes them; None for a value that is in no manifest."""
        values = {}
        for source in container.get("envFrom", []):
            found = self.find("ConfigMap", source["configMapRef"]["name"])
            values.update(found["data"] if found else {})
        before = {}
        for variable in container.get("env", []):
            value = variable.get("value")
            if value is not None:
                value = re.sub(r"\$\((\w+)\)", lambda m: str(before.get(m[1], m[0])), value)
            elif reference := variable.get("valueFrom", {}).get("configMapKeyRef"):
                found = self.find("ConfigMap", reference["name"])
                value = found and found["data"].get(reference["key"])
            before[variable["name"]] = value
        return values | before

    def may_talk(self, source, target, port):
        """Whether policies let the pods `source` open a connection to a port of `target`."""
        out = self._allowed("Egress", source, lambda rule: self._covers(rule, "to", target, port))
        into = self._allowed("Ingress", target, lambda rule: self._covers(rule, "from", source, port))
        return out and into

    def may_leave(self, source, host, port):
        """Whether policies let the pods `source` reach a host that is none of our Services."""
        parts = host.split(".")
        namespace = {"kubernetes.io/metadata.name": parts[1] if len(parts) == 2 or "svc" in parts[2:3] else None}

        def covers(rule):
            if not _covers_port(rule, port):
                return False
            for peer in rule.get("to", [{}]):
                if "ipBlock" in peer and namespace["kubernetes.io/metadata.name"] is None:
                    return ipaddress.ip_network(peer["ipBlock"]["cidr"]).prefixlen == 0
                if "namespaceSelector" in peer and matches(peer["namespaceSelector"], namespace):
                    return True
            return False

        return self._allowed("Egress", source, covers)

    def _allowed(self, direction, pods, covers):
        chosen = [p for p in self.policies if direction in p["policyTypes"] and matches(p["podSelector"], pods.labels)]
        rules = [rule for policy in chosen for rule in policy.get(direction.lower(), [])]
        return not chosen or any(covers(rule) for rule in rules)

    @staticmethod
    def _covers(rule, peers, other, port):
        if not _covers_port(rule, port):
            return False
        # Without peers: everybody. Pods have private addresses, which our blocks of addresses leave out.
        return not rule.get(peers) or any(
            "podSelector" in peer and "namespaceSelector" not in peer and matches(peer["podSelector"], other.labels)
            for peer in rule[peers]
        )


def _covers_port(rule, port):
    return not rule.get("ports") or any(p["port"] == port for p in rule["ports"])


def matches(selector, labels):
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", expression
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


def endpoint(url):
    """Host and port of an address."""
    parts = urlsplit(url)
    return parts.hostname, parts.port or {"https": 443, "http": 80, "postgres": 5432, "nats": 4222}[parts.scheme]

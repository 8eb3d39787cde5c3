"""What no schema finds and an API server or an outage would. Each rule yields what is wrong."""

import re
from urllib.parse import urlsplit

from manifests import WORKLOADS, endpoint, matches

# Connections of a replica: DATABASE_POOL_SIZE (shared/bootstrap) and one that holds the relay's lock.
CONNECTIONS = 8 + 1
# Left for an operator and for superuser_reserved_connections.
RESERVE = 8
# Variables that libraries read, and those that only other variables are made of.
OF_LIBRARIES = re.compile(r"OTEL_|PGSSL|TOKIO_WORKER_THREADS|RUST_LOG|POD_|NODE_NAME|DATABASE_(HOST|PASSWORD)")


def restricted(m, _):
    """Every container meets the Pod Security Standard `restricted`, and writes to no file of its image."""
    for pods in m.pods:
        context = pods.spec.get("securityContext", {})
        if pods.spec and not (context.get("runAsNonRoot") and context["seccompProfile"]["type"] == "RuntimeDefault"):
            yield f"{pods.name}: runs as root, or without the seccomp profile of the runtime"
        for container in pods.containers():
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{pods.name}/{container['name']}: has privileges"
            if not own.get("readOnlyRootFilesystem"):
                yield f"{pods.name}/{container['name']}: may write to its image"


def complete(m, _):
    """Every pod has probes, requests and a limit of memory, no token and no service links."""
    for pods in m.pods:
        if not pods.spec:
            continue
        if pods.spec.get("automountServiceAccountToken") is not False or pods.spec.get("enableServiceLinks") is not False:
            yield f"{pods.name}: has a token of the API server, or service links"
        account = pods.spec.get("serviceAccountName")
        if not m.find("ServiceAccount", account):
            yield f"{pods.name}: there is no ServiceAccount {account}"
        for container in pods.containers():
            resources = container.get("resources", {})
            if not {"cpu", "memory"} <= resources.get("requests", {}).keys() or "memory" not in resources.get("limits", {}):
                yield f"{pods.name}/{container['name']}: has no requests, or no limit of memory"
        for container in pods.spec["containers"]:
            for probe in ("livenessProbe", "readinessProbe"):
                if probe not in container:
                    yield f"{pods.name}: has no {probe}"


def selectors(m, _):
    """Every selector matches something."""
    for workload in (o for o in m.objects if o["kind"] in WORKLOADS):
        if not matches(workload["spec"]["selector"], workload["spec"]["template"]["metadata"]["labels"]):
            yield f"{workload['kind']} {workload['metadata']['name']}: does not match its own pods"
    for o in m.of_kind("Service"):
        if not m.matching({"matchLabels": o["spec"]["selector"]}):
            yield f"Service {o['metadata']['name']}: matches no pod"
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        for o in m.of_kind(kind):
            if not m.matching(o["spec"]["selector"]):
                yield f"{kind} {o['metadata']['name']}: matches no pod"
    for o in m.of_kind("NetworkPolicy"):
        spec = o["spec"]
        rules = [("to", rule) for rule in spec.get("egress", [])] + [("from", rule) for rule in spec.get("ingress", [])]
        inside = [p["podSelector"] for peers, rule in rules for p in rule.get(peers, [])
                  if "podSelector" in p and "namespaceSelector" not in p]
        for selector in [spec["podSelector"], *inside]:
            if not m.matching(selector):
                yield f"NetworkPolicy {o['metadata']['name']}: {selector} matches no pod"
    for pods in m.pods:
        for constraint in pods.spec.get("topologySpreadConstraints", []):
            selector = constraint.get("labelSelector")
            if not selector or not matches(selector, pods.labels):
                yield f"{pods.name}: a topologySpreadConstraint has no labelSelector, or does not match its own pods"


def ports(m, _):
    """Every port that is named exists."""
    for service in m.of_kind("Service"):
        for pods in m.matching({"matchLabels": service["spec"]["selector"]}):
            for port in service["spec"]["ports"]:
                number = pods.ports.get(port["targetPort"])
                if number is None:
                    yield f"Service {service['metadata']['name']}: {pods.name} has no port {port['targetPort']}"
                elif service["spec"].get("clusterIP") == "None" and number != port["port"]:
                    yield f"Service {service['metadata']['name']}: is headless and cannot translate {port['port']} to {number}"
    for pods in m.pods:
        for container in pods.spec.get("containers", []):
            for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
                action = container.get(probe, {})
                port = (action.get("httpGet") or action.get("tcpSocket") or {}).get("port")
                if port and port not in pods.ports:
                    yield f"{pods.name}: {probe} asks the port {port}, which there is not"
    for monitor in m.of_kind("PodMonitor"):
        for pods in m.matching(monitor["spec"]["selector"]):
            for target in monitor["spec"]["podMetricsEndpoints"]:
                if target["port"] not in pods.ports:
                    yield f"PodMonitor: {pods.name} has no port {target['port']}"
    for name, port in _backends(m):
        service = m.find("Service", name)
        if not service or not any(port in (p["port"], p["name"]) for p in service["spec"]["ports"]):
            yield f"a route leads to the port {port} of the Service {name}, which there is not"


def _backends(m):
    for route in m.of_kind("HTTPRoute"):
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                yield backend["name"], backend["port"]
    for ingress in m.of_kind("Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                yield service["name"], service["port"].get("name") or service["port"].get("number")


def scaling(m, _):
    """Every autoscaler has a target of its own that does not set `replicas`, and the database has enough connections."""
    found = {}
    for kind, most in (("HorizontalPodAutoscaler", "maxReplicas"), ("ScaledObject", "maxReplicaCount")):
        for scaler in m.of_kind(kind):
            target = scaler["spec"]["scaleTargetRef"]["name"]
            deployment = m.find("Deployment", target)
            if not deployment:
                yield f"{kind} {scaler['metadata']['name']}: there is no Deployment {target}"
            elif "replicas" in deployment["spec"]:
                yield f"Deployment {target}: sets replicas, which every apply would reset"
            if target in found:
                yield f"Deployment {target}: has two autoscalers"
            found[target] = scaler["spec"][most]
    clients = [p for p in m.pods if p.service() and "DATABASE_URL" in m.environment(p.service())]
    # A rollout adds one replica of a service.
    needed = sum((found.get(p.name, 1) + 1) * CONNECTIONS for p in clients) + RESERVE
    available = _max_connections(m)
    if needed > available:
        yield f"{needed} connections at the largest scale, and max_connections is {available}"


def _max_connections(m):
    for cluster in m.of_kind("Cluster"):
        return int(cluster["spec"]["postgresql"]["parameters"]["max_connections"])
    arguments = m.find("StatefulSet", "postgres")["spec"]["template"]["spec"]["containers"][0]["args"]
    return int(next(a for a in arguments if a.startswith("--max_connections=")).split("=")[1])


def references(m, context):
    """Every reference to a ConfigMap or a Secret resolves, or the README says who makes it."""
    for pods in m.pods:
        needed = set()
        for container in pods.containers():
            before = set()
            for source in container.get("envFrom", []):
                needed.add(("ConfigMap", source["configMapRef"]["name"], None))
            for variable in container.get("env", []):
                source = variable.get("valueFrom", {})
                for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
                    if key in source:
                        needed.add((kind, source[key]["name"], source[key]["key"]))
                for name in re.findall(r"\$\((\w+)\)", variable.get("value", "")):
                    if name not in before:
                        yield f"{pods.name}: {variable['name']} is made of {name}, which is not set before it"
                before.add(variable["name"])
            volumes = {volume["name"] for volume in pods.spec.get("volumes", [])} | _claims(m, pods)
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{pods.name}: mounts the volume {mount['name']}, which there is not"
        for volume in pods.spec.get("volumes", []):
            if "configMap" in volume:
                needed.add(("ConfigMap", volume["configMap"]["name"], None))
            if "secret" in volume:
                keys = [item["key"] for item in volume["secret"].get("items", [])] or [None]
                needed.update(("Secret", volume["secret"]["secretName"], key) for key in keys)
        certificates = {c["spec"]["secretName"] for c in m.of_kind("Certificate")}
        for kind, name, key in sorted(needed, key=str):
            if kind == "Secret" and name in certificates:
                continue
            found = m.find(kind, name)
            keys = (found.get("data", {}) | found.get("stringData", {})) if found else {}
            documented = kind == "Secret" and f"`{name}`" in context.readme and f"`{key}`" in context.readme
            if not documented and (not found or key and key not in keys):
                yield f"{pods.name}: needs {key or 'something'} of the {kind} {name}, which there is not"


def _claims(m, pods):
    workload = m.find(pods.kind, pods.name)
    return {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}


def call_graph(m, _):
    """Who may talk to whom is what the settings of the services lead to, and nothing else."""
    # Servers of a cluster of PostgreSQL or NATS talk to each other.
    wanted = {(pods.name, pods.name, port) for pods in m.pods for name, port in pods.ports.items()
              if pods.kind == "Cluster" or name == "cluster"}
    for pods in m.pods:
        for container in pods.containers():
            for name, value in m.environment(container).items():
                if not value or "://" not in value:
                    continue
                host, port = endpoint(re.sub(r"\$\(\w+\)", "secret", value))
                targets = m.behind(host)
                if targets is None:
                    if not m.may_leave(pods, host, port):
                        yield f"{pods.name}: {name} leads to {host}:{port}, and no policy lets it out"
                    continue
                wanted.update((pods.name, target.name, port) for target in targets)
    for source in m.pods:
        if not m.may_leave(source, "kube-dns.kube-system", 53):
            yield f"{source.name}: may not ask DNS"
        for target in m.pods:
            for port in sorted(set(target.ports.values())):
                edge = (source.name, target.name, port)
                may = m.may_talk(source, target, port)
                if may and edge not in wanted:
                    yield f"{source.name} may talk to {target.name}:{port}, and has no reason to"
                if edge in wanted and not may:
                    yield f"{source.name} may not talk to {target.name}:{port}, and its settings say that it does"


def owners(m, _):
    """The owner of a service's tables migrates and grants; the service has another role, and checks."""
    for pods in m.pods:
        service = pods.service()
        if not service or "DATABASE_URL" not in m.environment(service):
            continue
        for container in pods.containers():
            values = m.environment(container)
            is_task = container.get("args") == ["migrate"]
            role = f"{pods.name}_owner" if is_task else pods.name
            secrets = [v["valueFrom"]["secretKeyRef"]["name"] for v in container["env"] if "secretKeyRef" in v.get("valueFrom", {})]
            name = f"{pods.name}/{container['name']}"
            if urlsplit(re.sub(r"\$\(\w+\)", "secret", values["DATABASE_URL"])).username != role:
                yield f"{name}: enters its database as another role than {role}"
            if ["-database-owner" in s for s in secrets if s.startswith(f"{pods.name}-database")] != [is_task]:
                yield f"{name}: has another password than that of {role}"
            if is_task and values.get("DATABASE_ROLE") != pods.name:
                yield f"{name}: grants its rights to another role than {pods.name}"
            if not is_task and values.get("MIGRATIONS") != "check":
                yield f"{name}: migrates, and does not own its tables"


def ends(m, context):
    """Every pod has the time to end: preStop, the lag, and then what the process takes."""
    for pods in m.pods:
        container = pods.service()
        if not container:
            continue
        pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        lag = int(m.environment(container).get("SHUTDOWN_LAG_SECONDS") or 0)
        needed = pause + lag + context.grace
        if not pause:
            yield f"{pods.name}: gets SIGTERM while it is still called (no preStop)"
        if pods.kind == "Deployment" and pods.spec["terminationGracePeriodSeconds"] < needed:
            yield f"{pods.name}: ends after {needed} s, and is killed after {pods.spec['terminationGracePeriodSeconds']}"


def settings(m, context):
    """Every variable is a setting of the program that gets it."""
    for pods in m.pods:
        known = context.settings(pods.name)
        if not pods.service() or known is None:
            continue
        for container in pods.containers():
            for name in m.environment(container):
                if name not in known and not OF_LIBRARIES.match(name):
                    yield f"{pods.name}: {name} is no setting of it (see {pods.name} --help)"


def images(m, _):
    """In production, our images are named by digest."""
    environment = next((o["data"]["environment"] for o in m.of_kind("ConfigMap") if "environment" in o["data"]), None)
    for pods in m.pods:
        for container in pods.containers():
            if environment == "production" and "sagacity/" in container["image"] and "@sha256:" not in container["image"]:
                yield f"{pods.name}: {container['image']} is not named by digest"


def like_compose(m, context):
    """For development: the same images, addresses and arguments as docker-compose.yml."""
    services = {name: s for name, s in context.compose["services"].items() if "profiles" not in s}
    for name, service in services.items():
        # `order-migrate` is an init container of `order`.
        pods = next((p for p in m.pods if p.name == name.removesuffix("-migrate")), None)
        if not pods:
            yield f"{name}: is in docker-compose.yml only"
            continue
        containers = pods.spec["initContainers" if name.endswith("-migrate") else "containers"]
        container = containers[0]
        if container["image"] != service["image"]:
            yield f"{name}: the image is {container['image']}, and {service['image']} in docker-compose.yml"
        if name == "postgres" and container["args"] != service["command"]:
            yield f"{name}: the arguments are not those of docker-compose.yml: {service['command']}"
        here = {k: endpoint(v.replace("$(DATABASE_PASSWORD)", "x")) for k, v in m.environment(container).items()
                if k.endswith("_URL")}
        there = {k: endpoint(v) for k, v in context.compose_environment(name).items() if k.endswith("_URL") and v}
        if here != there:
            yield f"{name}: addresses are {here}, and {there} in docker-compose.yml"


RULES = [restricted, complete, selectors, ports, scaling, references, call_graph, owners, ends, settings, images]

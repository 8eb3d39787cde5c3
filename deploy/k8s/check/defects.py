"""Deliberate defects: each must be found by the rule that it names."""

from dataclasses import dataclass


@dataclass
class Defect:
    name: str
    rule: str
    # The first match in what the overlay renders to is replaced.
    pattern: str
    replacement: str
    overlay: str = "overlays/dev"


DEFECTS = [
    Defect("a container may escalate", "restricted", r"allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"),
    Defect("a container runs as root", "restricted", r"runAsNonRoot: true", "runAsNonRoot: false"),
    Defect("no limit of memory", "complete", r"limits:\n +ephemeral-storage: 128Mi\n +memory: 64Mi", "limits: {}"),
    Defect("a token is mounted", "complete", r"(spec:\n +)automountServiceAccountToken: false", r"\1automountServiceAccountToken: true"),
    Defect("a Service matches nothing", "selectors", r"(selector:\n +app.kubernetes.io/name: )order\n", r"\1orders\n"),
    Defect("a budget matches nothing", "selectors", r"(kind: PodDisruptionBudget.*?app.kubernetes.io/name: )gateway", r"\1gate"),
    Defect("a policy matches nothing", "selectors", r"(kind: NetworkPolicy.*?app.kubernetes.io/name: )gateway", r"\1gate"),
    Defect("matchLabelKeys without a selector", "selectors", r"- labelSelector:\n +matchLabels:\n +app.kubernetes.io/part-of: sagacity\n +matchLabelKeys", "- matchLabelKeys"),
    Defect("a probe asks a port that is not there", "ports", r"port: admin", "port: health"),
    Defect("a headless Service translates", "ports", r"(name: grpc\n +port: )8080", r"\g<1>80"),
    Defect("a route leads nowhere", "ports", r"(name: gateway\n +port: )8080", r"\g<1>80", "overlays/production"),
    Defect("an autoscaler without a target", "scaling", r"(kind: Deployment\n +name: )order\n", r"\1orders\n"),
    Defect("more replicas than connections", "scaling", r"maxReplicaCount: 6", "maxReplicaCount: 20", "overlays/production"),
    Defect("two autoscalers", "scaling", r"(scaleTargetRef:\n +name: )payment", r"\1order", "overlays/production"),
    Defect("a Secret without its key", "references", r"key: api-key", "key: key", "overlays/production"),
    Defect("a certificate that is not issued", "references", r"(secretName: )gateway-tls\n  usages", r"\1gate-tls\n  usages", "overlays/production"),
    Defect("a variable before what it is made of", "references", r"\$\(DATABASE_HOST\)", "$(DATABASE_ADDRESS)"),
    Defect("a ConfigMap that is not there", "references", r"configMapRef:\n +name: order-\w+", "configMapRef: {name: order-0}"),
    Defect("a policy too wide", "call_graph", r"(name: order\n  namespace: sagacity\nspec:\n  egress:\n.*?app.kubernetes.io/name: )inventory", r"\1payment"),
    Defect("a policy with the wrong port", "call_graph", r"port: 4222\n +protocol: TCP", "port: 4223\n      protocol: TCP"),
    Defect("no way out to the provider", "call_graph", r"cidr: 0.0.0.0/0", "cidr: 8.0.0.0/8", "overlays/production"),
    Defect("no DNS", "call_graph", r"port: 53\n(.*?)port: 53\n", r"port: 54\n\1port: 54\n"),
    Defect("a service that owns its tables", "owners", r"postgres://order:", "postgres://order_owner:"),
    Defect("a service with the owner's password", "owners", r"(secretKeyRef:\n +key: password\n +name: order-database)\n", r"\1-owner\n", "overlays/production"),
    Defect("rights of a service that nobody grants", "owners", r"name: DATABASE_ROLE\n +value: order\n", "name: DATABASE_ROLE\n          value: payment\n"),
    Defect("a service that migrates", "owners", r"name: MIGRATIONS\n +value: check", "name: MIGRATIONS\n          value: apply"),
    Defect("too little time to end", "ends", r"terminationGracePeriodSeconds: 35", "terminationGracePeriodSeconds: 25"),
    Defect("no preStop", "ends", r"lifecycle:\n +preStop:\n +sleep:\n +seconds: 10", "lifecycle: {}"),
    Defect("an image by tag", "images", r"@sha256:\w+", ":latest", "overlays/production"),
    Defect("another server than Compose", "like_compose", r"image: postgres:18", "image: postgres:17"),
    Defect("another address than Compose", "like_compose", r"http://psp-sandbox:8080", "http://psp-sandbox:8081"),
]

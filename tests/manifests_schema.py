"""The fields of the Kubernetes objects that we write, from KubeRay's v1 types (1.6, 1.7) and the Kubernetes API:
JSON Schema with every object closed, so that a misspelt or misplaced field is an error."""

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
MAP = {"type": "object", "additionalProperties": {"type": "string"}}


def closed(required=(), **properties):
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": list(required),
    }


def many(item):
    return {"type": "array", "items": item, "minItems": 1}


def manifest(api, kind, **rest):
    meta = {**closed(name=TEXT, generateName=TEXT, namespace=TEXT, labels=MAP, annotations=MAP), "minProperties": 1}
    return closed(
        ["apiVersion", "kind", "metadata", *rest],
        apiVersion={"const": api},
        kind={"const": kind},
        metadata=meta,
        **rest,
    )


QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$"}
RESOURCES = closed(
    requests={"type": "object", "additionalProperties": QUANTITY},
    limits={"type": "object", "additionalProperties": QUANTITY},
)
CONTAINER = closed(
    ["name", "image"],
    name=TEXT,
    image={"type": "string", "pattern": r":[^:/]+$", "not": {"pattern": ":latest$"}},
    command=many(TEXT),
    args=many(TEXT),
    env=many(closed(["name", "value"], name=TEXT, value={"type": "string"})),
    ports=many(closed(["containerPort"], name={"type": "string", "maxLength": 15}, containerPort=COUNT)),
    resources=RESOURCES,
    volumeMounts=many(closed(["name", "mountPath"], name=TEXT, mountPath=TEXT, readOnly={"type": "boolean"})),
)
POD = closed(
    ["containers"],
    serviceAccountName=TEXT,
    restartPolicy={"enum": ["Never", "OnFailure", "Always"]},
    terminationGracePeriodSeconds=COUNT,
    nodeSelector=MAP,
    tolerations=many(
        closed(["key", "operator"], key=TEXT, operator={"enum": ["Exists", "Equal"]}, value=TEXT, effect=TEXT)
    ),
    containers=many(CONTAINER),
    volumes=many(closed(["name", "configMap"], name=TEXT, configMap=closed(["name"], name=TEXT))),
)
TEMPLATE = closed(["spec"], metadata=closed(labels=MAP, annotations=MAP), spec=POD)
HEAD = closed(
    ["rayStartParams", "template"],
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    rayStartParams=MAP,
    template=TEMPLATE,
)
WORKERS = closed(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    rayStartParams=MAP,
    template=TEMPLATE,
)
CLUSTER_SPEC = closed(
    ["rayVersion", "headGroupSpec"],
    rayVersion=TEXT,
    authOptions=closed(["mode"], mode={"enum": ["token", "disabled"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=closed(
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        resources=RESOURCES,
    ),
    headGroupSpec=HEAD,
    workerGroupSpecs=many(WORKERS),
)
JOB_SPEC = closed(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    submitterConfig=closed(backoffLimit=COUNT),
    jobId=TEXT,
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=COUNT,
    suspend={"type": "boolean"},
    clusterSelector=MAP,
    rayClusterSpec=CLUSTER_SPEC,
)
CRON_JOB = closed(
    ["schedule", "jobTemplate"],
    schedule=TEXT,
    timeZone=TEXT,
    concurrencyPolicy={"enum": ["Allow", "Forbid", "Replace"]},
    startingDeadlineSeconds=COUNT,
    successfulJobsHistoryLimit=COUNT,
    failedJobsHistoryLimit=COUNT,
    suspend={"type": "boolean"},
    jobTemplate=closed(
        ["spec"], spec=closed(["template"], backoffLimit=COUNT, activeDeadlineSeconds=COUNT, template=TEMPLATE)
    ),
)
RULE = closed(["apiGroups", "resources", "verbs"], apiGroups=many(TEXT), resources=many(TEXT), verbs=many(TEXT))
SUBJECT = closed(["kind", "name"], kind={"const": "ServiceAccount"}, name=TEXT, namespace=TEXT)
RBAC = "rbac.authorization.k8s.io"
ROLE_REF = closed(["apiGroup", "kind", "name"], apiGroup={"const": RBAC}, kind={"const": "Role"}, name=TEXT)

SCHEMAS = {
    "RayCluster": manifest("ray.io/v1", "RayCluster", spec=CLUSTER_SPEC),
    "RayJob": manifest("ray.io/v1", "RayJob", spec=JOB_SPEC),
    "RayCronJob": manifest(
        "ray.io/v1",
        "RayCronJob",
        spec=closed(
            ["schedule", "jobTemplate"], schedule=TEXT, timeZone=TEXT, suspend={"type": "boolean"}, jobTemplate=JOB_SPEC
        ),
    ),
    "CronJob": manifest("batch/v1", "CronJob", spec=CRON_JOB),
    "ServiceAccount": manifest("v1", "ServiceAccount"),
    "ConfigMap": manifest("v1", "ConfigMap", data=MAP),
    "Role": manifest(f"{RBAC}/v1", "Role", rules=many(RULE)),
    "RoleBinding": manifest(f"{RBAC}/v1", "RoleBinding", roleRef=ROLE_REF, subjects=many(SUBJECT)),
}

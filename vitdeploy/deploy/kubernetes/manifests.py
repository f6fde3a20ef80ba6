"""The objects of Kubernetes, as `kubectl apply` takes them: a plain Deployment, KEDA's autoscaler, KServe's two.

The server is Triton. Its container runs as another user than root, on a file system that it can't write to but for
/tmp and the shared memory of its python backend.

The autoscaler looks at how long a request waits in Triton's queue, the mean over the last minute, in milliseconds:

    q = sum(rate(nv_inference_queue_duration_us)) / sum(rate(nv_inference_request_success)) / 1000

and wants ceil(replicas * q / target) replicas (the metric type Value: q is no sum over the replicas).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitdeploy.deploy.kubernetes.settings import KubernetesSettings

__all__ = ["Served", "autoscaler", "kserve", "plain"]

_USER = 1000  # triton-server in NVIDIA's images
_HTTP, _GRPC, _METRICS = 8000, 8001, 8002
_KSERVE_HTTP, _KSERVE_GRPC = 8080, 9000
_LOOK_BACK = "1m"
_Object = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """What the objects are called, the model that Triton has, and how it is served."""

    name: str
    model: str
    settings: KubernetesSettings


def plain(served: Served) -> list[_Object]:
    """A Deployment, its Service, and a PodDisruptionBudget, which drains one pod at a time."""
    labels = {"app.kubernetes.io/name": served.name}
    scraped = {"prometheus.io/scrape": "true", "prometheus.io/port": str(_METRICS)}
    pod = _pod(_container(served, "triton", _HTTP, _GRPC))
    return [
        {
            **_named(served, "apps/v1", "Deployment", labels),
            "spec": {
                "selector": {"matchLabels": labels},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "template": {"metadata": {"labels": labels, "annotations": scraped}, "spec": pod},
            },
        },
        {
            **_named(served, "v1", "Service", labels),
            "spec": {
                "selector": labels,
                "ports": [
                    {"name": name, "port": port, "targetPort": name}
                    for name, port in (("http", _HTTP), ("grpc", _GRPC), ("metrics", _METRICS))
                ],
            },
        },
        {
            **_named(served, "policy/v1", "PodDisruptionBudget", labels),
            "spec": {"selector": {"matchLabels": labels}, "maxUnavailable": 1},
        },
    ]


def autoscaler(served: Served) -> list[_Object]:
    """KEDA's ScaledObject for the Deployment."""
    least, most = served.settings.replicas
    trigger = {
        "type": "prometheus",
        "metricType": "Value",
        "metadata": {
            "serverAddress": served.settings.prometheus,
            "query": queue_query(served),
            "threshold": f"{served.settings.queue_ms:g}",
        },
    }
    return [
        {
            **_named(served, "keda.sh/v1alpha1", "ScaledObject"),
            "spec": {
                "scaleTargetRef": {"name": served.name},
                "minReplicaCount": least,
                "maxReplicaCount": most,
                "pollingInterval": 15,
                "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior()}},
                "triggers": [trigger],
            },
        }
    ]


def kserve(served: Served) -> list[_Object]:
    """KServe's ServingRuntime and InferenceService, in its Standard mode and scaled by KEDA."""
    least, most = served.settings.replicas
    runtime, kind = f"{served.name}-runtime", f"vitdeploy-{served.name}"
    container = _container(served, "kserve-container", _KSERVE_HTTP, _KSERVE_GRPC)
    pod = _pod(container)
    metric = {
        "type": "External",
        "external": {
            "metric": {
                "backend": "prometheus",
                "serverAddress": served.settings.prometheus,
                "query": queue_query(served),
            },
            "target": {"type": "Value", "value": f"{served.settings.queue_ms:g}"},
        },
    }
    return [
        {
            **_named(served, "serving.kserve.io/v1alpha1", "ServingRuntime", name=runtime),
            "spec": {
                "annotations": {"prometheus.kserve.io/port": str(_METRICS), "prometheus.kserve.io/path": "/metrics"},
                "supportedModelFormats": [{"name": kind, "version": "1", "autoSelect": False}],
                "protocolVersions": ["v2", "grpc-v2"],
                "multiModel": False,
                "containers": pod["containers"],
                "volumes": pod["volumes"],
            },
        },
        {
            **_named(served, "serving.kserve.io/v1beta1", "InferenceService"),
            "spec": {
                "predictor": {
                    "minReplicas": least,
                    "maxReplicas": most,
                    "autoScaling": {"metrics": [metric], "behavior": _behavior()},
                    "automountServiceAccountToken": False,
                    "securityContext": pod["securityContext"],
                    "model": {
                        "modelFormat": {"name": kind, "version": "1"},
                        "runtime": runtime,
                        "protocolVersion": "v2",
                    },
                }
            },
        },
    ]


def queue_query(served: Served) -> str:
    """PromQL: milliseconds that a request waits on the mean, 0 where none comes."""
    namespace = served.settings.namespace
    where = f'model="{served.model}"' + (f',namespace="{namespace}"' if namespace else "")
    waited, answered = (
        f"sum(rate({metric}{{{where}}}[{_LOOK_BACK}]))"
        for metric in ("nv_inference_queue_duration_us", "nv_inference_request_success")
    )
    return f"{waited} / clamp_min({answered}, 0.001) / 1000"


def _named(
    served: Served, version: str, kind: str, labels: dict[str, str] | None = None, *, name: str | None = None
) -> _Object:
    metadata: _Object = {"name": name or served.name}
    if served.settings.namespace:
        metadata["namespace"] = served.settings.namespace
    if labels:
        metadata["labels"] = labels
    if kind == "InferenceService":
        metadata["annotations"] = {
            "serving.kserve.io/deploymentMode": "Standard",
            "serving.kserve.io/autoscalerClass": "keda",
        }
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _pod(container: _Object) -> _Object:
    return {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 60,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        ],
    }


def _container(served: Served, name: str, http: int, grpc: int) -> _Object:
    limits = {"cpu": served.settings.cpus, "memory": served.settings.memory}
    if served.settings.device == "gpu":
        limits["nvidia.com/gpu"] = "1"
    ready = {"httpGet": {"path": f"/v2/models/{served.model}/ready", "port": "http"}}
    answer = ["python3", "-m", "vitdeploy.deploy.triton.alive", served.model, str(http)]
    return {
        "name": name,
        "image": served.settings.image,
        "args": [
            "tritonserver",
            "--model-repository=/models",
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            f"--metrics-port={_METRICS}",
            "--exit-timeout-secs=50",
        ],
        "ports": [
            {"name": port, "containerPort": number, "protocol": "TCP"}
            for port, number in (("http", http), ("grpc", grpc), ("metrics", _METRICS))
        ],
        "resources": {"requests": limits, "limits": limits},
        # ten minutes to load the model and pass its self-test; a model whose process died is started again
        "startupProbe": {**ready, "periodSeconds": 5, "failureThreshold": 120},
        "readinessProbe": {**ready, "periodSeconds": 5, "timeoutSeconds": 5},
        "livenessProbe": {
            "exec": {"command": answer},
            "periodSeconds": 30,
            "timeoutSeconds": 15,
            "failureThreshold": 3,
        },
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},  # until nobody sends requests here any more
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}],
    }


def _behavior() -> _Object:
    """Up at once, by as many again; down by one pod a minute after five quiet ones."""
    return {
        "scaleUp": {"policies": [{"type": "Percent", "value": 100, "periodSeconds": 60}]},
        "scaleDown": {
            "stabilizationWindowSeconds": 300,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
        },
    }

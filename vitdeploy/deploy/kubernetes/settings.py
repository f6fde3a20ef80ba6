"""How a bundle is served on Kubernetes: the one settings object of `kubernetes`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from vitdeploy.core.errors import InputError
from vitdeploy.core.settings import ABOVE_ZERO, OneOf
from vitdeploy.deploy.triton.settings import ROUTES, TritonSettings

__all__ = ["KubernetesSettings", "check_text"]


@dataclass(frozen=True, kw_only=True)
class KubernetesSettings(TritonSettings):
    """Pods that serve a bundle by Triton; what Triton is told is in `TritonSettings`.

    Attributes:
        image: what the built image is called where the cluster gets it: "registry/name:tag".
        via: as of Triton; "auto": "pixels" on a GPU, where Triton runs the engine itself, "load" on a CPU.
        cpus, memory: of a pod, requested and as a limit, as Kubernetes writes them: "4", "500m"; "4Gi".
        replicas: fewest and most.
        queue_ms: the mean wait in the queue, in milliseconds, above which there are to be more replicas.
        prometheus: address of the Prometheus that scrapes the pods, for the autoscaler.
        namespace: of the objects; None: that of `kubectl`.

    Raises:
        InputError: a value out of range, or one that Kubernetes would not take.
    """

    image: str
    via: Annotated[str, OneOf("route", ("auto", *ROUTES))] = "auto"
    cpus: str = "4"
    memory: str = "4Gi"
    replicas: tuple[int, int] = (1, 10)
    queue_ms: Annotated[float, ABOVE_ZERO] = 20.0
    prometheus: str = "http://prometheus-operated.monitoring.svc:9090"
    namespace: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text("image", self.image, r"[a-z0-9][\w.\-/:@]*", "REGISTRY/NAME:TAG, as docker build takes it")
        check_text("cpus", self.cpus, r"[1-9]\d*m?|\d+\.\d+", "as Kubernetes writes it: 4, or 500m")
        check_text("memory", self.memory, r"[1-9]\d*[KMGT]i?", "as Kubernetes writes it: 4Gi")
        check_text("prometheus", self.prometheus, r"https?://\S+", "its address: http://prometheus.monitoring.svc:9090")
        if self.namespace:
            check_text("namespace", self.namespace, r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "small letters, digits, -")
        least, most = self.replicas
        if not 1 <= least <= most:
            raise InputError(f"replicas are {least} to {most}", hint="at least 1, and the most no fewer than the least")

    @property
    def route(self) -> str:
        """`via`, decided."""
        if self.via != "auto":
            return self.via
        return "pixels" if self.device == "gpu" else "load"


def check_text(what: str, value: str, pattern: str, hint: str) -> None:
    """Refuse a text that does not match the pattern.

    Raises:
        InputError: it does not.
    """
    if not re.fullmatch(pattern, value):
        raise InputError(f"{what} is {value!r}", hint=hint)

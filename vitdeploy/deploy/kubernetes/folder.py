"""`kubernetes`: a bundle -> a folder that a container image is built of, and the manifests that run it.

OUTPUT/
  Dockerfile          for a GPU or a CPU; `docker build -t IMAGE OUTPUT`
  wheels/             where vitdeploy's wheel goes, if it is not to come from an index
  model_repository/   as `deploy triton` writes it
  deployment.yaml     a Deployment with its Service and PodDisruptionBudget
  autoscaler.yaml     KEDA's ScaledObject for it
  kserve.yaml         instead of both: KServe's ServingRuntime and InferenceService
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy import __version__
from vitdeploy.bundle import Bundle
from vitdeploy.core.errors import InputError, require
from vitdeploy.core.storage import check_output, files_below, staged_folder
from vitdeploy.deploy.kubernetes.manifests import Serving, autoscaler, kserve, plain
from vitdeploy.deploy.triton.repository import TritonRepository, triton

__all__ = ["KubernetesFolder", "kubernetes"]

_TRITON = "nvcr.io/nvidia/tritonserver:26.09-py3"
_MARK = "# Written by vitdeploy deploy kubernetes."
_DOCKERFILE = """\
{mark} Build it with: docker build -t {image} .
ARG TRITON={triton}
FROM ${{TRITON}}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# vitdeploy for Triton's python backend: a wheel in wheels/, else from the index that pip knows
ARG VITDEPLOY={version}
COPY wheels /opt/wheels
RUN python3 -m pip install --no-cache-dir --break-system-packages --find-links=/opt/wheels \\
      "vitdeploy{extra}==${{VITDEPLOY}}" \\
    && rm -rf /opt/wheels
COPY model_repository /models
ENV HOME=/tmp XDG_CACHE_HOME=/tmp/cache PYTHONDONTWRITEBYTECODE=1
# triton-server, which NVIDIA's image has; it owns nothing here, so the model can't be changed
USER 1000:1000
EXPOSE 8000 8001 8002
CMD ["tritonserver", "--model-repository=/models"]
"""


@dataclass(frozen=True)
class KubernetesFolder:
    """What was written: the folder, the objects' and the model's name, and the model repository in it."""

    path: Path
    name: str
    model: str
    repository: TritonRepository
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "name": self.name,
            "models": [self.repository.name, self.repository.pixels],
            "artifact": self.repository.artifact.to_json(),
            "files": list(self.files),
        }


def kubernetes(
    bundle: Bundle | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    image: str,
    name: str | None = None,
    device: str = "cpu",
    via: str | None = None,
    precision: str = "auto",
    max_batch: int = 32,
    instances: int = 1,
    top_k: int = 5,
    cpus: str = "4",
    memory: str = "4Gi",
    replicas: tuple[int, int] = (1, 10),
    queue_ms: float = 20.0,
    prometheus: str = "http://prometheus-operated.monitoring.svc:9090",
    namespace: str | None = None,
    overwrite: bool = False,
) -> KubernetesFolder:
    """Write what serves a bundle on Kubernetes: a Dockerfile with its content, and the manifests.

    Args:
        bundle: an open bundle, its folder, or `owner/name` of one on the Hub.
        output: the folder.
        image: what the built image is called where the cluster gets it: "registry/name:tag".
        name: of the model and, in lower case, of the objects; None: the bundle's folder name.
        device: "cpu" or "gpu" (one a pod).
        via: see `triton`; None: "pixels" on a GPU, where Triton runs the engine itself, "load" on a CPU.
        precision, max_batch, instances, top_k: see `triton`.
        cpus, memory: of a pod, requested and as a limit, as Kubernetes writes them: "4", "500m"; "4Gi".
        replicas: fewest and most.
        queue_ms: the mean wait in the queue, in milliseconds, above which there are to be more replicas.
        prometheus: address of the Prometheus that scrapes the pods, for the autoscaler.
        namespace: of the objects; None: that of `kubectl`.
        overwrite: replace a folder that this wrote.

    Raises:
        BundleError: the bundle is damaged, or has no form for that.
        InputError: a name or number that can't be.
        OutputExistsError: `output` exists and may not be replaced.
        DependencyError: tritonclient or PyYAML is not installed.
    """
    yaml = require("yaml", extra="triton")
    target = Path(output)
    check_output(target, overwrite=overwrite, ours=_is_ours, what="folder of ours")
    via = via or ("pixels" if device == "gpu" else "load")
    with staged_folder(target, overwrite=overwrite, ours=_is_ours, what="folder of ours") as staging:
        repository = triton(
            bundle, staging / "model_repository", name=name or _name_of(bundle), device=device, via=via,
            precision=precision, max_batch=max_batch, instances=instances, top_k=top_k,
        )  # fmt: skip
        gpus = int(device == "gpu")
        serving = _checked(
            Serving(
                re.sub(r"[^a-z0-9-]", "-", repository.name.lower()), repository.name, image, gpus, cpus, memory,
                replicas, queue_ms, prometheus, namespace,
            )
        )  # fmt: skip
        for file, objects in (
            ("deployment.yaml", plain(serving)),
            ("autoscaler.yaml", autoscaler(serving)),
            ("kserve.yaml", kserve(serving)),
        ):
            text = yaml.dump_all(objects, sort_keys=False, width=120, Dumper=_no_aliases(yaml))
            (staging / file).write_text(f"{_MARK}\n{text}", encoding="utf-8")
        (staging / "Dockerfile").write_text(_dockerfile(image, device, via), encoding="utf-8")
        (staging / "wheels").mkdir()
        (staging / "wheels" / "README").write_text("A wheel of vitdeploy here is taken into the image.\n")
        files = tuple(files_below(staging))
    return KubernetesFolder(target, serving.name, repository.name, repository, files)


def _dockerfile(image: str, device: str, via: str) -> str:
    extra = {"cpu": "[cpu]", "gpu": "[gpu-cu13]"}[device] if via == "load" else ""  # else Triton runs the model itself
    return _DOCKERFILE.format(mark=_MARK, image=image, triton=_TRITON, version=__version__, extra=extra)


def _name_of(bundle: Bundle | str | os.PathLike[str]) -> str:
    path = bundle.path if isinstance(bundle, Bundle) else Path(bundle)
    return re.sub(r"[^A-Za-z0-9_.-]", "_", path.resolve().name)


def _checked(serving: Serving) -> Serving:
    least, most = serving.replicas
    patterns = (
        ("name", serving.name, r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?", "begin it with a letter, of 42 at most: --name"),
        ("image", serving.image, r"[a-z0-9][\w.\-/:@]*", "REGISTRY/NAME:TAG, as docker build takes it"),
        ("cpus", serving.cpus, r"[1-9]\d*m?|\d+\.\d+", "as Kubernetes writes it: 4, or 500m"),
        ("memory", serving.memory, r"[1-9]\d*[KMGT]i?", "as Kubernetes writes it: 4Gi"),
        ("prometheus", serving.prometheus, r"https?://\S+", "its address: http://prometheus.monitoring.svc:9090"),
        (
            "namespace",
            serving.namespace or "default",
            r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
            "small letters, digits, -",
        ),
    )
    for what, value, pattern, hint in patterns:
        if not re.fullmatch(pattern, value):
            raise InputError(f"{what} is {value!r}", hint=hint)
    if not 1 <= least <= most:
        raise InputError(f"replicas are {least} to {most}", hint="at least 1, and the most no fewer than the least")
    if not serving.queue_ms > 0:
        raise InputError(f"queue_ms is {serving.queue_ms:g}", hint="give milliseconds above 0")
    return serving


def _no_aliases(yaml: Any) -> Any:
    """Writes what stands twice twice, as people do."""
    return type("Plain", (yaml.SafeDumper,), {"ignore_aliases": lambda self, data: True})


def _is_ours(folder: Path) -> bool:
    """Whether it was written by this, perhaps with wheels put into it."""
    dockerfile = folder / "Dockerfile"
    known = {"Dockerfile", "wheels", "model_repository", "deployment.yaml", "autoscaler.yaml", "kserve.yaml"}
    return (
        dockerfile.is_file()
        and dockerfile.read_text("utf-8", "replace").startswith(_MARK)
        and {path.name for path in folder.iterdir()} <= known
    )

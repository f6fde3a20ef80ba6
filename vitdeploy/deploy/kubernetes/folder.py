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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitdeploy import __version__
from vitdeploy.bundle import Bundle
from vitdeploy.core.errors import require
from vitdeploy.core.storage import check_output, files_below, staged_folder
from vitdeploy.deploy.kubernetes.manifests import Served, autoscaler, kserve, plain
from vitdeploy.deploy.kubernetes.settings import KubernetesSettings, check_text
from vitdeploy.deploy.triton.repository import TritonRepository, model_name, triton

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
    settings: KubernetesSettings,
    *,
    overwrite: bool = False,
) -> KubernetesFolder:
    """Write what serves a bundle on Kubernetes: a Dockerfile with its content, and the manifests.

    Args:
        bundle: an open bundle, its folder, or `owner/name` of one on the Hub.
        output: the folder.
        settings: how it is served; the objects are called as the model, in lower case.
        overwrite: replace a folder that this wrote.

    Raises:
        BundleError: the bundle is damaged, or has no form for that.
        InputError: a name that can't be.
        OutputExistsError: `output` exists and may not be replaced.
        DependencyError: tritonclient or PyYAML is not installed.
    """
    yaml = require("yaml", extra="triton")
    target = Path(output)
    check_output(target, overwrite=overwrite, ours=_is_ours, what="folder of ours")
    settings = replace(settings, via=settings.route, name=settings.name or model_name(bundle))
    with staged_folder(target, overwrite=overwrite, ours=_is_ours, what="folder of ours") as staging:
        repository = triton(bundle, staging / "model_repository", settings)
        name = re.sub(r"[^a-z0-9-]", "-", repository.name.lower())
        check_text("name", name, r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?", "begin it with a letter, of 42 at most: --name")
        served = Served(name, repository.name, settings)
        for file, objects in (
            ("deployment.yaml", plain(served)),
            ("autoscaler.yaml", autoscaler(served)),
            ("kserve.yaml", kserve(served)),
        ):
            text = yaml.dump_all(objects, sort_keys=False, width=120, Dumper=_no_aliases(yaml))
            (staging / file).write_text(f"{_MARK}\n{text}", encoding="utf-8")
        (staging / "Dockerfile").write_text(_dockerfile(settings), encoding="utf-8")
        (staging / "wheels").mkdir()
        (staging / "wheels" / "README").write_text("A wheel of vitdeploy here is taken into the image.\n")
        files = tuple(files_below(staging))
    return KubernetesFolder(target, name, repository.name, repository, files)


def _dockerfile(settings: KubernetesSettings) -> str:
    extra = ""  # by "pixels" Triton runs the model itself
    if settings.route == "load":
        extra = {"cpu": "[cpu]", "gpu": "[gpu-cu13]"}[settings.device]
    return _DOCKERFILE.format(mark=_MARK, image=settings.image, triton=_TRITON, version=__version__, extra=extra)


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

"""`triton`: a bundle -> a model repository that NVIDIA Triton starts as it is.

    OUTPUT/
      NAME/          python backend: encoded images in, labels or embeddings out, each image of any size
        config.pbtxt
        1/model.py   a few lines: the code is `vitdeploy.deploy.triton.model`
        1/bundle/    the bundle, compared with its hashes when the model is loaded
      NAME_pixels/   the engine or the ONNX form alone: raw uint8 pixels in, logits or embeddings out
        config.pbtxt
        1/model.plan or model.onnx

The configurations are made with the protobuf messages of `tritonclient`, so no field of theirs can be misspelt.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vitdeploy.backends.registry import find
from vitdeploy.backends.tensorrt.command import rebuild_command
from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.bundle.records import MANIFEST
from vitdeploy.core.errors import BundleError, InputError, require
from vitdeploy.core.precisions import engine_order, load_order
from vitdeploy.core.storage import files_below, holds_only, sha256, staged_folder
from vitdeploy.core.text import quoted
from vitdeploy.deploy.triton.settings import TritonSettings
from vitdeploy.models.tasks import EMBEDDING, TASKS
from vitdeploy.runtime.remote import open_bundle
from vitdeploy.runtime.serving import Serving

__all__ = ["TritonRepository", "model_name", "triton"]

_CODE = """\
# Written by vitdeploy, which has to be installed in the Python that Triton's python backend runs.
import os
import sys

# Some builds of that backend ignore PYTHONPATH.
sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]

from vitdeploy.deploy.triton.model import TritonPythonModel  # noqa: E402, F401
"""
_MARK = _CODE.partition(",")[0]  # of any version
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64"}
_OURS = re.compile(r"[^/]+/(config\.pbtxt|1/(model\.(py|onnx|plan)|__pycache__/.+|bundle/.+|[^/]+\.data))")
_QUEUE_MICROSECONDS = round(1000 * Serving.max_delay_ms)  # longest that an image waits for others to share a batch


@dataclass(frozen=True)
class TritonRepository:
    """What was written: the folder, the two models' names, and the artifact that `NAME_pixels` serves."""

    path: Path
    name: str
    pixels: str
    artifact: Artifact
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "models": [self.name, self.pixels],
            "artifact": self.artifact.to_json(),
            "files": list(self.files),
        }


def triton(
    bundle: Bundle | str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: TritonSettings = TritonSettings(),  # noqa: B008 (it is frozen)
    *,
    overwrite: bool = False,
) -> TritonRepository:
    """Write a model repository for NVIDIA Triton.

    Args:
        bundle: an open bundle, its folder, or `owner/name` of one on the Hub.
        output: the repository's folder.
        settings: how Triton serves it.
        overwrite: replace a repository that this wrote.

    Raises:
        BundleError: the bundle is damaged, or has no form for that.
        InputError: a name that can't be one of a model.
        OutputExistsError: `output` exists and may not be replaced.
        DependencyError: `tritonclient` is not installed.
    """
    opened = open_bundle(bundle)
    name = settings.name or model_name(bundle)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InputError(f"{name!r} can't be the name of a model", hint="letters, digits, '_', '-' and '.'")
    opened.verify()
    artifact = _artifact(opened, settings)
    (least, best, most), *sizes = _shape(opened, artifact)
    served = 0 if least == most else min(settings.max_batch, most or settings.max_batch)
    batch = (least, min(best, served), served) if served else (least, best, most)
    pixels = f"{name}_pixels"
    facts = {
        "manifest_sha256": sha256(opened.path / MANIFEST),
        "precision": settings.precision,
        "device": settings.device,
        "via": settings.via,
        "pixels_model": pixels,
        "pixels_file": artifact.path,
        "pixels_shape": json.dumps([batch, *sizes]),
        "top_k": str(_top_k(opened, settings)),
    }
    configs = {
        name: _front(name, opened, settings, facts),
        pixels: _pixels(pixels, opened, artifact, [batch, *sizes], served, settings),
    }
    target = Path(output)
    with staged_folder(target, overwrite=overwrite, ours=_is_ours, what="repository of ours") as staging:
        for model, config in configs.items():
            (staging / model / "1").mkdir(parents=True)
            (staging / model / "config.pbtxt").write_text(config, encoding="utf-8")
        _fill(staging / name / "1", staging / pixels / "1", opened, artifact)
        files = tuple(sorted(files_below(staging)))
    return TritonRepository(target, name, pixels, artifact, files)


def _fill(front: Path, pixels: Path, bundle: Bundle, artifact: Artifact) -> None:
    """Copy what the two models run: our code with the bundle, and the file that is served with its weights."""
    (front / "model.py").write_text(_CODE, encoding="utf-8")
    for path in bundle.files():
        place = front / "bundle" / path.relative_to(bundle.path)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    for source, file_name in _served_files(bundle, artifact):
        shutil.copyfile(source, pixels / file_name)


def _artifact(bundle: Bundle, settings: TritonSettings) -> Artifact:
    """The file that NAME_pixels serves: an engine, or a graph made for ONNX Runtime on that device."""
    found, precision = list(_candidates(bundle, settings.device)), settings.precision
    if precision != "auto":
        found = [artifact for artifact in found if artifact.precision == precision]
    if not found:
        wanted = "form" if precision == "auto" else f"{precision} form"
        raise BundleError(
            f"{bundle.path} has no {wanted} that Triton can run on a {settings.device.upper()}",
            hint=f"vitdeploy build-engine {quoted(bundle.path)} --fp16 --int8 adds forms and TensorRT engines",
        )
    return found[0]


def _candidates(bundle: Bundle, device: str) -> Iterator[Artifact]:
    """Best first: an engine of TensorRT's, then graphs. A TensorRT-RTX engine is not for Triton's backend."""
    if device == "gpu":
        for precision in engine_order():
            yield from bundle.select(kind="engine", precision=precision, target="tensorrt")
    where = "cuda" if device == "gpu" else "cpu"
    offer = find("onnxruntime").offer(where)
    assert offer is not None
    for precision in load_order(where):
        yield from filter(offer.takes, bundle.select(kind="onnx", precision=precision))


def _shape(bundle: Bundle, artifact: Artifact) -> list[tuple[int, int, int]]:
    """(least, best, most) of each dimension of the images: (batch, height, width, 3)."""
    spec = bundle.manifest.inputs[0]
    if artifact.kind == "engine":
        profiles = artifact.built_with.get("profiles") or ()
        ranges = [profile[spec.name] for profile in profiles if spec.name in profile]
        if not ranges:
            raise BundleError(
                f"{artifact.path} does not say which shapes it takes",
                hint=f"build it again: {rebuild_command(artifact, bundle.path, str(artifact.target))}",
            )
        low, best = ranges[0]["min"], ranges[0]["opt"]
        return [
            (min(r["min"][axis] for r in ranges), best[axis], max(r["max"][axis] for r in ranges))
            for axis in range(len(low))
        ]
    size = bundle.manifest.model.get("image_size") or (224, 224)
    natural = (1, *size, 3)
    return [(dim, dim, dim) if isinstance(dim, int) else (1, natural[axis], 0) for axis, dim in enumerate(spec.shape)]


def _top_k(bundle: Bundle, settings: TritonSettings) -> int:
    return min(settings.top_k, len(bundle.manifest.labels))


def _answers(bundle: Bundle, settings: TritonSettings) -> Iterator[tuple[str, str, int]]:
    """What NAME gives of an image: (output, type, how many)."""
    task = TASKS[bundle.manifest.task]
    if task.kind is EMBEDDING:
        yield "EMBEDDING", "TYPE_FP32", bundle.manifest.width
        return
    for output, kind in (("LABEL", "TYPE_STRING"), ("SCORE", "TYPE_FP32"), ("INDEX", "TYPE_INT32")):
        yield output, kind, _top_k(bundle, settings)
    if task.several:
        yield "LABELS", "TYPE_STRING", 1


def model_name(bundle: Bundle | str | os.PathLike[str]) -> str:
    """What a model is called where no name is given: its folder, or its repository on the Hub."""
    path = bundle.path if isinstance(bundle, Bundle) else Path(bundle)
    return re.sub(r"[^A-Za-z0-9_.-]", "_", path.resolve().name)


def _front(name: str, bundle: Bundle, settings: TritonSettings, facts: dict[str, str]) -> str:
    messages = require("tritonclient.grpc.model_config_pb2", extra="triton")
    config = messages.ModelConfig(name=name, backend="python", max_batch_size=settings.max_batch)
    config.input.add(name="IMAGE", data_type=messages.TYPE_STRING, dims=[1])
    for output, kind, count in _answers(bundle, settings):
        config.output.add(name=output, data_type=getattr(messages, kind), dims=[count])
    _schedule(messages, config, settings)
    for key, value in facts.items():
        config.parameters[key].string_value = value
    return _text(config)


def _pixels(
    name: str,
    bundle: Bundle,
    artifact: Artifact,
    shape: list[tuple[int, int, int]],
    most: int,
    settings: TritonSettings,
) -> str:
    """`shape` as of `_shape`; `most` is the largest batch, 0 where the file takes batches of one fixed size only."""
    messages = require("tritonclient.grpc.model_config_pb2", extra="triton")
    engine = artifact.kind == "engine"
    config = messages.ModelConfig(name=name, max_batch_size=most)
    if engine:
        config.platform, config.backend = "tensorrt_plan", "tensorrt"
    else:
        config.platform, config.backend = "onnxruntime_onnx", "onnxruntime"
    dims = [low if low == high else -1 for low, _, high in shape]
    image, skip = bundle.manifest.inputs[0], 1 if most else 0
    config.input.add(name=image.name, data_type=getattr(messages, _TYPES[image.dtype]), dims=dims[skip:])
    for output in bundle.manifest.outputs:
        sizes = [-1 if isinstance(dim, str) else dim for dim in output.shape]
        sizes[0] = dims[0]
        config.output.add(name=output.name, data_type=getattr(messages, _TYPES[output.dtype]), dims=sizes[skip:])
    _schedule(messages, config, settings, dynamic=most > 1)
    for count in sorted({shape[0][0], most}) if most else [0]:
        warm = config.model_warmup.add(name=f"batch_{count or dims[0]}", batch_size=count)
        value = warm.inputs[image.name]
        value.data_type, value.zero_data = getattr(messages, _TYPES[image.dtype]), True
        value.dims.extend([best for _, best, _ in shape][skip:])
    return _text(config)


def _schedule(messages: Any, config: Any, settings: TritonSettings, *, dynamic: bool = True) -> None:
    kind = messages.ModelInstanceGroup.KIND_GPU if settings.device == "gpu" else messages.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(count=settings.instances, kind=kind)
    if dynamic:
        config.dynamic_batching.max_queue_delay_microseconds = _QUEUE_MICROSECONDS


def _text(config: Any) -> str:
    text_format = require("google.protobuf.text_format", extra="triton")
    return str(text_format.MessageToString(config))


def _served_files(bundle: Bundle, artifact: Artifact) -> Iterator[tuple[Path, str]]:
    """Of a bundle that was verified: (file, its name beside the configuration)."""
    yield bundle.place(artifact), "model.plan" if artifact.kind == "engine" else "model.onnx"
    if artifact.kind == "onnx":
        folder = PurePosixPath(artifact.path).parent
        for weights in bundle.select(kind="weights"):
            if PurePosixPath(weights.path).parent == folder:
                yield bundle.place(weights), PurePosixPath(weights.path).name


def _is_ours(folder: Path) -> bool:
    """Whether it was written by this: every model of it is one of ours, and there is nothing else."""
    if not holds_only(folder, lambda name: _OURS.fullmatch(name) is not None):
        return False
    fronts = [path for path in folder.glob("*/1/model.py") if path.read_text("utf-8", "replace").startswith(_MARK)]
    names = {path.parents[1].name for path in fronts}
    return bool(names) and {path.name for path in folder.iterdir()} == names | {f"{name}_pixels" for name in names}

"""Which forms of a bundle there are to measure, and which of them can run on this machine."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitdeploy.backends import registry
from vitdeploy.backends.pytorch.variants import VARIANTS
from vitdeploy.backends.registry import BackendSpec, RunnerSpec, on_chosen_gpu, open_runner
from vitdeploy.backends.tensorrt.compatibility import misfit
from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.core.errors import InputError
from vitdeploy.core.machine import gpus, version
from vitdeploy.core.precisions import precisions, spec_of
from vitdeploy.core.storage import sha256
from vitdeploy.evaluation.accuracy import Infers
from vitdeploy.models.folders import open_folder
from vitdeploy.models.tasks import CLASSES, TaskRequest
from vitdeploy.report.records import ArtifactRef

__all__ = ["Form", "Open", "baseline_forms", "bundle_forms", "choose"]

Open = Callable[[], AbstractContextManager[Infers]]

_BASELINE = "pytorch"


@dataclass(frozen=True)
class Form:
    """One thing to measure. `open` makes its runner; `reason` says why it can't run here (then `open` is not used).

    `spec` is what another process would open, where there is such a thing; `check` raises where its file is not the
    right one (`open` does that too); `graph` is the ONNX file behind the form; `content` is the SHA-256 of all files
    that decide its answers, None where they are not known; `tf32`: on a GPU its FP32 products are in TF32;
    `preprocessed`: it is timed from pixel values where the model runs (the runner's `prepare` and `infer_prepared`).
    """

    form: str
    backend: str
    open: Open
    artifact: ArtifactRef | None = None
    size_bytes: int | None = None
    reason: str | None = None
    device: str = "cpu"
    spec: RunnerSpec | None = None
    graph: Path | None = None
    check: Callable[[], object] = lambda: None
    content: str | None = None
    tf32: bool = False
    preprocessed: bool = False

    @property
    def key(self) -> str:
        """What the form is called in a report, unique there."""
        return f"{self.form}/{self.backend}" + ("-cuda" if self.on_gpu_by_choice else "")

    @property
    def on_gpu_by_choice(self) -> bool:
        """Whether a backend that also runs on CPUs runs on a GPU here."""
        return on_chosen_gpu(self.backend, self.device)


def baseline_forms(
    model: str | Path,
    threads: int,
    *,
    variants: Iterable[str] = (),
    device: str = "auto",
    trust_remote_code: bool = False,
    request: TaskRequest = CLASSES,
) -> list[Form]:
    """The checkpoint as people run it today, PyTorch in float32 with transformers' own image processor, then variants.

    Args:
        model: checkpoint folder or Hub id.
        threads: CPU threads.
        variants: more ways to run it, of `backends.pytorch.variants`.
        device: "cpu", "cuda", or "auto": a GPU where there is one and the installed PyTorch can use it.
        trust_remote_code: run Python code that comes with the checkpoint.
        request: what it is to answer.

    Raises:
        ModelError: PyTorch is here, and the checkpoint is not, or can't be fetched.
    """
    backend = registry.find(_BASELINE)
    missing = _missing(backend, "cpu")
    if missing is None:  # found out here, not after minutes of measuring the rest
        open_folder(model, trust_remote_code=trust_remote_code)
    name = Path(model).resolve().name if Path(model).exists() else str(model)
    weights = _weights(str(model))
    digest = sha256(weights[0]) if len(weights) == 1 else None
    content = _content(weights)
    size = sum(path.stat().st_size for path in weights) or None
    artifact = ArtifactRef(f"{name}/{weights[0].name}" if len(weights) == 1 else name, digest)
    where = ("cuda" if _pytorch_sees_a_gpu() else "cpu") if device == "auto" else device
    forms = []
    for variant in ("", *variants):
        spec = RunnerSpec(
            backend.name,
            str(model),
            threads,
            where,
            variant,
            trust_remote_code=trust_remote_code,
            request=request.to_json(),
        )
        way, reason = VARIANTS[variant], missing
        if way.tf32 and where == "cpu":
            reason = reason or "TF32 is arithmetic of NVIDIA GPUs, and PyTorch runs on the CPU here"
        form = _form(way.form, spec, artifact, size, reason)
        forms.append(replace(form, content=content, tf32=way.tf32, preprocessed=way.preprocessed))
    return forms


def _content(weights: list[Path]) -> str | None:
    """The SHA-256 of a checkpoint: its weights, and all that its folder says of model and image processor."""
    if not weights:
        return None
    files = sorted({*weights, *weights[0].parent.glob("*.json"), *weights[0].parent.glob("*.py")})
    return hashlib.sha256("".join(f"{path.name}\0{sha256(path)}\n" for path in files).encode()).hexdigest()


def _pytorch_sees_a_gpu() -> bool:
    if not gpus() or registry.find(_BASELINE).missing():
        return False
    import torch

    return bool(torch.cuda.is_available())


def _form(
    name: str,
    spec: RunnerSpec,
    artifact: ArtifactRef,
    size_bytes: int | None,
    reason: str | None,
    check: Callable[[], object] = lambda: None,
    graph: Path | None = None,
) -> Form:
    """A form around a spec; `check` is done before it is opened, and raises where the file is not the right one."""

    def open_it() -> AbstractContextManager[Infers]:
        check()
        return open_runner(spec)

    tf32 = registry.find(spec.backend).tf32
    return Form(
        name,
        spec.backend,
        open_it,
        artifact,
        size_bytes,
        reason,
        spec.device,
        spec,
        graph,
        check,
        artifact.sha256,
        tf32,
    )


def bundle_forms(
    bundle: Bundle, threads: int, *, backends: Iterable[str] | None = None, performance: str = "latency"
) -> list[Form]:
    """Every form of the bundle on every backend it is meant for, the ones that can't run here with their reason.

    The INT8 graph made for TensorRT is the source of its engines; it gets rows of its own (form `int8-tensorrt`) only
    through `choose(..., precisions=["int8-tensorrt"])`, or as `int8` where the bundle has no graph made for CPUs.

    Args:
        backends: names that were asked for; those that `load` takes by name only are here only if they are among them.
        performance: what backends that have the choice are opened for, "latency" or "throughput".
    """
    forms: list[Form] = []
    graphs = bundle.select(kind="onnx")
    specs = [spec for spec in registry.backends() if spec.order is not None or spec.name in (backends or ())]
    for artifact in graphs:
        precision = artifact.precision or "fp32"
        row = spec_of(precision, artifact.target)
        alone = not any(other.precision == artifact.precision and other is not artifact for other in graphs)
        name = precision if row is None or alone else row.report_name
        for spec in specs:
            for offer in spec.offers if spec.takes == "onnx" else ():
                here = offer.package is None or (bool(gpus()) and version(offer.package) is not None)
                if here and offer.takes(artifact, study=True):
                    forms.append(_graph_form(bundle, artifact, name, spec, threads, offer.device, performance))
    for artifact in bundle.select(kind="engine"):
        for spec in specs:
            if spec.takes == "engine" and spec.offer_of(artifact) is not None:
                forms.append(_engine_form(bundle, artifact, spec, threads))
    return sorted(forms, key=_place)


def _place(form: Form) -> tuple[int, str, int]:
    """Tables go from FP32 to INT8, and within that from backend to backend."""
    order, precision = precisions(), form.form.partition("-")[0]
    place = order.index(precision) if precision in order else len(order)
    return place, form.form, registry.names().index(form.backend)


def choose(
    forms: Iterable[Form], backends: Iterable[str] | None = None, precisions: Iterable[str] | None = None
) -> list[Form]:
    """The forms that were asked for; without a wish, all but graphs that only exist to build engines from.

    Raises:
        InputError: nothing of the bundle fits the wish.
    """
    every = list(forms)
    wanted_backends = None if backends is None else set(backends)
    wanted_forms = None if precisions is None else set(precisions)
    chosen = [
        form
        for form in every
        if (wanted_backends is None or form.backend in wanted_backends)
        and (form.form in wanted_forms if wanted_forms is not None else "-" not in form.form)
    ]
    if not chosen:
        there = ", ".join(form.key for form in every) or "no graph and no engine"
        raise InputError("no form of the bundle fits --backend and --precision", hint=f"it has: {there}")
    return chosen


def _graph_form(
    bundle: Bundle, artifact: Artifact, name: str, spec: BackendSpec, threads: int, device: str, performance: str
) -> Form:
    path, hashes = bundle.place(artifact), bundle.hashes(artifact)
    return _form(
        name,
        RunnerSpec(spec.name, str(path), threads, device, performance=performance, hashes=hashes),
        _reference(artifact),
        artifact.size_bytes,
        _missing(spec, device) or spec.unfit(path),
        check=lambda: bundle.file(artifact),
        graph=path,
    )


def _engine_form(bundle: Bundle, artifact: Artifact, spec: BackendSpec, threads: int) -> Form:
    reason = _missing(spec, "cuda") or misfit(artifact, spec, bundle.path)
    built_for = _built_for(artifact.built_with)
    if not gpus():
        reason = f"engine built for {built_for}; no NVIDIA GPU here" if built_for else "no NVIDIA GPU here"
    return _form(
        artifact.precision or "engine",
        RunnerSpec(spec.name, str(bundle.place(artifact)), threads, "cuda"),
        _reference(artifact),
        artifact.size_bytes,
        reason,
        check=lambda: bundle.file(artifact),
    )


def _reference(artifact: Artifact) -> ArtifactRef:
    return ArtifactRef(artifact.path, artifact.sha256)


def _missing(spec: BackendSpec, device: str) -> str | None:
    """Why a backend can't run here, and what to do about it."""
    obstacle, missing = spec.obstacle(), spec.missing()
    if obstacle is not None:
        return f"{obstacle[0]}: {obstacle[1]}"
    if missing is not None:
        return f"the package {missing} is not installed: {spec.install}"
    return "no NVIDIA GPU here" if device == "cuda" and not gpus() else None


def _built_for(built_with: Mapping[str, Any]) -> str | None:
    """The GPUs an engine was built for, as far as its builder wrote it down."""
    for name in ("compute_capabilities", "compute_capability"):
        value = built_with.get(name)
        if value:
            listed = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            return f"compute capability {listed}"
    gpu = built_with.get("gpu")
    return str(gpu) if gpu else None


def _weights(model: str) -> list[Path]:
    """The files that hold a checkpoint's weights: of a local folder, or of the Hub's cache; empty if not found."""
    folder = Path(model)
    if not folder.is_dir():
        return _cached_weights(model)
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    return []


def _cached_weights(model: str) -> list[Path]:
    if importlib.util.find_spec("huggingface_hub") is None:
        return []
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "model.safetensors")
    except HFValidationError:
        return []
    return [Path(found)] if isinstance(found, str) else []

"""Which forms of a bundle there are to judge, and which of them can run on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.bench.accuracy import Infers
from vitdeploy.bench.report import ArtifactRef
from vitdeploy.bench.runners import RunnerSpec, open_runner
from vitdeploy.bench.settings import BACKENDS
from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.errors import InputError, ModelError
from vitdeploy.machine import gpus, kernels_obstacle, version
from vitdeploy.storage import sha256

__all__ = ["Form", "Open", "baseline_forms", "bundle_forms", "choose"]

Open = Callable[[], AbstractContextManager[Infers]]

_VARIANTS = {  # what a way to run PyTorch is called as a form
    "": "fp32",
    "bf16": "bf16-autocast",
    "fp16": "fp16-autocast",
    "compile": "fp32-compile",
    "bf16-compile": "bf16-compile",
}
_PRECISIONS = {"fp32": 0, "fp16": 1, "bf16": 2, "int8": 3}
_MODULES = {  # backend: (what is imported, what the package is called, the extra that installs it)
    "pytorch": ("torch", "torch", "build"),
    "onnxruntime": ("onnxruntime", "onnxruntime", "cpu"),
    "openvino": ("openvino", "openvino", "cpu"),
    "native": ("onnx", "onnx", "native"),
    "tensorrt": ("tensorrt", "tensorrt", "gpu"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx", "rtx"),
}


@dataclass(frozen=True)
class Form:
    """One thing to judge. `open` makes its runner; `reason` says why it can't run here (then `open` is not used).

    `spec` is what another process would open, where there is such a thing; `check` raises where its file is not the
    right one (`open` does that too); `graph` is the ONNX file behind the form.
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

    @property
    def key(self) -> str:
        """What the form is called in a report, unique there."""
        return f"{self.form}/{self.backend}" + ("-cuda" if self.on_gpu_by_choice else "")

    @property
    def on_gpu_by_choice(self) -> bool:
        """Whether a backend that also runs on CPUs runs on a GPU here."""
        return self.device != "cpu" and not self.backend.startswith("tensorrt")


def baseline_forms(
    model: str | Path, threads: int, *, variants: Iterable[str] = (), device: str = "auto"
) -> list[Form]:
    """The checkpoint as people run it today, PyTorch in float32 with transformers' own image processor, then variants.

    Args:
        model: checkpoint folder or Hub id.
        threads: CPU threads.
        variants: more ways to run it: bf16, fp16 (autocast), compile, bf16-compile.
        device: "cpu", "cuda", or "auto": a GPU where there is one and the installed PyTorch can use it.
    """
    name = Path(model).resolve().name if Path(model).exists() else str(model)
    weights = _weights(str(model))
    digest = sha256(weights[0]) if len(weights) == 1 else None
    size = sum(path.stat().st_size for path in weights) or None
    artifact = ArtifactRef(f"{name}/{weights[0].name}" if len(weights) == 1 else name, digest)
    where = ("cuda" if _pytorch_sees_a_gpu() else "cpu") if device == "auto" else device
    forms = []
    for variant in ("", *variants):
        spec = RunnerSpec("pytorch", str(model), threads, where, variant)
        forms.append(_form(_VARIANTS[variant], spec, artifact, size, _missing("pytorch")))
    return forms


def _pytorch_sees_a_gpu() -> bool:
    if not gpus() or _missing("pytorch"):
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

    return Form(name, spec.backend, open_it, artifact, size_bytes, reason, spec.device, spec, graph, check)


def bundle_forms(bundle: Bundle, threads: int) -> list[Form]:
    """Every form of the bundle on every backend it is meant for, the ones that can't run here with their reason.

    The INT8 graph made for TensorRT is the source of its engines; it gets rows of its own (form `int8-tensorrt`) only
    through `choose(..., precisions=["int8-tensorrt"])`, or as `int8` where the bundle has no graph made for CPUs.
    """
    forms: list[Form] = []
    graphs = bundle.select(kind="onnx")
    for artifact in graphs:
        precision = artifact.precision or "fp32"
        alone = not any(other.precision == artifact.precision and other is not artifact for other in graphs)
        name = precision if artifact.target in ("any", "cpu") or alone else f"{precision}-{artifact.target}"
        own = ("native",) if name == "int8" and artifact.target == "cpu" else ()
        forms += [
            _graph_form(bundle, artifact, name, backend, threads) for backend in ("onnxruntime", "openvino", *own)
        ]
        if gpus() and version("onnxruntime-gpu") is not None and artifact.target == "any":
            forms.append(_graph_form(bundle, artifact, name, "onnxruntime", threads, device="cuda"))
    forms += [_engine_form(bundle, artifact, threads) for artifact in bundle.select(kind="engine")]
    return sorted(forms, key=_place)


def _place(form: Form) -> tuple[int, str, int]:
    """Tables go from FP32 to INT8, and within that from backend to backend."""
    return _PRECISIONS.get(form.form.partition("-")[0], 9), form.form, BACKENDS.index(form.backend)


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
    bundle: Bundle, artifact: Artifact, name: str, backend: str, threads: int, *, device: str = "cpu"
) -> Form:
    path = bundle.path / artifact.path
    spec = RunnerSpec(backend, str(path), threads, device)
    return _form(
        name,
        spec,
        _reference(artifact),
        artifact.size_bytes,
        _missing(backend) or (_unfit(path) if backend == "native" else None),
        check=lambda: bundle.file(artifact),
        graph=path,
    )


def _engine_form(bundle: Bundle, artifact: Artifact, threads: int) -> Form:
    flavour = "tensorrt-rtx" if artifact.target.startswith("tensorrt-rtx") else "tensorrt"
    reason: str | None
    if not gpus():
        built_for = _built_for(artifact.built_with)
        reason = f"engine built for {built_for}; no NVIDIA GPU here" if built_for else "no NVIDIA GPU here"
    else:
        reason = _missing(flavour)
    spec = RunnerSpec(flavour, str(bundle.path / artifact.path), threads, "cuda")
    return _form(
        artifact.precision or "engine",
        spec,
        _reference(artifact),
        artifact.size_bytes,
        reason,
        check=lambda: bundle.file(artifact),
    )


def _reference(artifact: Artifact) -> ArtifactRef:
    return ArtifactRef(artifact.path, artifact.sha256)


def _missing(backend: str) -> str | None:
    module, package, extra = _MODULES[backend]
    obstacle = kernels_obstacle() if backend == "native" else None
    if obstacle is not None:
        return f"{obstacle[0]}: {obstacle[1]}"
    if importlib.util.find_spec(module) is None:
        return f"the package {package} is not installed: pip install 'vitdeploy[{extra}]'"
    return None


def _unfit(graph: Path) -> str | None:
    """Why our own kernels can't compute a graph; None if they can."""
    from vitdeploy.runtime.native import check_plain_vit

    try:
        check_plain_vit(graph)
    except ModelError as error:
        return error.message
    return None


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

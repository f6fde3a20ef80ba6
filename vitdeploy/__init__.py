"""vitdeploy: take a Vision Transformer from a checkpoint to a device.

    import vitdeploy

    bundle = vitdeploy.export("runs/vit", "bundles/vit")
    vitdeploy.build(bundle, ["fp16", "int8"], recipe=vitdeploy.Recipe(dataset="photos/"))
    with vitdeploy.load("bundles/vit") as classifier:
        print(classifier.predict("cat.png").label)

All that is public is here; importing this loads nothing of it, and no package beyond the standard library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitdeploy.core.errors import (
    BundleError,
    DatasetError,
    DeadlineError,
    DependencyError,
    EngineError,
    ImageError,
    InputError,
    ModelError,
    OutOfMemoryError,
    OutputExistsError,
    QueueFullError,
    RunnerClosedError,
    VitdeployError,
)

if TYPE_CHECKING:  # the same names as in _LAZY, for type checkers and editors
    from vitdeploy.backends.tensorrt.options import EngineOptions
    from vitdeploy.bench.run import bench
    from vitdeploy.bulk.run import BulkResult, embed_files, predict_files
    from vitdeploy.bulk.settings import BulkSettings
    from vitdeploy.bundle import Artifact, Bundle, Manifest
    from vitdeploy.cli.notebook import show_progress
    from vitdeploy.compiler.build import BuildResult, build
    from vitdeploy.compiler.export import export
    from vitdeploy.compiler.lint.report import LintReport
    from vitdeploy.compiler.lint.run import lint
    from vitdeploy.compiler.quantization.recipe import Recipe
    from vitdeploy.compiler.settings import BuildSettings, ExportSettings
    from vitdeploy.core.specs import (
        Choice,
        EmbeddingSpec,
        Prediction,
        PreprocessSpec,
        ResizeSpec,
        Score,
        ShapeRange,
        TensorSpec,
    )
    from vitdeploy.data.dataset import ImageDataset
    from vitdeploy.data.load import load_dataset
    from vitdeploy.deploy.hub import Pushed, push
    from vitdeploy.doctor import Diagnosis
    from vitdeploy.doctor import examine as doctor
    from vitdeploy.evaluation.limits import Limits
    from vitdeploy.explain.run import Explanation, explain
    from vitdeploy.inspection.bundle import BundleReport, FileReport, inspect
    from vitdeploy.models.tasks import TaskRequest
    from vitdeploy.qat import QatConfig, QatResult, tune
    from vitdeploy.report.comparison import Comparison, compare
    from vitdeploy.report.records import BenchReport
    from vitdeploy.report.settings import BenchSettings
    from vitdeploy.runtime.classifier import Classifier
    from vitdeploy.runtime.loading import load
    from vitdeploy.runtime.verification import Certificate, verify
    from vitdeploy.training.config import FinetuneConfig
    from vitdeploy.training.result import FinetuneResult
    from vitdeploy.training.run import finetune

__version__ = "0.1.0"
__all__ = [
    "Artifact",
    "BenchReport",
    "BenchSettings",
    "BuildResult",
    "BuildSettings",
    "BulkResult",
    "BulkSettings",
    "Bundle",
    "BundleError",
    "BundleReport",
    "Certificate",
    "Choice",
    "Classifier",
    "Comparison",
    "DatasetError",
    "DeadlineError",
    "DependencyError",
    "Diagnosis",
    "EmbeddingSpec",
    "EngineError",
    "EngineOptions",
    "Explanation",
    "ExportSettings",
    "FileReport",
    "FinetuneConfig",
    "FinetuneResult",
    "ImageDataset",
    "ImageError",
    "InputError",
    "Limits",
    "LintReport",
    "Manifest",
    "ModelError",
    "OutOfMemoryError",
    "OutputExistsError",
    "Prediction",
    "PreprocessSpec",
    "Pushed",
    "QatConfig",
    "QatResult",
    "QueueFullError",
    "Recipe",
    "ResizeSpec",
    "RunnerClosedError",
    "Score",
    "ShapeRange",
    "TaskRequest",
    "TensorSpec",
    "VitdeployError",
    "__version__",
    "bench",
    "build",
    "compare",
    "doctor",
    "embed_files",
    "explain",
    "export",
    "finetune",
    "inspect",
    "lint",
    "load",
    "load_dataset",
    "predict_files",
    "push",
    "show_progress",
    "tune",
    "verify",
]

_LAZY = {  # module: what it gives; `bench`, `doctor` and `explain` are modules that can be called
    "bench": "bench BenchSettings",
    "bulk": "BulkResult BulkSettings embed_files predict_files",
    "bundle": "Artifact Bundle Manifest",
    "cli.notebook": "show_progress",
    "compiler.build": "BuildResult build",
    "backends.tensorrt.options": "EngineOptions",
    "compiler.export": "export",
    "compiler.lint.report": "LintReport",
    "compiler.lint.run": "lint",
    "compiler.quantization.recipe": "Recipe",
    "compiler.settings": "BuildSettings ExportSettings",
    "core.specs": "Choice EmbeddingSpec Prediction PreprocessSpec ResizeSpec Score ShapeRange TensorSpec",
    "data": "ImageDataset load_dataset",
    "deploy.hub": "Pushed push",
    "doctor": "Diagnosis doctor",
    "evaluation.limits": "Limits",
    "explain": "Explanation explain",
    "inspection.bundle": "BundleReport FileReport inspect",
    "models.tasks": "TaskRequest",
    "qat": "QatConfig QatResult tune",
    "report.comparison": "Comparison compare",
    "report.records": "BenchReport",
    "runtime": "Classifier load",
    "runtime.verification": "Certificate verify",
    "training": "FinetuneConfig FinetuneResult finetune",
}
_HOME = {name: f"{__name__}.{module}" for module, names in _LAZY.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = import_module(_HOME[name])
    value = globals()[name] = home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

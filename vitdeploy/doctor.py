"""What this machine can do of the whole job, from fine-tuning to TensorRT, and what to install for the rest.

Nothing heavy is imported: a package counts as there when Python would find its module, and its version comes from
its metadata. What a capability needs is written down once, here or in the backend's spec; which versions do is
vitdeploy's own metadata.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from typing import Any

from vitdeploy.backends.registry import BackendSpec, backends, find, packages
from vitdeploy.backends.tensorrt.obstacles import engine_obstacle
from vitdeploy.backends.tensorrt.options import FLAVOURS
from vitdeploy.core import machine
from vitdeploy.core.callable_module import make_callable
from vitdeploy.core.installing import extras_line, ranges

__all__ = ["Capability", "Diagnosis", "Package", "Problem", "examine", "unsuitable"]

_ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_MODULES = {"onnx-ir": "onnx_ir", "cuda-python": "cuda.bindings", "onnxruntime-gpu": "onnxruntime"}
_BY_CUDA = {"tensorrt": ("tensorrt-cu12", "tensorrt-cu13")}  # what pip calls it, by the CUDA it is for
_OF_CUDA = ("cuda-python", "cuda-bindings", "nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12")  # its version is theirs
_TRAINS = ("torch", "transformers", "accelerate", "datasets")
_EXPORTS = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime")
_QUANTISES = ("onnx", "onnx-ir", "onnxruntime")


@dataclass(frozen=True)
class Package:
    """A package that a capability needs. `version` is None where it is not installed, or where a system's own copy
    says none; `problem` says why it is not supported."""

    name: str
    installed: bool
    version: str | None
    problem: str | None = None


@dataclass(frozen=True)
class _Job:
    """A step, what a person calls it, the packages it takes, and, where it is running a backend, which."""

    key: str
    name: str
    packages: tuple[str, ...]
    obstacle: tuple[str, str] | None = None
    runs: BackendSpec | None = None


@dataclass(frozen=True)
class Capability:
    """One step of the job. `reason` and `next_step` say why it can't be done here and what would change that."""

    key: str
    name: str
    available: bool
    packages: tuple[Package, ...]
    reason: str | None = None
    next_step: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Problem:
    """Something about this installation that will hurt later, and how to mend it."""

    message: str
    next_step: str


@dataclass(frozen=True)
class Diagnosis:
    """What `examine` found."""

    python: str
    system: str
    machine: dict[str, Any]
    versions: dict[str, str]
    capabilities: tuple[Capability, ...]
    problems: tuple[Problem, ...]

    def __repr__(self) -> str:
        able = [capability.key for capability in self.capabilities if capability.available]
        return f"<Diagnosis: can {', '.join(able) or 'nothing'}; {len(self.problems)} problems>"

    def capability(self, key: str) -> Capability:
        """The capability of that key; KeyError if there is none."""
        for capability in self.capabilities:
            if capability.key == key:
                return capability
        raise KeyError(key)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data: see `vitdeploy doctor --help`."""
        return {
            "schema_version": 1,
            "python": self.python,
            "system": self.system,
            "machine": self.machine,
            "versions": self.versions,
            "capabilities": [
                {**vars(capability), "packages": [dict(vars(package)) for package in capability.packages]}
                for capability in self.capabilities
            ],
            "problems": [dict(vars(problem)) for problem in self.problems],
        }


def examine() -> Diagnosis:
    """Look at this machine and what is installed on it; takes well under a second.

    Example:
        [c.name for c in examine().capabilities if c.available]
    """
    wanted = ranges()
    return Diagnosis(
        python=platform.python_version(),
        system=machine.system_name(),
        machine=machine.machine(),
        versions=machine.versions(packages()),
        capabilities=tuple(_capability(job, wanted) for job in _jobs()),
        problems=tuple(_problems(wanted)),
    )


def _jobs() -> list[_Job]:
    """The steps from a checkpoint to a device, in that order."""
    graphs = [spec for spec in backends() if spec.takes == "onnx" and spec.order is not None]
    engines = [spec for spec in backends() if spec.takes == "engine"]
    jobs = [
        _Job("finetune", "Fine-tune a checkpoint", _TRAINS),
        _Job("export", "Export to ONNX, FP16", _EXPORTS),
        _Job("quantize", "Quantise to INT8", _QUANTISES),
    ]
    for spec in graphs:
        jobs.append(_run(spec, spec.name, spec.job or f"Run on the CPU: {spec.title}"))
    if machine.version("onnxruntime-gpu"):  # taken by name alone, so nobody without it has to hear of it
        spec = find("onnxruntime-tensorrt")
        jobs.append(_run(spec, "onnxruntime_tensorrt", f"Run by {spec.title}"))
    for spec in map(find, FLAVOURS):
        obstacle = engine_obstacle(spec.name, run=False)
        jobs.append(_Job(_key("build", spec), f"Build {spec.title} engines", (spec.needs[0].package,), obstacle))
    return [*jobs, *(_run(spec, _key("run", spec), spec.job or f"Run {spec.title} engines") for spec in engines)]


def _run(spec: BackendSpec, key: str, name: str) -> _Job:
    return _Job(key, name, tuple(need.package for need in spec.needs), spec.obstacle(), spec)


def _key(step: str, spec: BackendSpec) -> str:
    return f"{step}_{spec.name}".replace("-", "_")


def _capability(job: _Job, ranges: dict[str, str]) -> Capability:
    packages = tuple(_package(need, ranges) for need in job.packages)
    bad = [package for package in packages if package.problem]
    obstacle = job.obstacle
    if obstacle is None and bad:
        reason = "; ".join(f"{package.name} {package.problem}" for package in bad)
        obstacle = reason, _cure(job.runs, bad, ranges)
    if obstacle is not None:
        return Capability(job.key, job.name, False, packages, *obstacle)
    return Capability(job.key, job.name, True, packages, note=_note(job, packages))


def _note(job: _Job, packages: tuple[Package, ...]) -> str | None:
    if job.key == "finetune":
        torch = packages[0].version or ""
        if not machine.gpus():
            return "on the CPU: fine for small models and trials"
        if torch.endswith("+cpu"):
            return "on the CPU: this PyTorch was built without CUDA"
    if job.runs is not None and job.runs.note is not None:
        return job.runs.note()
    if job.runs is not None and "cpu" in job.runs.devices:
        name = machine.products_of_bytes()
        return f"INT8 by {name}" if name else "no INT8 instructions here: INT8 saves memory, little time"
    if job.key == "build_tensorrt_rtx":
        return "needs no GPU; for RTX 30, 40 and 50"
    return None


def _package(name: str, ranges: dict[str, str]) -> Package:
    if name == "onnxruntime":
        # Either distribution has the module; the GPU one runs on the CPU as well.
        name = next((option for option in _ONNXRUNTIMES if machine.version(option)), name)
    number = machine.version(name)
    if number is None and name == "cuda-python":
        number = machine.version("cuda-bindings")
    problem, wanted = None, ranges.get(_BY_CUDA.get(name, (name,))[0], "")
    modules = {need.package: need.module for spec in reversed(backends()) for need in spec.needs} | _MODULES
    if not machine.has_module(modules.get(name, name)):
        problem = "is not installed" if number is None else f"{number} is installed, but its files are not there"
        return Package(name, number is not None, number, problem)
    if number is not None and unsuitable(number, wanted):
        problem = f"{number} is not supported: vitdeploy needs {wanted}"
    return Package(name, True, number, problem)


def _cure(backend: BackendSpec | None, bad: list[Package], ranges: dict[str, str]) -> str:
    """The command that installs what is missing and never puts onnxruntime and onnxruntime-gpu side by side."""
    names = {package.name for package in bad}
    if "tensorrt" in names and machine.jetson_release():
        return "sudo apt install python3-libnvinfer, and use an environment made with --system-site-packages"
    upgrade = any(package.installed for package in bad)
    extra_of = {spec.needs[0].package: spec.extra for spec in reversed(backends())}
    extras = sorted({extra_of.get(name, "build") for name in names if name != "cuda-python"})
    if backend is not None and backend.takes == "onnx":
        extras = [backend.extra]
    clash = {"cpu": "onnxruntime-gpu", "native": "onnxruntime-gpu", "gpu": "onnxruntime"}
    lacks_cuda = "cuda-python" in names and "gpu" not in extras  # the extra rtx does without: it only builds
    if lacks_cuda or any(machine.version(clash[extra]) for extra in extras if extra in clash):
        flags = "--upgrade " if upgrade else ""
        named = sorted(_BY_CUDA.get(name, (name,))[-1] for name in names)
        return f"pip install {flags}" + " ".join(f"'{name}{ranges.get(name, '')}'" for name in named)
    return extras_line(*extras, upgrade=upgrade)


def _problems(ranges: dict[str, str]) -> list[Problem]:
    found = []
    both = [name for name in _ONNXRUNTIMES if machine.version(name)]
    if len(both) == 2:
        keep = "gpu" if machine.gpus() else "cpu"
        found.append(
            Problem(
                "onnxruntime and onnxruntime-gpu are both installed; they overwrite each other's files, so which one"
                " runs is chance",
                f"pip uninstall -y onnxruntime onnxruntime-gpu && {extras_line(keep)}",
            )
        )
    for name in ("click", "numpy", "pillow", "rich"):
        number = machine.version(name)
        if number is not None and unsuitable(number, ranges.get(name, "")):
            problem = f"{name} {number} is not supported: vitdeploy needs {ranges[name]}"
            found.append(Problem(problem, f"pip install --upgrade '{name}{ranges[name]}'"))
    driver = machine.gpus()[0].cuda if machine.gpus() else None
    built = {int(number.partition(".")[0]) for name in _OF_CUDA if (number := machine.version(name))}
    if driver is not None and built and max(built) > int(driver.partition(".")[0]):
        found.append(
            Problem(
                f"packages here are for CUDA {max(built)}, and the driver knows CUDA up to {driver}",
                f"update the driver (CUDA 13 needs 580 or later), or for CUDA 12: {extras_line('gpu-cu12')}",
            )
        )
    gpu = machine.problem_with_gpu()
    if gpu is not None:
        message, _, step = gpu.partition(": ")
        found.append(Problem(message, step))
    return found


def unsuitable(number: str, wanted: str) -> bool:
    """Whether a version lies outside a range such as ">=1.22,<3". Only release numbers are compared.

    Example:
        unsuitable("1.9.1", ">=1.22")  # True
    """
    for condition in filter(None, (part.strip() for part in wanted.split(","))):
        found = re.match(r"(>=|<=|==|!=|>|<)\s*([\d.]+)", condition)
        if found is None:
            continue
        ours, theirs = machine.release(number), machine.release(found[2])
        length = max(len(ours), len(theirs))
        ours, theirs = (value + (0,) * (length - len(value)) for value in (ours, theirs))
        holds = {
            ">=": ours >= theirs,
            "<=": ours <= theirs,
            ">": ours > theirs,
            "<": ours < theirs,
            "==": ours == theirs,
            "!=": ours != theirs,
        }[found[1]]
        if not holds:
            return True
    return False


make_callable(__name__, "examine")

"""What this machine can do of the whole job, from fine-tuning to TensorRT, and what to install for the rest.

Nothing heavy is imported: a package counts as there when Python would find its module, and its version comes from
its metadata. What a capability needs is written down once, in `_NEEDS`; which versions do is vitdeploy's own metadata.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from vitdeploy import machine

__all__ = ["Capability", "Diagnosis", "Package", "Problem", "examine", "unsuitable"]

_ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_MODULES = {"onnx-ir": "onnx_ir", "tensorrt-rtx": "tensorrt_rtx", "cuda-python": "cuda.bindings"}
_MODULES |= dict.fromkeys(_ONNXRUNTIMES, "onnxruntime")
_TRAINS = ("torch", "transformers", "accelerate", "datasets")
_EXPORTS = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime")
_QUANTISES = ("onnx", "onnx-ir", "onnxruntime")
_EXTRAS = {"onnxruntime": "cpu", "openvino": "cpu", "tensorrt": "gpu", "onnxruntime-gpu": "gpu", "tensorrt-rtx": "rtx"}
# (key, what a person calls it, packages)
_NEEDS = (
    ("finetune", "Fine-tune a checkpoint", _TRAINS),
    ("export", "Export to ONNX, FP16", _EXPORTS),
    ("quantize", "Quantise to INT8", _QUANTISES),
    ("onnxruntime", "Run on the CPU: ONNX Runtime", ("onnxruntime",)),
    ("openvino", "Run on the CPU: OpenVINO", ("openvino",)),
    ("native", "Run INT8 on the CPU: own kernels", ("onnxruntime", "onnx")),
    ("build_tensorrt", "Build TensorRT engines", ("tensorrt",)),
    ("build_tensorrt_rtx", "Build TensorRT-RTX engines", ("tensorrt-rtx",)),
    ("run_tensorrt", "Run TensorRT engines", ("tensorrt", "cuda-python")),
    ("run_tensorrt_rtx", "Run TensorRT-RTX engines", ("tensorrt-rtx", "cuda-python")),
)
# What makes INT8 fast on a CPU, and what it is called.
_INT8 = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "i8mm": "ARM I8MM",
    "asimddp": "ARM dot product",
}
_RTX_SINCE = 7.5  # compute capability: Turing


@dataclass(frozen=True)
class Package:
    """A package that a capability needs. `version` is None where it is not installed, or where a system's own copy
    says none; `problem` says why it does not do."""

    name: str
    installed: bool
    version: str | None
    problem: str | None = None


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
    ranges = _ranges()
    return Diagnosis(
        python=platform.python_version(),
        system=machine.system_name(),
        machine=machine.machine(),
        versions=machine.versions(),
        capabilities=tuple(_capability(key, name, packages, ranges) for key, name, packages in _NEEDS),
        problems=tuple(_problems(ranges)),
    )


def _capability(key: str, name: str, needs: tuple[str, ...], ranges: dict[str, str]) -> Capability:
    packages = tuple(_package(need, ranges) for need in needs)
    bad = [package for package in packages if package.problem]
    obstacle = _obstacle(key)
    if obstacle is None and bad:
        obstacle = "; ".join(f"{package.name} {package.problem}" for package in bad), _cure(key, bad, ranges)
    if obstacle is not None:
        return Capability(key, name, False, packages, *obstacle)
    return Capability(key, name, True, packages, note=_note(key, packages))


def _obstacle(key: str) -> tuple[str, str] | None:
    """What about the machine itself, whatever is installed, forbids it; and the next step."""
    if key == "native":
        return machine.kernels_obstacle()
    if not key.endswith(("tensorrt", "tensorrt_rtx")):
        return None
    run, flavour = key.startswith("run"), "tensorrt-rtx" if key.endswith("rtx") else "tensorrt"
    obstacle = machine.engine_obstacle(flavour, run=run)
    if obstacle is not None:
        return obstacle
    gpus = machine.gpus()
    if key == "run_tensorrt_rtx" and all(float(gpu.compute_capability) < _RTX_SINCE for gpu in gpus):
        return f"{gpus[0].name} is older than Turing (compute capability 7.5)", "use TensorRT or the CPU forms"
    return None


def _note(key: str, packages: tuple[Package, ...]) -> str | None:
    if key == "finetune":
        torch = packages[0].version or ""
        if not machine.gpus():
            return "on the CPU: fine for small models and trials"
        if torch.endswith("+cpu"):
            return "on the CPU: this PyTorch was built without CUDA"
    if key in ("onnxruntime", "openvino"):
        flags = machine.cpu_flags()
        name = next((name for flag, name in _INT8.items() if flag in flags), None)
        return f"INT8 by {name}" if name else "no INT8 instructions here: INT8 saves memory, little time"
    if key == "build_tensorrt_rtx":
        return "needs no GPU; for RTX 30, 40 and 50"
    return None


def _package(name: str, ranges: dict[str, str]) -> Package:
    if name == "onnxruntime":
        # Either distribution has the module; the GPU one runs on the CPU as well.
        name = next((option for option in _ONNXRUNTIMES if machine.version(option)), name)
    number = machine.version(name)
    if number is None and name == "cuda-python":
        number = machine.version("cuda-bindings")
    problem, wanted = None, ranges.get(name, "")
    if not machine.has_module(_MODULES.get(name, name)):
        problem = "is not installed" if number is None else f"{number} is installed, but its files are not there"
        return Package(name, number is not None, number, problem)
    if number is not None and unsuitable(number, wanted):
        problem = f"{number} does not do: vitdeploy needs {wanted}"
    return Package(name, True, number, problem)


def _cure(key: str, bad: list[Package], ranges: dict[str, str]) -> str:
    """The command that installs what is missing and never puts onnxruntime and onnxruntime-gpu side by side."""
    names = {package.name for package in bad}
    if "tensorrt" in names and machine.jetson_release():
        return "sudo apt install python3-libnvinfer, and use an environment made with --system-site-packages"
    flags = "--upgrade " if any(package.installed for package in bad) else ""
    rest = "native" if key == "native" else "build"
    extras = sorted({_EXTRAS.get(name, rest) for name in names if name != "cuda-python"})
    clash = {"cpu": "onnxruntime-gpu", "gpu": "onnxruntime"}
    lacks_cuda = "cuda-python" in names and "gpu" not in extras  # the extra rtx does without: it only builds
    if lacks_cuda or any(machine.version(clash[extra]) for extra in extras if extra in clash):
        return f"pip install {flags}" + " ".join(f"'{name}{ranges.get(name, '')}'" for name in sorted(names))
    return f"pip install {flags}'vitdeploy[{','.join(extras)}]'"


def _problems(ranges: dict[str, str]) -> list[Problem]:
    found = []
    both = [name for name in _ONNXRUNTIMES if machine.version(name)]
    if len(both) == 2:
        keep = "gpu" if machine.gpus() else "cpu"
        found.append(
            Problem(
                "onnxruntime and onnxruntime-gpu are both installed; they overwrite each other's files, so which one"
                " runs is chance",
                f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'vitdeploy[{keep}]'",
            )
        )
    for name in ("click", "numpy", "pillow", "rich"):
        number = machine.version(name)
        if number is not None and unsuitable(number, ranges.get(name, "")):
            problem = f"{name} {number} does not do: vitdeploy needs {ranges[name]}"
            found.append(Problem(problem, f"pip install --upgrade '{name}{ranges[name]}'"))
    gpu = machine.problem_with_gpu()
    if gpu is not None:
        message, _, step = gpu.partition(": ")
        found.append(Problem(message, step))
    return found


def _ranges() -> dict[str, str]:
    """{package: its version range} as vitdeploy's metadata says it; empty where vitdeploy itself is not installed."""
    try:
        requirements = metadata.requires("vitdeploy") or []
    except metadata.PackageNotFoundError:
        return {}
    ranges = {}
    for requirement in requirements:
        found = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*\(?([<>=!~][^;)]*)?", requirement)
        if found and found[2]:
            ranges[found[1].lower()] = found[2].strip()
    return ranges


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

"""The ONNX forms that a bundle can hold, as facts that every part may read: names, files, orders.

One row a graph, in the order of tables. What makes a form, its passes and checks, is its row in `compiler/forms.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "FORMS",
    "FormSpec",
    "asked_by",
    "engine_order",
    "form_names",
    "load_order",
    "precisions",
    "register",
    "spec_of",
    "title",
]


@dataclass(frozen=True)
class FormSpec:
    """One graph of a bundle.

    Args:
        precision: what options, manifests and `load` call it, "fp16"; graphs of several targets share one.
        title: the precision for people, "FP16".
        target: what the graph is made for: "any", "cpu" or "tensorrt".
        file: its path in the bundle; "": model.PRECISION.onnx.
        report_name: what reports call it; "": the precision. Names with a "-" are measured on request only.
        cpu_place: its place among the forms that `load` takes on a CPU, the lowest first.
        cuda_place: the same on ONNX Runtime's CUDA provider; None: never there.
        engine_place: the same among engines; None: no engines are built from it.
        compute_capability: the least that a GPU must have for its engines; 0: any.
        colours: of its marks in a report, on a light page and on a dark one; one pair a precision.
    """

    precision: str
    title: str
    target: str = "any"
    file: str = ""
    report_name: str = ""
    cpu_place: int | None = 99
    cuda_place: int | None = None
    engine_place: int | None = None
    compute_capability: float = 0.0
    colours: tuple[str, str] = ("#6b7280", "#9ca3af")

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", self.file or f"model.{self.precision}.onnx")
        object.__setattr__(self, "report_name", self.report_name or self.precision)

    @property
    def key(self) -> tuple[str, str]:
        return self.precision, self.target


_BLUE, _VIOLET = ("#3b6fb6", "#7aa8e8"), ("#8a4fbf", "#c39bee")
_AMBER, _TEAL = ("#b7791f", "#e3b35a"), ("#0f8a7e", "#43cfbf")
_ROSE = ("#b83b6f", "#ee8fb5")
FORMS = {
    spec.key: spec
    for spec in (
        FormSpec("fp32", "FP32", file="model.onnx", cpu_place=2, cuda_place=2, engine_place=5, colours=_BLUE),
        FormSpec("fp16", "FP16", cpu_place=3, cuda_place=1, engine_place=3, colours=_VIOLET),
        FormSpec("bf16", "BF16", cpu_place=4, engine_place=4, colours=_AMBER),  # many CPUs compute 16 bits in float32
        FormSpec(
            "int8", "INT8", "tensorrt", report_name="int8-tensorrt", cpu_place=None, engine_place=1, colours=_TEAL
        ),
        FormSpec("int8", "INT8", "cpu", "model.int8-cpu.onnx", cpu_place=1, colours=_TEAL),
        FormSpec(
            "fp8", "FP8", "tensorrt", cpu_place=None, engine_place=2, compute_capability=8.9, colours=_ROSE
        ),  # Ada, Hopper, Blackwell
    )
}
"""By (precision, target). `register` adds to it."""


def register(spec: FormSpec) -> None:
    """Make a form known, behind the others."""
    FORMS[spec.key] = spec


def precisions() -> tuple[str, ...]:
    """Every precision, in the order of tables."""
    return tuple(dict.fromkeys(spec.precision for spec in FORMS.values()))


def asked_by() -> str:
    """The options that ask for a form, for a sentence."""
    return f"{', '.join(f'--{name}' for name in precisions())} or more of them"


def form_names() -> tuple[str, ...]:
    """Every form as reports call it, in the order of tables."""
    order = precisions()
    specs = sorted(FORMS.values(), key=lambda spec: (order.index(spec.precision), spec.report_name))
    return tuple(spec.report_name for spec in specs)


def load_order(device: str) -> tuple[str, ...]:
    """Precisions of the ONNX forms that run on "cpu" or "cuda", the one to take first at the front."""
    return _ranked(lambda spec: spec.cpu_place if device == "cpu" else spec.cuda_place)


def engine_order() -> tuple[str, ...]:
    """Precisions that engines are built in, the one to take first at the front."""
    return _ranked(lambda spec: spec.engine_place)


def _ranked(place: Callable[[FormSpec], int | None]) -> tuple[str, ...]:
    ranked = [(rank, spec.precision) for spec in FORMS.values() if (rank := place(spec)) is not None]
    return tuple(dict.fromkeys(precision for _, precision in sorted(ranked, key=lambda entry: entry[0])))


def spec_of(precision: str | None, target: str) -> FormSpec | None:
    """The form of an artifact; None where this version does not know it."""
    return FORMS.get((precision or "", target))


def title(precision: str) -> str:
    """A precision for people: "FP16"."""
    return next((spec.title for spec in FORMS.values() if spec.precision == precision), precision.upper())

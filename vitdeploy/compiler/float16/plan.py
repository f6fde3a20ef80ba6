"""Images -> which nodes half precision would spoil, each with the reason: they stay in FP32.

A probe graph computes each operation twice on the same float32 inputs: as it is, and as half precision would have it,
with inputs, weights and result rounded to float16.

    largest  =  max |y|
    SQNR     =  10 log10( |y|^2 / |y - round(op(round(x)))|^2 )      rounding alone: 70 dB and more

A node is kept where `largest`, with room for images that are not in the sample, leaves float16 (residual streams with
massive activations), where a weight does, or where the SQNR is low: an operation that subtracts nearly equal numbers,
a softmax of logits so large that their rounding shows, results that vanish below 6e-8. Whatever reads or makes the
tensor that must not be rounded is kept with it. The border is then moved to where it needs the fewest casts.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy import __version__
from vitdeploy.bundle import Artifact, Bundle, BundleEditor
from vitdeploy.compiler.float16.cast import count_casts, fewer_casts, model_nodes
from vitdeploy.compiler.passes.save import save
from vitdeploy.compiler.passes.values import constant, new_initializer
from vitdeploy.compiler.samples import check_batches, static_size
from vitdeploy.core import progress
from vitdeploy.core.decoding import decode
from vitdeploy.core.errors import BundleError
from vitdeploy.core.operators import MOVES
from vitdeploy.core.storage import read_json
from vitdeploy.evaluation.batches import check_size, open_session

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.data import ImageDataset

__all__ = ["HEADROOM", "LOWEST_SQNR_DB", "HalfPlan", "KeptNode", "plan_for", "plan_half"]

LARGEST = float(np.finfo(np.float16).max)
HEADROOM = 4.0  # other images may reach this much further than the sample's
LOWEST_SQNR_DB = 30.0  # 3 % of the result's size
_FILE = "half.json"
_IMAGES = 32
_CONTROL = ("If", "Loop", "Scan", "Cast", "Shape", "Range", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class KeptNode:
    """A node that stays in FP32, and why."""

    node: str
    why: str


@dataclass(frozen=True)
class HalfPlan:
    """What FP16 keeps in FP32: `kept` in graph order, the number of casts around them, and the images looked at."""

    model_sha256: str
    images: dict[str, Any]
    kept: tuple[KeptNode, ...]
    casts: int
    largest: float
    largest_node: str

    @property
    def names(self) -> frozenset[str]:
        return frozenset(entry.node for entry in self.kept)

    def __str__(self) -> str:
        if not self.kept:
            return f"FP16: no node needs FP32; the largest value is {self.largest:,.0f} of {LARGEST:,.0f}"
        return f"FP16: {len(self.kept)} nodes stay in FP32, with {self.casts} casts; {self.kept[0].why}"

    def dumps(self) -> str:
        data = {"schema_version": 1, "vitdeploy": __version__, **asdict(self)}
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> HalfPlan:
        """Read what `dumps` gave.

        Raises:
            BundleError: it is damaged.
        """
        try:
            plan: HalfPlan = decode(cls, read_json(path))
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} can't be read: {error}", hint="build it again with --force") from error
        return plan


def plan_for(
    bundle: Bundle, editor: BundleEditor, single: Artifact, images: ImageDataset | None, *, force: bool
) -> tuple[HalfPlan, str]:
    """The bundle's plan for half precision, made if there is none for this model and these images, and its SHA-256.

    Args:
        single: the FP32 graph.
        images: what to look for large values on; None: what the bundle's plan was made with, or else the
            photographs, shapes and noise that the export was checked with.
    """
    cached = next((a for a in bundle.select(kind="half-plan") if a.built_from == single.sha256), None)
    described = {"name": "photographs, shapes and noise"} if images is None else _describe(images)
    if cached is not None and not force:
        plan = HalfPlan.load(bundle.file(cached))
        if images is None or plan.images == described:
            return plan, cached.sha256
    path = bundle.file(single)
    if images is None:
        size = static_size(bundle)
        plan = plan_half(path, single.sha256, [image for batch in check_batches(size) for image in batch], described)
    else:
        first = (images.image(index) for index in range(min(_IMAGES, len(images))))
        plan = plan_half(path, single.sha256, first, described)
    progress.note(str(plan))
    editor.path_for(_FILE).write_text(plan.dumps(), encoding="utf-8")
    made = editor.add(
        _FILE, kind="half-plan", built_from=single.sha256, built_with={"vitdeploy": __version__, "images": described}
    )
    return plan, made.sha256


def _describe(images: ImageDataset) -> dict[str, Any]:
    return {**images.describe(), "looked_at": min(_IMAGES, len(images))}


@dataclass
class _Measured:
    """Of one node over all images."""

    largest: float = 0.0
    signal: float = 0.0
    noise: float = 0.0

    def add(self, largest: float, signal: float, noise: float) -> None:
        self.largest, self.signal, self.noise = max(self.largest, largest), self.signal + signal, self.noise + noise

    @property
    def sqnr_db(self) -> float:
        if not np.isfinite(self.noise):
            return -np.inf
        return float(10 * (np.log10(max(self.signal, 1e-300)) - np.log10(max(self.noise, 1e-300))))


def plan_half(path: Path, model_sha256: str, images: Iterable[np.ndarray], described: dict[str, Any]) -> HalfPlan:
    """Run the FP32 graph and its half-precision twin, node by node, over images.

    Args:
        path: model.onnx of a bundle.
        images: uint8 (height, width, 3) each, any mix of sizes.
        described: what they are, for the record.
    """
    import onnx_ir as ir

    model = ir.load(path)
    nodes = model_nodes(model)
    measured = _measure(path, images)
    wide: dict[ir.Value, str] = {}
    why: dict[ir.Node, str] = {}
    for node in nodes:
        found = measured.get(node.name or "")
        if found is not None:
            _reasons_of(node, found, wide, why)
    for node in nodes:  # in graph order, so that what passes a wide tensor on is seen before its readers
        reasons = [wide[value] for value in (*node.inputs, *node.outputs) if value in wide]
        if reasons:
            why.setdefault(node, reasons[0])
            if node.op_type in MOVES:
                wide.update(dict.fromkeys(node.outputs, reasons[0]))
    kept = fewer_casts(nodes, set(why))
    top = max(measured, key=lambda name: measured[name].largest, default="")
    return HalfPlan(
        model_sha256=model_sha256,
        images=described,
        kept=tuple(
            KeptNode(node.name or "", why.get(node, "between nodes that are kept: saves casts"))
            for node in nodes
            if node in kept
        ),
        casts=count_casts(nodes, kept),
        largest=measured[top].largest if top else 0.0,
        largest_node=top,
    )


def _reasons_of(node: ir.Node, found: _Measured, wide: dict[ir.Value, str], why: dict[ir.Node, str]) -> None:
    """Say which tensors around a node must not be rounded."""
    weights = [array for value in node.inputs if (array := constant(value)) is not None and array.dtype == np.float32]
    largest = max((float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) for array in weights), default=0.0)
    if largest > LARGEST:
        why[node] = f"{node.name} has a weight of {largest:.4g}; float16 ends at {LARGEST:,.0f}"
    if found.largest * HEADROOM > LARGEST:
        text = f"{node.name} reaches {found.largest:,.0f}; float16 ends at {LARGEST:,.0f}"
        wide.update(dict.fromkeys(node.outputs, text))
    elif found.sqnr_db < LOWEST_SQNR_DB and found.signal > 0:
        text = f"{node.name} keeps {found.sqnr_db:.0f} dB in float16, under {LOWEST_SQNR_DB:.0f}"
        why.setdefault(node, text)
        inputs = [value for value in node.inputs if value is not None and constant(value) is None]
        for value in (*inputs, *(node.outputs if found.largest < 1e-3 else ())):
            _widen(value, text, wide)


def _widen(value: ir.Value, text: str, wide: dict[ir.Value, str]) -> None:
    """A tensor, and what it was before it was moved around."""
    wide.setdefault(value, text)
    node = value.producer()
    if node is not None and node.op_type in MOVES and node.inputs[0] is not None:
        _widen(node.inputs[0], text, wide)


def _measure(path: Path, images: Iterable[np.ndarray]) -> dict[str, _Measured]:
    """Every node that computes something in float32, by name."""
    import onnx_ir as ir

    model = ir.load(path)
    names = _add_probes(model)
    measured = {name: _Measured() for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch) / "probe.onnx"
        save(model, probe, external=True)
        session = open_session(probe, fuse=False)
        with progress.task("Looking for values that FP16 can't hold", unit="images") as step:
            for image in images:
                check_size(session, image)
                numbers = session.run(["probes"], {"image": image[np.newaxis]})[0].reshape(len(names), 3)
                for name, row in zip(names, numbers.astype(float), strict=True):
                    measured[name].add(*row)
                step.advance()
    return measured


def _add_probes(model: ir.Model) -> list[str]:
    """Give the graph one output, probes: (largest, signal, noise) of each node, whose names are returned."""
    import onnx_ir as ir

    graph = model.graph
    rounded: dict[ir.Value, ir.Value] = {}
    one = new_initializer(graph, "probe.one", np.array([1], dtype=np.int64))
    names: list[str] = []
    results: list[ir.Value] = []

    def add(op_type: str, inputs: list[ir.Value | None], **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes)
        graph.append(node)
        out: ir.Value = node.outputs[0]
        return out

    def half(value: ir.Value | None) -> ir.Value | None:
        if value is None or value.dtype != ir.DataType.FLOAT:
            return value
        if value not in rounded:
            down = add("Cast", [value], to=ir.DataType.FLOAT16)
            rounded[value] = add("Cast", [down], to=ir.DataType.FLOAT)
        return rounded[value]

    for node in model_nodes(model):
        out = node.outputs[0]
        if node.op_type in (*MOVES, *_CONTROL) or out.dtype != ir.DataType.FLOAT or len(node.outputs) != 1:
            continue
        twin = ir.Node(node.domain, node.op_type, [half(value) for value in node.inputs], node.attributes.values())
        graph.append(twin)
        back = add("Cast", [add("Cast", [twin.outputs[0]], to=ir.DataType.FLOAT16)], to=ir.DataType.FLOAT)
        noise = add("ReduceSumSquare", [add("Sub", [out, back])], keepdims=0)
        parts = (add("ReduceMax", [add("Abs", [out])], keepdims=0), add("ReduceSumSquare", [out], keepdims=0), noise)
        results += [add("Reshape", [part, one]) for part in parts]
        names.append(node.name or "")
    probes = add("Concat", list(results), axis=0)
    probes.name, probes.type, probes.shape = "probes", ir.TensorType(ir.DataType.FLOAT), ir.Shape([len(results)])
    graph.outputs[:] = [probes]
    return names

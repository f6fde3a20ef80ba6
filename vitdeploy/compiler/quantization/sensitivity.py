"""What the model loses when only one layer is in INT8: each layer's signal-to-noise ratio, share of MACs and drop, or
of an embedding what it keeps of the vectors.

A model with one layer in INT8 is FP32 up to that layer. So the pictures walk through the graph once, from cut to cut,
where a cut is a place that a single tensor passes (the residual stream between two blocks); each layer is judged by
running only what is behind the last cut in front of it. Half of the work of running each model whole, and in memory
there are two tensors of all pictures, whatever the number of layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.compiler.float16.cast import model_nodes
from vitdeploy.compiler.lint.graph import product_macs
from vitdeploy.compiler.passes.cut import cut
from vitdeploy.compiler.passes.values import constant
from vitdeploy.compiler.quantization.calibration import Calibration
from vitdeploy.compiler.quantization.insert_qdq import quantize
from vitdeploy.compiler.quantization.layers import QuantLayers
from vitdeploy.compiler.quantization.qparams import decibels
from vitdeploy.core import progress
from vitdeploy.evaluation.batches import BATCH, answer_name, open_session, values_of
from vitdeploy.evaluation.limits import NEIGHBOURS
from vitdeploy.evaluation.paired import PairedDrop, Truth, compare_answers
from vitdeploy.evaluation.vectors import Comparison, VectorQuality
from vitdeploy.models.tasks import EMBEDDING, kind_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["LayerReport", "analyze_layers"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LayerReport:
    """One group of layers.

    `macs_share` is its part of the model's multiply-accumulates, 0..1; `sqnr_db` the signal-to-noise ratio of its own
    output on calibration images. Of the model with only this group in INT8: `logits_db` is the ratio of its answers,
    logits or vectors, `kept` what they keep of FP32's.
    """

    layer: str
    kind: str
    macs_share: float
    sqnr_db: float
    logits_db: float
    kept: PairedDrop | VectorQuality

    @property
    def damage(self) -> float:
        """Noise power of the answers per share of MACs, relative to their power: who should leave INT8 first."""
        return 10 ** (-self.logits_db / 10) / max(self.macs_share, 1e-9)

    @property
    def costs(self) -> dict[str, float | None]:
        """By name: `drop` in points and `agreement` in per cent; of an embedding the drop of the classifier by
        neighbours (None: the images have no classes), how often the nearest is the same, and `cosine` and `recall`."""
        kept = self.kept
        if isinstance(kept, PairedDrop):
            return {"drop": kept.drop, "agreement": kept.agreement}
        assert kept.neighbour is not None and kept.cosine is not None and kept.recall is not None
        return {
            "drop": None if kept.delta is None else 0.0 - 100 * kept.delta,  # of none +0, not -0
            "agreement": 100 * kept.neighbour.value,
            "cosine": kept.cosine.value,
            "recall": kept.recall.value,
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "kind": self.kind,
            "macs_share": round(self.macs_share, 5),
            "sqnr_db": round(self.sqnr_db, 2),
            "logits_db": round(self.logits_db, 2),
            **{name: None if value is None else round(value, 4) for name, value in self.costs.items()},
        }


@dataclass(frozen=True)
class _Unit:
    """What can be left out of INT8: its name, kind, SQNR, products, and where its graph changes first."""

    name: str
    kind: str
    sqnr_db: float
    products: tuple[ir.Node, ...]
    first: ir.Node


def analyze_layers(
    model_path: Path, calibration: Calibration, truth: Truth, layers: QuantLayers | None = None
) -> list[LayerReport]:
    """Judge each group of the calibration on its own, in the order of the graph.

    Args:
        layers: those of the graph, or of another copy of it; None: look for them.
    """
    import onnx_ir as ir

    model = ir.load(model_path)
    layers = QuantLayers.find_in_file(model_path, calibration.recipe) if layers is None else layers
    nodes = list(model.graph)
    order = {node: index for index, node in enumerate(nodes)}
    units = sorted(_units(layers.on(model), calibration), key=lambda unit: order[unit.first])
    macs = {node: product_macs(node) for node in model_nodes(model) if node.op_type in ("MatMul", "Gemm", "Conv")}
    cuts = _cuts(nodes)
    walk = _Walk(model_path, truth, layers)
    reports = []
    with progress.task("Judging layers", total=len(units), unit="groups") as step:
        for unit in units:
            walk.to(max((place for place in cuts if place[0] < order[unit.first]), default=None))
            answers = walk.answers(calibration.leaving_out(set(calibration.names) - {unit.name}))
            noise = float(np.square(answers - walk.reference, dtype=np.float64).mean())
            spread = float(np.square(walk.reference - walk.reference.mean(), dtype=np.float64).mean())
            reports.append(
                LayerReport(
                    unit.name,
                    unit.kind,
                    sum(macs[node] for node in unit.products) / max(1, sum(macs.values())),
                    unit.sqnr_db,
                    decibels(spread, noise),
                    walk.kept(answers),
                )
            )
            step.advance()
    return reports


def _units(layers: QuantLayers, calibration: Calibration) -> list[_Unit]:
    units = []
    for qparams in calibration.groups:
        group = layers.groups[qparams.name]
        units.append(_Unit(qparams.name, group.kind, qparams.sqnr_db, group.products, group.products[0]))
    for found in calibration.attention:
        pair = layers.attention[found.name]
        units.append(_Unit(found.name, "attention", found.sqnr_db, (pair.scores, pair.mixing), pair.scores))
    return units


def _cuts(nodes: list[ir.Node]) -> list[tuple[int, str]]:
    """(position, name) of each value that alone connects the nodes up to that position with those behind it.

    Only LayerNormalization reads and additions count: smoothing changes what is inside a block, not what is between.
    """
    last = {}
    for index, node in enumerate(nodes):
        for value in node.inputs:
            if value is not None and constant(value) is None:
                last[value] = index
    cuts = []
    live: set[ir.Value] = set()
    for index, node in enumerate(nodes):
        live = {value for value in live if last.get(value, -1) > index}
        live |= {value for value in node.outputs if last.get(value, -1) > index}
        if len(live) == 1:
            (value,) = live
            readers = {use.node.op_type for use in value.uses()}
            if value.name and "LayerNormalization" in readers and "Add" in readers:
                cuts.append((index, value.name))
    return cuts


class _Walk:
    """The pictures on their way through the FP32 graph: what arrives at the current cut, all of them."""

    def __init__(self, model_path: Path, truth: Truth, layers: QuantLayers) -> None:
        self._path, self._truth, self._layers = model_path, truth, layers
        self._cut: tuple[int, str] | None = None
        self._arrived: np.ndarray | None = None
        session = open_session(model_path)
        self._answer = answer_name(session)
        self._vectors = kind_of(self._answer) is EMBEDDING
        self.reference = self._run(session, self._answer)

    def to(self, place: tuple[int, str] | None) -> None:
        """Go on to that cut; cuts come in the order of the graph."""
        if place is None or place == self._cut:
            return
        self._arrived = self._run(open_session(cut(self._load(), self._name, place[1])), place[1])
        self._cut = place

    @property
    def _name(self) -> str | None:
        return None if self._cut is None else self._cut[1]

    def answers(self, calibration: Calibration) -> np.ndarray:
        """Answers of the quantised graph, from the current cut on."""
        model = self._load()
        quantize(model, calibration, scheme=calibration.coarser, layers=self._layers)
        return self._run(open_session(cut(model, self._name, self._answer)), self._answer)

    def kept(self, answers: np.ndarray) -> PairedDrop | VectorQuality:
        """What answers of all pictures keep of FP32's."""
        classes = self._truth.classes
        if self._vectors:
            return Comparison(answers, self.reference, classes, NEIGHBOURS).quality
        assert classes is not None
        return compare_answers(answers, self.reference, classes)

    def _load(self) -> ir.Model:
        import onnx_ir as ir

        return ir.load(self._path)

    def _run(self, session: Any, wanted: str) -> np.ndarray:
        if self._arrived is None:
            return values_of(session, wanted, self._truth.images)
        starts = range(0, len(self._arrived), BATCH)
        parts = [session.run([wanted], {self._name: self._arrived[i : i + BATCH]})[0] for i in starts]
        return np.concatenate(parts)

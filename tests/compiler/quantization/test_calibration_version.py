"""The calibration's version number: whoever changes what calibration finds, or the graphs made of it, must raise it.

python -m tests.compiler.quantization.test_calibration_version writes the golden file of a new version.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.quantization import images
from tests.tools.record_invariants import arrays, record_graph
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.build import build
from vitdeploy.compiler.quantization import calibration
from vitdeploy.compiler.quantization.calibration import ALGORITHM, Calibration, calibrate
from vitdeploy.compiler.quantization.observers import activations
from vitdeploy.compiler.quantization.recipe import METHODS, Recipe

GOLDEN = Path(__file__).with_name("calibration.golden.json")
FROZEN = Path(__file__).parents[2] / "frozen" / "schema-1"
PLAIN = FROZEN / "plain" / "model.onnx"
WINDOWS = Path(__file__).with_name("swin.golden.onnx")
"""The FP32 graph of an encoder that is no plain ViT: tokens lie in windows, attention is not rewritten. It was
exported once, of the tiny Swin in `tests.tools.families` at 64 pixels and a width of 16: both stages have windows."""
EVERYTHING = {"attention": True, "patch_embedding": True, "classifier": True}
CASES = {
    "default": (PLAIN, Recipe()),
    **{method: (PLAIN, Recipe(method=method, percentile=99.0, smoothing=False)) for method in METHODS},
    "everything": (PLAIN, Recipe(**EVERYTHING)),
    "uncorrected": (PLAIN, Recipe(**EVERYTHING, bias_correction=False)),
    "windows": (WINDOWS, Recipe()),
    "windows, everything": (WINDOWS, Recipe(**{**EVERYTHING, "attention": False})),
}


def numbers(graph: Path, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What calibration finds for a fixed model on fixed images, per layer; of each vector its norm."""
    pictures = images(16)
    found = calibrate(graph, "hash", pictures, len(pictures), recipe, {})
    return {layer.name: dict(_entries(vars(layer))) for layer in (*found.groups, *found.attention)}


def _entries(layer: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    for name, value in layer.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{part}", _norm(vector)) for part, vector in value.items())
        elif isinstance(value, np.ndarray):
            yield name, _norm(value)
        elif name not in ("name", "sqnr_db"):  # the ratio is reported, and nothing is made from it
            yield name, value


def _norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector.astype(np.float64)))


def graphs(work: Path) -> dict[str, dict[str, Any]]:
    """The INT8 graphs that are made from fixed calibrations: digests of nodes and integers, and the floats' norm."""
    found = {}
    for name in ("plain", "attention"):
        bundle = shutil.copytree(FROZEN / name, work / name)
        for form in bundle.glob("model.int8*.onnx"):
            form.unlink()
        made = build(bundle, ["int8"], target="onnx").bundle
        for artifact in made.select(kind="onnx", precision="int8"):
            graph, values = record_graph(made.file(artifact)), arrays(made.file(artifact))
            integers = [text for key, text in graph["constants"].items() if values[key].dtype.kind in "iu"]
            floats = [value for value in values.values() if value.dtype.kind == "f"]
            found[f"{name}/{artifact.path}"] = {
                "structure": graph["structure"],
                "integers": hashlib.sha256("\n".join(sorted(integers)).encode()).hexdigest(),
                "floats": sum(map(_norm, floats)),
            }
    return found


def differences(found: dict[str, dict[str, Any]], golden: dict[str, dict[str, Any]]) -> tuple[list[str], float]:
    """The entries that differ, and their share of all."""
    assert found.keys() == golden.keys()
    places = [(layer, key) for layer in golden for key in golden[layer].keys() | found[layer].keys()]
    other = [
        f"{layer} {key}: {golden[layer].get(key)} -> {found[layer].get(key)}"
        for layer, key in places
        if not _close(key, found[layer].get(key), golden[layer].get(key))
    ]
    return other, len(other) / len(places)


def _close(key: str, found: float | None, golden: float | None) -> bool:
    if found is None or golden is None:
        return found is golden
    # A bias corrects the mean of rounding errors, some of which are ties; a shift is one of 256 steps.
    tolerance = 3e-4 if "bias" in key else 1 if key == "shift" else 1e-5
    return math.isclose(found, golden, rel_tol=1e-3, abs_tol=tolerance)


TIES = 0.1
"""Share of the entries that may differ: another processor sums in another order, and where two ranges are equally good
it takes the other one, with the scale, the shift and the biases that follow from it."""


def test_the_golden_file_is_of_this_version() -> None:
    assert json.loads(GOLDEN.read_text())["algorithm"] == ALGORITHM, "write the golden file of the new version"


@pytest.mark.parametrize("case", CASES)
def test_other_numbers_need_another_version(case: str) -> None:
    golden = json.loads(GOLDEN.read_text())["numbers"][case]
    other, share = differences(numbers(*CASES[case]), golden)
    assert share <= TIES, f"raise ALGORITHM, then write the golden file anew: {other}"


def test_other_graphs_need_another_version(tmp_path: Path) -> None:
    golden, found = json.loads(GOLDEN.read_text())["graphs"], graphs(tmp_path)
    for form in golden.keys() | found.keys():
        floats = pytest.approx(golden[form]["floats"], rel=1e-6)
        assert found[form] == {**golden[form], "floats": floats}, "raise ALGORITHM, then write the golden file anew"


@pytest.mark.parametrize("change", [{"bias_correction": False}, {"smoothing": False}, {"method": "minmax"}])
def test_a_change_of_the_method_would_be_seen(change: dict[str, Any]) -> None:
    golden = json.loads(GOLDEN.read_text())["numbers"]["default"]
    graph, recipe = CASES["default"]
    assert differences(numbers(graph, replace(recipe, **change)), golden)[1] > 1.5 * TIES


def test_a_change_of_what_is_seen_of_windows_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the first window of a picture stood for all of them."""
    golden = json.loads(GOLDEN.read_text())["numbers"]["windows"]

    def first_windows(*given: Any) -> Iterator[list[np.ndarray]]:
        for seen in activations(*given):
            yield [array[0] if array.shape[1:2] == (16,) else array for array in seen]  # 4x4 tokens

    monkeypatch.setattr(calibration, "activations", first_windows)
    assert differences(numbers(*CASES["windows"]), golden)[1] > 1.5 * TIES


@pytest.mark.parametrize("name", ["plain", "attention"])
def test_a_calibration_without_a_version_is_told_by_its_code(name: str, tmp_path: Path) -> None:
    frozen = Bundle.open(FROZEN / name)
    cached = frozen.find(kind="calibration")
    assert cached is not None and cached.built_from is not None
    data = json.loads(frozen.file(cached).read_text())
    assert "algorithm" not in data and Calibration.load(frozen.file(cached), cached.built_from).algorithm == 1
    for code in ("0" * 16, "unknown", ""):
        (tmp_path / "calibration.json").write_text(json.dumps({**data, "code": code}))
        assert Calibration.load(tmp_path / "calibration.json", cached.built_from).algorithm == 0 != ALGORITHM


def main() -> None:
    if GOLDEN.exists() and json.loads(GOLDEN.read_text())["algorithm"] == ALGORITHM:
        raise SystemExit(f"{GOLDEN.name} is of version {ALGORITHM} already: raise ALGORITHM, or undo what changed it")
    with tempfile.TemporaryDirectory() as scratch:
        made = graphs(Path(scratch))
    found = {name: numbers(*case) for name, case in CASES.items()}
    GOLDEN.write_text(json.dumps({"algorithm": ALGORITHM, "graphs": made, "numbers": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

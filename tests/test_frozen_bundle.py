"""Bundles that earlier code wrote, kept as they were: later code opens, checks, runs and rebuilds them.

Each manifest schema that a release could write has a folder here, made by `tests.tools.make_frozen_bundle`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.tools.backends import CPU_BACKENDS
from tests.tools.command_line import invoke
from tests.tools.make_frozen_bundle import IMAGES, run_form
from tests.tools.record_invariants import arrays, compare, portable, record_graph, record_tiny
from vitdeploy import Bundle, load
from vitdeploy.core.errors import ModelError
from vitdeploy.core.machine import saturates
from vitdeploy.inspection.bundle import inspect
from vitdeploy.report.records import BenchReport
from vitdeploy.runtime.selection import candidates

FROZEN = Path(__file__).parent / "frozen"
BUNDLES = sorted(path.parent for path in FROZEN.glob("schema-*/*/manifest.json"))
MEASURED = [path for path in BUNDLES if (path / "bench").exists()]
# Of logits that spread over some 2: the order of sums in FP32, the rounding of other layers' outputs in 16 bits, and in
# INT8 now and then an activation that rounds to the next of its 255 steps.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.05}

each_bundle = pytest.mark.parametrize("frozen", BUNDLES, ids=lambda path: f"{path.parent.name}/{path.name}")
each_measured = pytest.mark.parametrize("frozen", MEASURED, ids=lambda path: f"{path.parent.name}/{path.name}")


@pytest.fixture
def copy(frozen: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(frozen, tmp_path / "bundle"))


def kept(frozen: Path) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """The images that are kept beside a bundle, and each form's logits."""
    with np.load(frozen.with_suffix(".npz")) as data:
        images = [data[f"image_{place}"] for place in range(IMAGES)]
        return images, {name: data[name] for name in data.files if name.endswith(".onnx")}


def test_there_are_bundles_of_every_schema_with_every_form() -> None:
    forms = {"model.onnx", "model.fp16.onnx", "model.bf16.onnx", "model.int8.onnx", "model.int8-cpu.onnx"}
    schemas = {path.parent for path in BUNDLES}
    assert {path.name for path in schemas} == {f"schema-{number}" for number in range(1, len(schemas) + 1)}
    newest = max(json.loads((path / "manifest.json").read_text())["schema_version"] for path in BUNDLES)
    assert newest == len(schemas)
    for schema in schemas:
        assert {file.name for file in schema.glob("plain/*.onnx")} == forms
        assert any(path.parent == schema for path in MEASURED)


@each_bundle
def test_it_opens_whole_and_holds_nothing_else(frozen: Path) -> None:
    bundle = Bundle.open(frozen)
    bundle.verify()
    assert f"schema-{json.loads((frozen / 'manifest.json').read_text())['schema_version']}" == frozen.parent.name
    files = {str(file.relative_to(frozen)) for file in frozen.rglob("*") if file.is_file()}
    assert files - {".lock"} == {"manifest.json"} | {artifact.path for artifact in bundle.manifest.artifacts}


@each_bundle
def test_inspect_finds_it_sound(frozen: Path) -> None:
    report = inspect(frozen)
    assert {file.state for file in report.files} == {"ok"} and not any(file.stale for file in report.files)
    assert report.calibration is not None and report.calibration["images"]["count"] == 16
    assert len(report.checks) >= 2 and all(check["passed"] for check in report.checks)
    done = invoke("inspect", frozen, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert {file["path"] for file in told["artifacts"]} == {file.artifact.path for file in report.files}
    for graph in frozen.glob("*.onnx"):
        assert invoke("inspect", graph, "--json").exit_code == 0


@each_bundle
def test_inspect_finds_a_changed_file(copy: Path) -> None:
    (copy / "model.int8.onnx").write_bytes((copy / "model.int8-cpu.onnx").read_bytes())
    assert [file.state for file in inspect(copy).files if file.artifact.path == "model.int8.onnx"] == ["changed"]


@each_bundle
def test_every_form_gives_the_logits_that_it_gave(frozen: Path) -> None:
    images, logits = kept(frozen)
    for path in frozen.glob("*.onnx"):
        artifact = next(a for a in Bundle.open(frozen).manifest.artifacts if a.path == path.name)
        if artifact.precision == "bf16":
            pytest.importorskip("openvino")
        run = run_form(path)
        check_logits(np.stack([run(image) for image in images]), logits[path.name], str(artifact.precision))


@each_bundle
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_every_backend_gives_the_logits_that_were_given(frozen: Path, backend: str) -> None:
    images, logits = kept(frozen)
    bundle = Bundle.open(frozen)
    for candidate in candidates(bundle, backend, "auto", "cpu"):
        if candidate.reason is not None:  # not installed, or it failed in the bundle's benchmark
            assert "not installed" in candidate.reason or candidate.precision == "bf16", candidate
            continue
        if backend == "native" and frozen.name == "attention":  # a ViT that is none of those the kernels are for
            with pytest.raises(ModelError, match="plain ViTs in INT8 only"):
                load(bundle, backend, candidate.precision, "cpu")
            continue
        if backend == "openvino" and candidate.precision == "int8" and saturates():
            continue  # its products of bytes are not exact here
        with load(bundle, backend, candidate.precision, "cpu", threads=1) as classifier:
            found = classifier.logits(images)
        check_logits(found, logits[candidate.artifact.path], candidate.precision)


def check_logits(found: np.ndarray, wanted: np.ndarray, precision: str) -> None:
    np.testing.assert_allclose(found, wanted, atol=TOLERANCES[precision], rtol=0)
    np.testing.assert_array_equal(found.argmax(1), wanted.argmax(1))


@each_bundle
def test_int8_is_rebuilt_from_its_calibration_without_images(frozen: Path, copy: Path, tmp_path: Path) -> None:
    forms = ("model.int8.onnx", "model.int8-cpu.onnx")
    calibration = (copy / "calibration.json").read_bytes()
    for form in forms:
        (copy / form).unlink()
    done = invoke("build-engine", copy, "--int8", "--target", "onnx", "--json")
    assert done.exit_code == 0, done.stderr
    for form in forms:
        paths = [frozen / form, copy / form]
        if form == "model.int8.onnx":
            # its preprocessing is made anew, of the same bits, and newer versions make it without control flow
            assert "If" not in {node.op_type for node in onnx.load(copy / form).graph.node}
            paths = [without_preprocessing(path, tmp_path / f"{path.parent.name}.onnx") for path in paths]
        old, new = map(record_graph, paths)
        assert (new["structure"], new["names"]) == (old["structure"], old["names"])
        found = arrays(paths[1])
        read = {name for node in onnx.load(paths[0]).graph.node for name in node.input}
        for name, values in arrays(paths[0]).items():
            if name not in read:  # older versions kept zero points that no node reads
                continue
            # Integers are equal; of sums, the last bit is the processor's.
            close = {"f4": 1e-5, "f2": 1e-3}.get(values.dtype.str[1:], 0)
            np.testing.assert_allclose(found[name], values, rtol=close, atol=close / 10)
        images, logits = kept(frozen)
        run = run_form(copy / form)
        check_logits(np.stack([run(image) for image in images]), logits[form], "int8")
    assert (copy / "calibration.json").read_bytes() == calibration
    Bundle.open(copy).verify()


def without_preprocessing(path: Path, output: Path) -> Path:
    """A copy of a graph without the nodes and constants of its preprocessing."""
    model = onnx.load(path)
    for entries in (model.graph.node, model.graph.initializer):
        own = [entry for entry in entries if not entry.name.startswith("preprocess/")]
        assert 0 < len(own) < len(entries)
        del entries[:]
        entries.extend(own)
    onnx.save(model, output)
    return output


@each_bundle
def test_another_calibration_gives_other_constants(frozen: Path, copy: Path) -> None:
    data = json.loads((copy / "calibration.json").read_text())
    data["groups"][0]["scale"] *= 2
    bundle = Bundle.open(copy)
    old = bundle.find(kind="calibration")
    assert old is not None
    with bundle.edit() as editor:
        editor.path_for("calibration.json").write_text(json.dumps(data))
        editor.add("calibration.json", kind="calibration", built_from=old.built_from, built_with=old.built_with)
    assert invoke("build-engine", copy, "--int8", "--target", "onnx").exit_code == 0
    form = "model.int8-cpu.onnx"
    assert list(compare(record_graph(frozen / form)["constants"], record_graph(copy / form)["constants"]))


@each_measured
def test_its_report_is_read_and_compared(frozen: Path) -> None:
    file = frozen / "bench" / "report.json"
    report = BenchReport.read(file)
    assert {(row.form, row.backend) for row in report.rows} >= {("fp32", "pytorch"), ("int8", "onnxruntime")}
    done = invoke("compare", file, file, "--json", "-")
    assert done.exit_code == 0, done.stderr
    assert not [row for row in json.loads(done.stdout)["rows"] for found in row["changes"] if found["beyond_noise"]]


@each_measured
def test_load_heeds_what_its_report_says(frozen: Path) -> None:
    bundle = Bundle.open(frozen)
    assert bundle.choice is not None
    failed = [c for c in candidates(bundle, "onnxruntime", "auto", "cpu") if c.precision == "bf16"]
    assert len(failed) == 1 and failed[0].reason is not None and "failed in the bundle's benchmark" in failed[0].reason
    with load(bundle, device="cpu") as classifier:
        assert classifier.describe()["precision"] == "int8"


@pytest.mark.full
def test_forms_and_reports_are_laid_out_as_they_were(tmp_path: Path) -> None:
    """After a change that is meant: python -m tests.tools.record_invariants --output tests/frozen/invariants.json"""
    old = json.loads((FROZEN / "invariants.json").read_text())["tiny"]
    assert not list(compare(portable(old), portable(record_tiny(tmp_path))))


def test_a_comparison_of_graphs_tells_names_from_nodes_and_constants(tmp_path: Path) -> None:
    frozen, changed = BUNDLES[0] / "model.onnx", tmp_path / "model.onnx"
    old, model = record_graph(frozen), onnx.load(frozen)

    def parts() -> set[str]:
        onnx.save(model, changed)
        return {line.split("/")[1].partition(":")[0] for line in compare(old, record_graph(changed))} - {"file"}

    assert not parts()
    node = model.graph.node[-1]
    name, node.name = node.name, "renamed"
    assert parts() == {"names"}
    node.name = name
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.weight")
    weight.raw_data = weight.raw_data[::-1]
    assert parts() == {"nodes", "constants"}
    node.attribute[0].name, kept_name = "another", node.attribute[0].name
    assert parts() == {"nodes", "constants", "structure"}
    node.attribute[0].name = kept_name
    del model.graph.node[-1]
    model.graph.node.append(onnx.helper.make_node("Identity", [node.input[0]], list(node.output)))
    assert parts() == {"names", "nodes", "structure", "constants"}

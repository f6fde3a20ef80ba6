"""The benchmark of a real bundle by real backends: which rows there are, what they hold, what goes wrong and how."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.backends import needs_openvino
from tests.tools.simulated_cuda import SimulatedCuda
from tests.tools.simulated_gpu import GPU, SimulatedTensorRT, write_engine_bundle
from tests.tools.small_bundle import write_small_bundle
from tests.tools.tiny import write_checkpoint
from vitdeploy.backends.native.library import kernels_obstacle
from vitdeploy.backends.tensorrt import runner
from vitdeploy.bench import BenchReport, bench, forms, markdown, render_html, save
from vitdeploy.bench import run as run_module
from vitdeploy.bench.forms import _built_for, baseline_forms, bundle_forms
from vitdeploy.bundle import Bundle
from vitdeploy.core import machine
from vitdeploy.core.errors import BundleError, DatasetError, ImageError, InputError
from vitdeploy.data import ImageDataset, load_dataset

QUICK: dict[str, Any] = {"rounds": 3, "threads": 1, "memory": False, "phases": False}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("small") / "small")


@pytest.fixture(scope="module")
def images(tiny_images: Path) -> ImageDataset:
    return load_dataset(tiny_images, "all")


@pytest.fixture(scope="module")
def report(small: Path, images: ImageDataset) -> BenchReport:
    return bench(small, images, batch_sizes=(1, 4), **QUICK)


def test_every_form_is_a_row_on_every_backend_it_is_for(report: BenchReport) -> None:
    assert [row.key for row in report.rows] == [
        *("fp32/onnxruntime", "fp32/openvino", "fp16/onnxruntime", "fp16/openvino"),
        *("int8/onnxruntime", "int8/openvino", "int8/native", "int8/tensorrt-rtx"),
    ]
    assert [row.status for row in report.rows[:6]] == ["ok"] * 6
    assert report.row("int8/native").status == "skipped"  # it is no plain ViT
    cpu = report.row("int8/openvino")
    assert cpu.artifact is not None and cpu.artifact.path == "model.int8-cpu.onnx"
    for row in report.rows[:6]:
        assert [latency.batch_size for latency in row.latencies] == [1, 4]
        assert row.accuracy is not None and row.accuracy.count == 40 and row.cold_start_ms is not None


@pytest.mark.parametrize(
    ("built_with", "words"),
    [
        ({"compute_capabilities": ["8.0", "12.0+"], "compute_capability": "9.0", "gpu": "H200"}, "8.0, 12.0+"),
        ({"compute_capability": "9.0", "gpu": "H200"}, "compute capability 9.0"),
        ({"gpu": "H200"}, "H200"),
        ({"gpu": ""}, None),
        ({}, None),
    ],
)
def test_an_engine_says_which_gpus_it_was_built_for(built_with: dict[str, Any], words: str | None) -> None:
    found = _built_for(built_with)
    assert (found is None) if words is None else found is not None and found.endswith(words)


def test_a_form_that_runs_has_its_memory_and_the_parts_of_its_start(small: Path, images: ImageDataset) -> None:
    asked: dict[str, Any] = {**QUICK, "memory": True, "accuracy": False, "precisions": ["fp32"], "batch_sizes": (1, 4)}
    row = bench(small, images, backends=["onnxruntime"], **asked).row("fp32/onnxruntime")
    assert row.cold_start is not None and row.cold_start_ms == pytest.approx(row.cold_start.total_ms, abs=1e-3)
    assert min(row.cold_start.import_ms, row.cold_start.load_ms, row.cold_start.first_ms) > 0
    one, four = (item.memory.host_peak_bytes if item.memory else None for item in row.latencies)
    assert one is not None and four is not None and 10**7 < one <= four
    assert row.memory is not None and row.memory.device_peak_bytes is None and row.memory.total_bytes == one


def test_an_engine_without_a_gpu_is_skipped_in_plain_words(report: BenchReport) -> None:
    row = report.row("int8/tensorrt-rtx")
    if row.reason is not None and "no NVIDIA GPU" not in row.reason:
        pytest.skip("there is a GPU here")
    assert row.status == "skipped" and row.reason == "engine built for compute capability 8.0, 8.6; no NVIDIA GPU here"


@pytest.mark.parametrize(
    ("capability", "says"),
    [("8.9", r"was built for compute capability 8\.0, 8\.6.*has 8\.9"), ("9.0", "TensorRT-RTX is for")],
)
def test_an_engine_that_does_not_fit_the_gpu_is_skipped_with_the_reason(
    small: Path, monkeypatch: pytest.MonkeyPatch, capability: str, says: str
) -> None:
    gpu = replace(GPU, compute_capability=capability)
    monkeypatch.setattr(machine, "gpus", lambda: (gpu,))
    monkeypatch.setattr(forms, "gpus", lambda: (gpu,))
    monkeypatch.setattr(machine, "has_module", lambda name: True)
    (engine,) = (form for form in bundle_forms(Bundle.open(small), 1) if form.backend == "tensorrt-rtx")
    assert engine.reason is not None and re.search(says, engine.reason) and "build-engine" in engine.reason


def test_an_engine_on_a_simulated_gpu_has_its_clock_and_its_cuda_graphs(
    images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = SimulatedCuda()
    modules = {"tensorrt": SimulatedTensorRT(cuda), "cuda.bindings.runtime": cuda}
    for module in (machine, forms, runner):
        monkeypatch.setattr(module, "gpus", lambda: (GPU,))
    monkeypatch.setattr(runner, "require", lambda module, extra: modules[module])
    monkeypatch.setattr(machine, "has_module", lambda name: True)
    path = write_engine_bundle(tmp_path / "bundle")
    report = bench(path.parents[1], images, accuracy=False, gpu_warmup_seconds=0.05, rest_seconds=0, **QUICK)
    (row,) = report.rows
    assert row.status == "ok" and row.latency is not None and row.latency.device_ms is not None
    assert row.latency.device_ms.count == 3 * 4 and row.latency.device_speedup is not None and row.tf32
    assert row.cuda_graphs is not None and (row.cuda_graphs.by, row.cuda_graphs.why_not) == ("vitdeploy", None)
    assert row.cuda_graphs.kept >= 1 and "CUDA graphs, fp16/tensorrt: captured by vitdeploy" in report.notes
    assert not (cuda.device or cuda.host or cuda.streams or cuda.graphs)


def test_tf32_is_skipped_on_a_cpu(tiny_checkpoint: Path) -> None:
    plain, tf32 = baseline_forms(tiny_checkpoint, 1, variants=["tf32"], device="cpu")
    assert plain.reason is None and (tf32.form, tf32.tf32) == ("fp32-tf32", True) and "NVIDIA" in str(tf32.reason)


@needs_openvino
def test_without_a_baseline_the_fp32_graph_is_the_reference_and_it_is_said(report: BenchReport) -> None:
    assert report.baseline["key"] == "fp32/onnxruntime"
    assert any("no baseline was named" in note for note in report.notes)
    assert not any("on the GPU" in note for note in report.notes)  # on which nothing ran
    assert report.rows[0].accuracy is not None and report.rows[0].accuracy.delta is None
    assert report.rows[1].accuracy is not None and report.rows[1].accuracy.agreement == 1


def test_answers_count_as_right_by_the_name_of_their_label(images: ImageDataset, small: Path, tmp_path: Path) -> None:
    import onnxruntime
    from PIL import Image

    session = onnxruntime.InferenceSession(str(small / "model.onnx"), providers=["CPUExecutionProvider"])
    labels = Bundle.open(small).manifest.labels
    for label in labels:
        (tmp_path / label).mkdir()
    for index, (pixels, _) in enumerate(images):
        answer = int(session.run(None, {"image": pixels[np.newaxis]})[0].argmax())
        # Two of forty go where they do not belong.
        label = labels[answer] if index % 20 else labels[(answer + 1) % 10]
        Image.fromarray(pixels).save(tmp_path / label / f"{index}.png")
    for label in labels:  # a class without images is none
        Image.fromarray(images.image(0)).save(tmp_path / label / "same.png")
    shown = load_dataset(tmp_path, "all")
    report = bench(small, shown, latency=False, precisions=["fp32"], **QUICK)
    # The folders' labels are in alphabetical order, the model's are not. Of the ten copies of the first image one is
    # in its own class; of the forty, all but two.
    assert report.rows[0].accuracy is not None and report.rows[0].accuracy.top1 == (38 + 1) / 50
    assert any("matched by name" in note for note in report.notes)


def test_the_report_holds_its_circumstances_and_no_path(report: BenchReport, images: ImageDataset, small: Path) -> None:
    data = report.to_json()
    assert data["schema_version"] == 3 and data["bundle"]["name"] == "small"
    assert data["dataset"]["fingerprint"] == images.fingerprint and data["settings"]["threads"] == 1
    assert data["machine"]["cores"] >= 1
    assert {"onnxruntime", "onnxruntime-gpu"} & data["versions"].keys()  # two packages, one module
    rows = {row["key"]: row for row in data["rows"]}
    digest = hashlib.sha256((small / "model.onnx").read_bytes()).hexdigest()
    assert rows["fp32/openvino"]["artifact"] == {"path": "model.onnx", "sha256": digest}
    text = json.dumps(data)
    assert str(small.parent) not in text and "/home/" not in text and str(Path.home()) + "/" not in text


def test_json_gives_the_report_back(report: BenchReport) -> None:
    assert BenchReport.from_json(json.loads(report.dumps())) == report
    assert render_html(report).startswith("<!DOCTYPE html>")


@needs_openvino
def test_every_field_is_documented(report: BenchReport) -> None:
    text = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`(\w+)`", text))
    data = report.to_json()
    names = (
        set(data)
        | set(data["rows"][0])
        | set(data["rows"][0]["latencies"][0])
        | set(data["rows"][0]["latencies"][0]["steady_ms"])
        | set(data["rows"][1]["accuracy"])
    )
    assert names | set(data["settings"]) | set(data["machine"]) <= described
    assert "no_such_field" not in described


@pytest.mark.parametrize("change", [{"schema_version": 4}, {"schema_version": "1"}, {"rows": [{}]}, {"rows": 3}])
def test_other_json_is_refused(report: BenchReport, change: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        BenchReport.from_json({**report.to_json(), **change})
    assert caught.value.hint


@needs_openvino
def test_a_form_that_cannot_be_loaded_fails_alone(tmp_path: Path, images: ImageDataset) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", engine=False)
    (bundle / "model.fp16.onnx").write_bytes(b"truncated")
    report = bench(bundle, images, latency=False, **QUICK)
    states = {row.key: row.status for row in report.rows}
    assert states["fp16/onnxruntime"] == states["fp16/openvino"] == "failed"
    assert states["fp32/onnxruntime"] == states["int8/openvino"] == "ok"
    reason = report.row("fp16/openvino").reason or ""
    assert "SHA-256" in reason and str(tmp_path) not in reason


def test_wishes_choose_the_rows(small: Path, images: ImageDataset) -> None:
    options: dict[str, Any] = {"accuracy": False, **QUICK}
    keys = [row.key for row in bench(small, images, backends=["openvino"], precisions=["int8", "fp16"], **options).rows]
    assert keys == ["fp16/openvino", "int8/openvino"]
    keys = [row.key for row in bench(small, images, precisions=["int8-tensorrt"], **options).rows]
    assert keys == ["int8-tensorrt/onnxruntime", "int8-tensorrt/openvino"]
    with pytest.raises(InputError, match="no form of the bundle fits"):
        bench(small, images, precisions=["bf16"], **options)


@needs_openvino
def test_the_graph_for_tensorrt_has_a_row_where_there_is_none_for_cpus(tmp_path: Path, images: ImageDataset) -> None:
    bundle = Bundle.open(write_small_bundle(tmp_path / "bundle", engine=False))
    with bundle.edit() as editor:
        del editor._artifacts["model.int8-cpu.onnx"]
    report = bench(bundle.reopen(), images, latency=False, **QUICK)
    row = report.row("int8/openvino")
    assert row.status == "ok" and row.artifact is not None and row.artifact.path == "model.int8.onnx"


def test_a_limit_draws_as_many_of_each_class(small: Path, images: ImageDataset) -> None:
    report = bench(small, images, limit=20, latency=False, precisions=["fp32"], **QUICK)
    assert report.dataset["count"] == 20 and set(report.dataset["class_counts"].values()) == {2}
    assert report.rows[0].accuracy is not None and report.rows[0].accuracy.count == 20
    assert any("20 of 40 images" in note for note in report.notes)


def test_bad_input_has_an_error_with_the_next_step(small: Path, images: ImageDataset, tmp_path: Path) -> None:
    other = write_small_bundle(tmp_path / "other", labels=("cat", "dog"))
    with pytest.raises(DatasetError, match="does not know 10 of the 10 classes"):
        bench(other, images)
    with pytest.raises(BundleError, match="is not a bundle"):
        bench(tmp_path, images)
    wrong: list[dict[str, Any]] = [
        *({"limit": 0}, {"threads": 0}, {"rounds": 0}, {"batch_sizes": ()}, {"batch_sizes": (1, 1)}),
        *({"backends": ["tensorflow"]}, {"latency": False, "accuracy": False}),
    ]
    for options in wrong:
        with pytest.raises(InputError) as caught:
            bench(small, images, **options)
        assert caught.value.hint
    with pytest.raises(DatasetError, match="no images"):
        bench(small, images.subset([]))


@needs_openvino
def test_pytorch_is_the_baseline_with_its_own_image_processor(
    small: Path, images: ImageDataset, tiny_checkpoint: Path
) -> None:
    report = bench(small, images, baseline=tiny_checkpoint, precisions=["fp32"], **QUICK)
    row = report.rows[0]
    assert row.key == "fp32/pytorch" == report.baseline["key"] and row.status == "ok"
    assert "image processor" in report.baseline["description"]
    weights = tiny_checkpoint / "model.safetensors"
    assert row.size_bytes == weights.stat().st_size and row.artifact is not None
    assert row.artifact.path == "checkpoint/model.safetensors"
    assert row.artifact.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert all(row.latency is not None and (row.latency.speedup or row.latency.busy) for row in report.rows)
    assert report.rows[1].accuracy is not None and report.rows[1].accuracy.delta is not None


@needs_openvino
def test_real_forms_agree_with_the_checkpoint(tiny_bundle: Path, tiny_checkpoint: Path, images: ImageDataset) -> None:
    report = bench(tiny_bundle, images, baseline=tiny_checkpoint, **QUICK)
    rows = [row for row in report.rows if row.backend != "native" or kernels_obstacle() is None]
    assert {row.status for row in rows} == {"ok"}
    for row in rows[1:]:
        assert row.accuracy is not None and row.accuracy.agreement is not None
        # FP32 and FP16 differ from PyTorch by rounding; random weights put many images close to a border in INT8.
        assert row.accuracy.agreement >= (0.6 if row.form == "int8" else 0.95), row.key


def test_answers_do_not_depend_on_the_batch(tiny_bundle: Path, images: ImageDataset) -> None:
    from vitdeploy.bench.forms import bundle_forms
    from vitdeploy.evaluation.accuracy import AccuracyRun

    form = next(form for form in bundle_forms(Bundle.open(tiny_bundle), 1) if form.key == "fp32/onnxruntime")
    order = np.random.default_rng(0).permutation(len(images))
    with form.open() as runner:
        one, many = AccuracyRun({"a": runner}, images, 10, 1), AccuracyRun({"a": runner}, images.subset(order), 10, 7)
        one.run()
        many.run()
    # The kernels of another batch size add in another order: float32 rounding, on logits of size one to ten.
    assert np.allclose(one.answers["a"].logits[order], many.answers["a"].logits, atol=1e-4, rtol=0)
    assert not np.allclose(one.answers["a"].logits, many.answers["a"].logits, atol=1e-4, rtol=0)


def test_the_report_is_kept_in_the_bundle_and_does_not_change_what_identifies_it(
    tmp_path: Path, images: ImageDataset
) -> None:
    bundle = Bundle.open(write_small_bundle(tmp_path / "bundle", engine=False))
    report = bench(bundle, images, precisions=["fp32"], latency=False, **QUICK)
    save(report, bundle, render_html(report))
    opened = bundle.reopen()
    opened.verify()
    kept = [artifact.path for artifact in opened.select(kind="bench")]
    assert kept == ["bench/report.json", "bench/report.html"]
    assert BenchReport.from_json(json.loads((opened.path / kept[0]).read_text())) == report
    again = bench(opened, images, precisions=["fp32"], latency=False, **QUICK)
    assert again.bundle == report.bundle


def test_ctrl_c_keeps_what_was_measured(small: Path, images: ImageDataset) -> None:
    seen = 0

    class Interrupted(type(images)):  # type: ignore[misc]
        def image(self, index: int) -> Any:
            nonlocal seen
            seen += 1
            if seen > 70:  # 40 to find the usual size, then in the middle of the comparison
                raise KeyboardInterrupt
            return super().image(index)

    stopped = Interrupted(*(getattr(images, field.name) for field in fields(images)))
    report = bench(small, stopped, precisions=["fp32"], **QUICK)
    assert report.partial and report.rows[0].latencies
    assert report.rows[0].accuracy is None or report.rows[0].accuracy.count < 40
    seen = 71
    with pytest.raises(KeyboardInterrupt):
        bench(small, stopped, precisions=["fp32"], **QUICK)


def test_all_backends_get_the_same_threads(small: Path, images: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    original = run_module.bundle_forms
    monkeypatch.setattr(
        run_module,
        "bundle_forms",
        lambda bundle, threads, **more: given.append(threads) or original(bundle, threads, **more),
    )
    report = bench(small, images, precisions=["fp32"], accuracy=False, **{**QUICK, "threads": 2})
    assert given == [2] and report.settings.threads == 2


def test_the_pictures_of_explain_are_in_the_report(tmp_path: Path, images: ImageDataset) -> None:
    bundle = Bundle.open(write_small_bundle(tmp_path / "bundle", engine=False))
    quick: dict[str, Any] = {"latency": False, "memory": False, "phases": False, "backends": ("onnxruntime",)}
    plain = bench(bundle, images, **quick)
    with bundle.edit() as editor:
        editor.path_for("explain/patches.png").write_bytes(b"picture")
        editor.add("explain/patches.png", kind="explanation")
    report = bench(bundle.reopen(), images, **quick)
    picture = base64.b64encode(b"picture").decode()
    assert report.explanation == ({"name": "patches", "png": picture},)
    assert picture in render_html(report) and "Inside the model" in render_html(report)
    assert BenchReport.from_json(report.to_json()) == report
    for other in (plain, report.without_pictures()):
        assert other.explanation == () and "Inside the model" not in render_html(other)
    assert report.bundle == plain.bundle  # pictures do not make another model of it
    with (bundle := bundle.reopen()).edit() as editor:
        editor.path_for("explain/tokens.png").write_bytes(b"tokens")
        editor.add("explain/tokens.png", kind="explanation")
    (bundle.path / "explain" / "patches.png").write_bytes(b"changed")  # it is left out, and no other one
    assert [found["name"] for found in bench(bundle.reopen(), images, **quick).explanation] == ["tokens"]


def test_times_need_no_labels(small: Path, tmp_path: Path, cli: Any) -> None:
    """Photos in a folder, as from a camera: what is measured on them needs no classes."""
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for number in range(10):
        Image.fromarray(np.full((20, 24, 3), number, np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    common = ("bench", small, "--dataset", tmp_path / "photos", "--precision", "fp32", "--backend", "onnxruntime")
    quick = ("--rounds", 2, "--max-seconds", 1, "--no-memory", "--no-phases", "--threads", 1, "--no-save")
    done = cli(*common, *quick, "--no-accuracy", "--split", "all", "--json", tmp_path / "r.json")
    assert done.exit_code == 0, done.stderr
    report = BenchReport.read(tmp_path / "r.json")
    assert report.dataset["count"] == 10 and report.rows[0].latency is not None and report.rows[0].accuracy is None
    done = cli(*common, *quick)
    assert done.exit_code == 1 and "no class folders" in done.stderr


def test_a_damaged_image_is_named(small: Path, tiny_images: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_images, tmp_path / "photos"))
    whole = (root / "one" / "0.png").read_bytes()
    (root / "one" / "0.png").write_bytes(whole[: len(whole) // 2])
    for options in ({"latency": False}, {"phases": True, "accuracy": False}):
        with pytest.raises(ImageError, match=r"photos/all \(one/0.png\) is damaged"):
            bench(small, load_dataset(root, "all"), precisions=["fp32"], **{**QUICK, **options})


def test_a_part_of_data_without_splits_is_said_everywhere(small: Path, tiny_images: Path) -> None:
    report = bench(small, load_dataset(tiny_images, "test"), latency=False, precisions=["fp32"], **QUICK)
    assert report.dataset["carved_from"] == 40
    assert any("has no splits: test is 8 of its 40 images" in note for note in report.notes)
    for page in (markdown(report), render_html(report)):
        assert "test, 8 of 40 images (it has no splits)" in page


def test_a_baseline_of_other_weights_is_called_that(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    images = load_dataset("digits", "test")
    settings: dict[str, Any] = {"latency": False, "precisions": ["fp32"], "backends": ["onnxruntime"], "limit": 20}
    others = write_checkpoint(tmp_path / "other", seed=7)
    notes = {
        baseline: bench(tiny_bundle, images, baseline=baseline, match_labels="position", memory=False, **settings).notes
        for baseline in (tiny_checkpoint, others)
    }
    said = {baseline: any("weights are not those" in note for note in found) for baseline, found in notes.items()}
    assert said == {tiny_checkpoint: False, others: True}

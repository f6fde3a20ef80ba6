"""Which form `load` takes: by the benchmark of this machine where there is one, else in the stated order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tools.measured import keep_report
from tests.tools.small_bundle import write_small_bundle
from vitdeploy import load
from vitdeploy.backends.registry import backends
from vitdeploy.bench import bench, save
from vitdeploy.bundle import Bundle
from vitdeploy.core.machine import identity, machine
from vitdeploy.core.specs import Choice
from vitdeploy.data import load_dataset
from vitdeploy.runtime.selection import candidates

# what these change: backends/native/test_instruction_sets.py
pytestmark = pytest.mark.usefixtures("no_kernels", "exact_products")
FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8-cpu.onnx"}


def row(bundle: Path, form: str, backend: str, p50: float | None, **changes: Any) -> dict[str, Any]:
    artifact = next(a for a in Bundle.open(bundle).manifest.artifacts if a.path == FILES[form])
    return {
        "key": f"{form}/{backend}",
        "artifact": {"path": artifact.path, "sha256": artifact.sha256},
        "backend": backend,
        "status": "ok",
        "reason": None,
        "accuracy": {"delta": 0.0},
        "latencies": [] if p50 is None else timed(p50),
        **changes,
    }


def timed(p50: float, batch_size: int = 1) -> list[dict[str, Any]]:
    return [{"batch_size": batch_size, "on_demand_ms": {"p50": p50}}]


def taken(bundle: Path, **wishes: Any) -> tuple[str, str, str]:
    with load(bundle, threads=1, **{"device": "cpu", **wishes}) as classifier:
        return classifier.precision, classifier.backend, classifier.describe()["why"]


def test_without_a_benchmark_the_stated_order(tiny_bundle: Path) -> None:
    precision, backend, why = taken(tiny_bundle)
    assert (precision, backend) == ("int8", "openvino")
    assert "stated order" in why and "not benchmarked" in why
    order = [(c.precision, c.backend) for c in candidates(Bundle.open(tiny_bundle), "auto", "auto", "cpu")]
    assert order == [(p, b) for p in ("int8", "fp32", "fp16") for b in ("openvino", "onnxruntime")]


def test_the_fastest_here_is_taken(tiny_bundle_copy: Path) -> None:
    rows = [
        row(tiny_bundle_copy, "fp32", "openvino", 5.0),
        row(tiny_bundle_copy, "fp16", "onnxruntime", 3.25),
        row(tiny_bundle_copy, "int8", "openvino", 4.0),
    ]
    keep_report(tiny_bundle_copy, rows)
    precision, backend, why = taken(tiny_bundle_copy)
    assert (precision, backend) == ("fp16", "onnxruntime")
    assert "3.25 ms" in why and "batch 1" in why and "2 threads" in why and "1 point of top-1 in" in why
    assert taken(tiny_bundle_copy, precision="int8")[:2] == ("int8", "openvino")
    assert taken(tiny_bundle_copy, backend="openvino")[:2] == ("int8", "openvino")
    assert taken(tiny_bundle_copy, precision="fp32", backend="onnxruntime")[2] == "it was asked for by name"


def test_the_fastest_that_keeps_its_accuracy_is_taken(tiny_bundle_copy: Path) -> None:
    rows = [
        row(tiny_bundle_copy, "int8", "openvino", 1.0, accuracy={"delta": -0.02}),
        row(tiny_bundle_copy, "fp16", "openvino", 2.0, status="failed", reason="its answers changed"),
        row(tiny_bundle_copy, "fp32", "onnxruntime", 4.0),
        row(tiny_bundle_copy, "fp32", "openvino", 6.0),
    ]
    keep_report(tiny_bundle_copy, rows)
    assert taken(tiny_bundle_copy)[:2] == ("fp32", "onnxruntime")


def test_fp32_is_never_passed_over_for_its_accuracy(tiny_bundle_copy: Path) -> None:
    """Nothing keeps more than it; a loss against PyTorch is the model's own."""
    rows = [
        row(tiny_bundle_copy, "int8", "openvino", 1.0, accuracy={"delta": -0.02}),
        row(tiny_bundle_copy, "fp32", "openvino", 2.0, accuracy={"delta": -0.02}),
        row(tiny_bundle_copy, "fp16", "openvino", 4.0),
    ]
    keep_report(tiny_bundle_copy, rows)
    assert taken(tiny_bundle_copy)[:2] == ("fp32", "openvino")


def test_a_budget_is_not_spoken_of_where_nothing_was_compared(tiny_bundle_copy: Path) -> None:
    keep_report(tiny_bundle_copy, [row(tiny_bundle_copy, "int8", "openvino", 1.0, accuracy=None)])
    assert taken(tiny_bundle_copy)[2].startswith("the fastest in the benchmark of this machine: 1 ms")


def test_a_batch_counts_by_the_image(tiny_bundle_copy: Path) -> None:
    rows = [
        row(tiny_bundle_copy, "fp32", "openvino", 8.0, latencies=timed(8.0, batch_size=4)),
        row(tiny_bundle_copy, "fp32", "onnxruntime", 3.0),
    ]
    keep_report(tiny_bundle_copy, rows)
    assert taken(tiny_bundle_copy)[:2] == ("fp32", "openvino")


def test_times_of_another_machine_say_nothing(tiny_bundle_copy: Path) -> None:
    rows = [
        row(tiny_bundle_copy, "fp32", "openvino", 1.0),
        row(tiny_bundle_copy, "int8", "openvino", 9.0, accuracy={"delta": -0.5}),
    ]
    keep_report(tiny_bundle_copy, rows, where={**machine(), "cpu": "another processor"})
    precision, backend, why = taken(tiny_bundle_copy)
    assert (precision, backend) == ("fp32", "openvino")  # what INT8 loses, it loses anywhere
    assert "another machine" in why
    rows[1]["accuracy"] = None
    keep_report(tiny_bundle_copy, rows, where={**machine(), "cores": 10_000})
    assert taken(tiny_bundle_copy)[:2] == ("int8", "openvino")


def test_a_time_of_another_file_says_nothing(tiny_bundle_copy: Path) -> None:
    keep_report(
        tiny_bundle_copy, [row(tiny_bundle_copy, "fp32", "openvino", 1.0, artifact={"path": "", "sha256": "0"})]
    )
    assert taken(tiny_bundle_copy)[:2] == ("int8", "openvino")


def choose(bundle: Path, form: str, backend: str, **changes: Any) -> None:
    sha256 = next(a.sha256 for a in Bundle.open(bundle).manifest.artifacts if a.path == FILES[form])
    choice: dict[str, Any] = {
        "precision": form,
        "backend": backend,
        "why": "it is what the test wants",
        "report": "bench/report.json",
        "machine": identity(),
        "max_drop": 1.0,
        "sha256": sha256,
        **changes,
    }
    with Bundle.open(bundle).edit() as editor:
        editor.update(choice=Choice(**choice))


def test_what_the_benchmark_chose_is_taken(tiny_bundle_copy: Path) -> None:
    keep_report(tiny_bundle_copy, [row(tiny_bundle_copy, "int8", "openvino", 1.0)])
    choose(tiny_bundle_copy, "fp32", "onnxruntime")
    precision, backend, why = taken(tiny_bundle_copy)
    assert (precision, backend) == ("fp32", "onnxruntime")
    assert why == "vitdeploy bench chose it on this machine: it is what the test wants"
    assert taken(tiny_bundle_copy, precision="fp16")[:2] == ("fp16", "openvino")  # and can be told otherwise


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"machine": {**identity(), "cpu": "another"}}, id="on another machine"),
        pytest.param({"sha256": "0" * 64}, id="of another file"),
        pytest.param({"sha256": None}, id="of no file"),
    ],
)
def test_a_choice_that_does_not_hold_here(tiny_bundle_copy: Path, changes: dict[str, Any]) -> None:
    choose(tiny_bundle_copy, "fp32", "onnxruntime", **changes)
    assert taken(tiny_bundle_copy)[:2] == ("int8", "openvino")


def with_engine(bundle: Path) -> str:
    with Bundle.open(bundle).edit() as editor:
        editor.path_for("engines/tensorrt-fp16.engine").write_bytes(b"plan")
        return editor.add("engines/tensorrt-fp16.engine", kind="engine", precision="fp16", target="tensorrt").sha256


def test_a_benchmark_that_did_not_see_the_gpu_says_nothing_of_it(tiny_bundle_copy: Path) -> None:
    sha256 = with_engine(tiny_bundle_copy)
    cpu = row(tiny_bundle_copy, "fp32", "onnxruntime", 2.0)
    keep_report(tiny_bundle_copy, [cpu])

    def order() -> list[tuple[str, str]]:
        return [(c.precision, c.backend) for c in candidates(Bundle.open(tiny_bundle_copy), "auto", "auto", None)]

    assert order()[:2] == [("fp16", "tensorrt"), ("fp32", "onnxruntime")]
    engine = dict(cpu, artifact={"path": "", "sha256": sha256}, backend="tensorrt", latencies=timed(2.5))
    keep_report(tiny_bundle_copy, [cpu, engine])
    assert order()[:2] == [("fp32", "onnxruntime"), ("fp16", "tensorrt")]
    keep_report(tiny_bundle_copy, [dict(cpu, device="cuda"), row(tiny_bundle_copy, "fp16", "openvino", 3.0)])
    assert order()[0] == ("fp16", "openvino")  # FP32 on ONNX Runtime was fast on the GPU, which is not the CPU


def test_what_bench_writes_is_read(tmp_path: Path, tiny_images: Path) -> None:
    """The real report and the real choice, on a bundle that is measured in a moment."""
    path = write_small_bundle(tmp_path / "small")
    images = load_dataset(tiny_images, "all")
    options: dict[str, Any] = {"rounds": 3, "threads": 1, "memory": False, "phases": False, "max_drop_points": 100.0}
    report = bench(path, images, **options)
    chosen = save(report, Bundle.open(path), "<html>")
    assert chosen is not None
    precision, backend, why = taken(path)
    assert (precision, backend) == (chosen.precision, chosen.backend)
    assert chosen.why in why
    with Bundle.open(path).edit() as editor:
        editor.update(choice=None)
    times = {key: latency.ms.p50 for key in (r.key for r in report.rows) if (latency := report.row(key).latency)}
    precision, backend, why = taken(path)
    assert times[f"{precision}/{backend}"] == min(times.values()), times
    assert "in the benchmark of this machine" in why


def test_providers_are_taken_by_name_only(tiny_bundle: Path) -> None:
    names = {c.backend for c in candidates(Bundle.open(tiny_bundle), "auto", "auto", None)}
    assert names == {"openvino", "onnxruntime"}
    by_name = [spec.name for spec in backends() if spec.order is None and spec.takes != "checkpoint"]
    assert by_name == ["onnxruntime-tensorrt", "onnxruntime-openvino"]
    for name in by_name:
        found = candidates(Bundle.open(tiny_bundle), name, "auto", None)
        assert {c.backend for c in found} == {name}
    graphs = {c.artifact.path for c in candidates(Bundle.open(tiny_bundle), "onnxruntime-tensorrt", "int8", None)}
    assert graphs == {"model.int8.onnx"}

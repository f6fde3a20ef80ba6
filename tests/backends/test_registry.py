"""A backend is one spec: whoever registers one finds it wherever backends are opened, chosen, shown or named."""

from __future__ import annotations

import importlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tools.small_bundle import write_small_bundle
from vitdeploy import load
from vitdeploy.backends import registry
from vitdeploy.backends.registry import RunnerSpec, find, open_runner
from vitdeploy.bench import BenchReport, bench
from vitdeploy.bundle import Bundle
from vitdeploy.core.errors import InputError, VitdeployError
from vitdeploy.data import load_dataset
from vitdeploy.report.schema import schema
from vitdeploy.runtime.selection import candidates

pytestmark = pytest.mark.usefixtures("exact_products")

Cli = Callable[..., Any]
TOY = "tests.tools.toy_backend"
ROOT = Path(__file__).parents[2]
QUICK: dict[str, Any] = {"rounds": 2, "threads": 1, "memory": False, "phases": False}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[registry.BackendSpec]:
    """The toy backend, registered for one test."""
    monkeypatch.setattr(registry, "_specs", {spec.name: spec for spec in registry.backends()})
    importlib.import_module(TOY)
    yield find("toy")
    del sys.modules[TOY]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "small")


def test_load_opens_it(toy: registry.BackendSpec, small: Path, tiny_images: Path) -> None:
    image = next(tiny_images.rglob("*.png"))
    with load(small, backend="toy") as classifier, load(small, backend="onnxruntime", precision="fp32") as other:
        assert (classifier.backend, classifier.precision) == ("toy", "fp32")
        assert classifier.predict(image).label == other.predict(image).label
    order = [(c.precision, c.backend) for c in candidates(Bundle.open(small), "auto", "fp16", "cpu")]
    assert order == [("fp16", "openvino"), ("fp16", "onnxruntime"), ("fp16", "toy")]
    with pytest.raises(InputError, match="no form for int8, toy"):
        load(small, backend="toy", precision="int8")


def test_bench_measures_it_and_people_see_it(
    toy: registry.BackendSpec, cli: Cli, small: Path, tiny_images: Path, tmp_path: Path
) -> None:
    page, data = tmp_path / "page.html", tmp_path / "report.json"
    options = ("--backend", "toy,onnxruntime", "--precision", "fp32", "--rounds", 2, "--threads", 1, "--no-phases")
    files = ("--json", data, "--report", page)
    done = cli("bench", small, "--dataset", tiny_images, "--split", "all", *options, *files)
    assert done.exit_code == 0, done.stderr
    assert "Toy Engine" in done.stdout
    rows = {row["key"]: row for row in json.loads(data.read_text())["rows"]}
    assert set(rows) == {"fp32/onnxruntime", "fp32/toy"}
    assert rows["fp32/toy"]["status"] == "ok" and rows["fp32/toy"]["accuracy"]["agreement"] == 1
    memory = BenchReport.read(data).row("fp32/toy").memory
    assert memory is not None and memory.host_peak_bytes > 0  # of a process of its own
    text = page.read_text()
    corners = " ".join(f"{8 + 5 * x:.1f},{8 + 5 * y:.1f}" for x, y in toy.mark)
    assert "Toy Engine" in text and f'points="{corners}"' in text
    assert "fp32/toy" in cli("inspect", small, "--json").stdout


def test_commands_offer_it(toy: registry.BackendSpec, cli: Cli, small: Path, tiny_images: Path) -> None:
    for command in ("predict", "bench"):
        assert re.search(r"\btoy\b", cli(command, "--help").stdout)
    image = next(tiny_images.rglob("*.png"))
    done = cli("predict", small, image, "--backend", "toy", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["backend"] == "toy"
    (found,) = (c for c in json.loads(cli("doctor", "--json").stdout)["capabilities"] if c["key"] == "toy")
    assert found["name"] == "Run on the CPU: Toy Engine" and found["available"]


def test_the_schema_of_reports_knows_it(toy: registry.BackendSpec) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    backend = schema()["$defs"]["Row"]["properties"]["backend"]
    for name in registry.names():
        jsonschema.validate(name, backend)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate("no backend", backend)


def test_marks_stand_straight_around_their_point_and_are_of_one_size() -> None:
    for spec in registry.backends():
        assert {(-x, y) for x, y in spec.mark} == set(spec.mark), spec.name
        assert all(1 < math.hypot(x, y) < 1.5 for x, y in spec.mark), spec.name


def test_nobody_has_it_who_did_not_register_it(cli: Cli, small: Path, tiny_images: Path) -> None:
    with pytest.raises(InputError, match="no backend 'toy'"):
        load(small, backend="toy")
    assert cli("predict", small, "a.png", "--backend", "toy").exit_code == 2
    with pytest.raises(InputError, match="no backend 'toy'"):
        bench(small, load_dataset(tiny_images, "all"), backends=["toy"], **QUICK)


def test_two_backends_can_not_have_one_name(toy: registry.BackendSpec) -> None:
    with pytest.raises(InputError, match="'toy' already"):
        registry.register(toy)


def test_another_process_finds_it(toy: registry.BackendSpec, small: Path) -> None:
    data = json.dumps(RunnerSpec("toy", str(small / "model.onnx"), 1).to_json())
    program = (
        "import json, sys\nfrom vitdeploy.backends.registry import RunnerSpec, open_runner\n"
        "with open_runner(RunnerSpec.from_json(json.loads(sys.argv[1]))) as runner: print(runner.backend)"
    )
    done = subprocess.run([sys.executable, "-c", program, data], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "toy"


def test_the_list_loads_no_backend() -> None:
    program = "import sys; from vitdeploy.backends import registry; registry.names(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    heavy = {"numpy", *(need.module for spec in registry.backends() for need in spec.needs)}
    assert not heavy & set(done.stdout.split())


def test_what_is_taken_by_name_only_is_benchmarked_by_name_only(small: Path, tiny_images: Path) -> None:
    images = load_dataset(tiny_images, "all")
    report = bench(small, images, precisions=["fp32"], **QUICK)
    assert {row.backend for row in report.rows} == {"onnxruntime", "openvino"}
    named = ["onnxruntime-openvino", "onnxruntime-tensorrt"]
    report = bench(small, images, precisions=["fp32"], backends=named, **QUICK)
    assert [row.backend for row in report.rows] == ["onnxruntime-tensorrt", "onnxruntime-openvino"]
    for row in report.rows:  # what `load` can open by that name, bench can measure, and nothing else
        try:
            load(small, row.backend, "fp32").close()
        except VitdeployError:
            assert row.status != "ok" and row.reason
        else:
            assert row.status == "ok"


def test_bench_opens_for_throughput_what_has_the_choice(small: Path, tiny_images: Path) -> None:
    pytest.importorskip("openvino")
    images = load_dataset(tiny_images, "all")
    options: dict[str, Any] = {**QUICK, "precisions": ["fp32"], "backends": ["openvino"]}
    report = bench(small, images, performance="throughput", **options)
    assert report.row("fp32/openvino").status == "ok"
    assert report.to_json()["settings"]["performance"] == "throughput"
    spec = RunnerSpec("openvino", str(small / "model.onnx"), 2, performance="throughput")
    with open_runner(RunnerSpec.from_json(spec.to_json())) as runner:
        assert runner._performance == "throughput"  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="no performance 'speed'"):
        bench(small, images, performance="speed", **options)


def test_onnx_runtime_comes_first_where_openvino_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    def first() -> str:
        return min(("openvino", "onnxruntime"), key=lambda name: find(name).order())  # type: ignore[misc]

    assert first() == "openvino"
    monkeypatch.setattr("vitdeploy.core.machine.saturates", lambda: True)
    assert first() == "onnxruntime"

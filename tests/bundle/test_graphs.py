"""What is hashed is what is loaded, and weights outside a graph's file are hashed with it or refused."""

from __future__ import annotations

import json
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.fuzz import rounds
from tests.tools.small_bundle import write_small_bundle
from vitdeploy import load
from vitdeploy.bundle import Bundle, graphs
from vitdeploy.bundle.graphs import exact_bytes, external_files, read_graph, session_of
from vitdeploy.bundle.wire import framed
from vitdeploy.core.errors import BundleError, ModelError, VitdeployError

onnx = pytest.importorskip("onnx")
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
BACKENDS = ["onnxruntime", "openvino"]


def outside(model: Any, location: str) -> Any:
    """The same graph with its weights in another file, and that file's content."""
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    tensor = next(tensor for tensor in moved.graph.initializer if tensor.name == "weights")
    content = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(content)))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return moved, content


def bundle_with(tmp_path: Path, location: str, *, listed: bool) -> tuple[Path, np.ndarray]:
    """A bundle whose FP32 graph keeps its weights at `location`, and what the same graph answers with them inside."""
    path = write_small_bundle(tmp_path / "b", engine=False)
    with load(path, "onnxruntime", "fp32", threads=1) as classifier:
        expected = classifier.logits([PIXELS])
    moved, content = outside(onnx.load(path / "model.onnx"), location)
    with Bundle.open(path).edit() as editor:
        editor.path_for("model.onnx").write_bytes(moved.SerializeToString())
        editor.add("model.onnx", kind="onnx", precision="fp32")
        if listed:
            editor.path_for(location).write_bytes(content)
            editor.add(location, kind="weights", precision="fp32")
    if not listed:
        place = path / location
        if not place.exists() and place.parent.is_dir():
            place.write_bytes(content)
    return path, expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_the_manifest_lists_are_loaded(backend: str, tmp_path: Path) -> None:
    if backend == "onnxruntime":
        options = pytest.importorskip(backend).SessionOptions
        if not hasattr(options, "add_external_initializers_from_files_in_memory"):
            pytest.skip("this ONNX Runtime takes no weights from files that were read")
    pytest.importorskip(backend)
    path, expected = bundle_with(tmp_path, "model.onnx.data", listed=True)
    Bundle.open(path).verify()
    with load(path, backend, "fp32", threads=1) as classifier:
        np.testing.assert_allclose(classifier.logits([PIXELS]), expected, rtol=1e-5)
    data = path / "model.onnx.data"
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(BundleError, match=r"model.onnx.data is not the file that the manifest describes"):
        load(path, backend, "fp32", threads=1)
    with pytest.raises(BundleError, match=r"model.onnx.data is not the file"):
        Bundle.open(path).file(Bundle.open(path).manifest.artifacts[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("location", ["extra.bin", "../extra.bin", "/etc/hostname", "*/_ORT_MEM_ADDR_/*", ""])
def test_weights_that_no_hash_covers_are_refused(backend: str, location: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    path, _ = bundle_with(tmp_path, location, listed=False)
    bundle = Bundle.open(path)
    with pytest.raises(BundleError, match="which the manifest has not"):
        bundle.file(bundle.manifest.artifacts[0])
    with pytest.raises(VitdeployError, match="which its manifest has not|leaves the bundle"):
        load(path, backend, "fp32", threads=1)


def replaced(file: Path, content: bytes) -> None:
    (file.parent / "new").write_bytes(content)
    (file.parent / "new").replace(file)


CHANGES: dict[str, Callable[[Path, bytes], object]] = {
    "another file in its place": replaced,
    "written over": Path.write_bytes,
    "cut short": lambda file, _: os.truncate(file, 100),
    "touched": lambda file, _: os.utime(file),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_after_it_was_hashed_changes_nothing(
    change: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is loaded is what was hashed, or it is refused, and nothing of the other file is."""
    pytest.importorskip(backend)
    path = write_small_bundle(tmp_path / "b", engine=False)
    with load(path, backend, "fp32", threads=1) as classifier:
        expected = classifier.logits([PIXELS])
    other, real = (path / "model.fp16.onnx").read_bytes(), graphs._scanned

    def scanned(file: Any) -> Any:
        found = real(file)
        CHANGES[change](path / "model.onnx", other)
        return found

    monkeypatch.setattr(graphs, "_scanned", scanned)
    if change in ("written over", "cut short"):
        with pytest.raises(BundleError, match="is not the file"):
            load(path, backend, "fp32", threads=1)
        return
    with load(path, backend, "fp32", threads=1) as classifier:
        np.testing.assert_array_equal(classifier.logits([PIXELS]), expected)
    monkeypatch.setattr(graphs, "_scanned", real)
    if change != "touched":
        with pytest.raises(BundleError, match="is not the file"):
            load(path, backend, "fp32", threads=1)


def test_a_backend_is_given_the_opened_file_or_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes where there is no /proc, or where something writes to the file meanwhile, also if the first try failed."""
    file = tmp_path / "graph"
    file.write_bytes(b"\x08\x08")
    given: list[str | bytes] = []

    def load_once(graph: graphs.GraphFile) -> int:
        given.append(graph.source)
        if len(given) == 1 and touched:
            os.utime(file)
            raise ValueError("of what was there for a moment")
        assert (Path(graph.source).read_bytes() if isinstance(graph.source, str) else graph.source) == b"\x08\x08"
        return len(given)

    touched = False
    on_linux = Path("/proc/self/fd").exists()
    assert graphs.load_graph(file, None, load_once) == 1 and isinstance(given.pop(), str if on_linux else bytes)
    touched = on_linux
    assert graphs.load_graph(file, None, load_once) == 1 + on_linux and given.pop() == b"\x08\x08"
    given.clear()
    touched = False
    monkeypatch.setattr(graphs.os.path, "exists", lambda _: False)
    assert graphs.load_graph(file, None, load_once) == 1 and given == [b"\x08\x08"]


def test_weights_are_read_where_the_hashed_ones_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO reads them from files alone: from copies, also where they lie behind a link, as in the Hub's cache."""
    pytest.importorskip("openvino")
    from vitdeploy.backends.openvino import runner

    path, expected = bundle_with(tmp_path, "model.onnx.data", listed=True)
    data, real = path / "model.onnx.data", runner._with_weights
    data.rename(tmp_path / "blob")
    data.symlink_to(tmp_path / "blob")

    def changed(file: Any) -> Any:
        data.write_bytes(bytes(data.stat().st_size))
        return real(file)

    monkeypatch.setattr(runner, "_with_weights", changed)
    with load(path, "openvino", "fp32", threads=1) as classifier:
        np.testing.assert_allclose(classifier.logits([PIXELS]), expected, rtol=1e-5)


@pytest.mark.parametrize("at", range(-10, 10, 2))
def test_a_name_is_found_across_the_pieces_in_which_a_file_is_read(at: int, tmp_path: Path) -> None:
    message = b"\x0a\x08location\x12\x01x"
    for field in (13, 5, 7):
        message = framed(field, message)
    front = framed(4, bytes((1 << 22) - 20 + at))  # a field that nobody reads
    (tmp_path / "m").write_bytes(front + message)
    assert -3 <= (front + message).index(b"location") - (1 << 22) - at + 9 <= 3
    assert graphs.named_files(tmp_path / "m") == {"x"}


def test_pages_that_are_given_back_are_those_of_the_part_alone(tmp_path: Path) -> None:
    size, content = mmap.PAGESIZE, np.random.default_rng(0).integers(1, 256, 5 * mmap.PAGESIZE + 7, np.uint8)
    content.tofile(tmp_path / "file")
    pages = graphs.read_pages(tmp_path / "file")
    held = np.frombuffer(pages.content, np.uint8)
    np.testing.assert_array_equal(held, content)
    for part in (np.ones(9 * size, np.uint8), held[3:size], held[size - 1 : 2 * size - 1]):
        pages.release(part)
    np.testing.assert_array_equal(held, content)
    pages.release(held[size - 1 : 3 * size + 1].view(np.int8))
    assert not held[size : 3 * size].any()
    np.testing.assert_array_equal(np.delete(held, np.s_[size : 3 * size]), np.delete(content, np.s_[size : 3 * size]))


def test_pages_of_a_file_that_is_not_the_manifests(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"something")
    with pytest.raises(BundleError, match="SHA-256"):
        graphs.read_pages(tmp_path / "file", {"file": "0" * 64})
    with pytest.raises(ModelError, match="can't read"):
        graphs.read_pages(tmp_path / "gone")


def test_a_graph_outside_a_bundle_may_name_files_below_its_folder_alone(tmp_path: Path) -> None:
    model = onnx.load(write_small_bundle(tmp_path / "b", engine=False) / "model.onnx")
    (tmp_path / "weights.bin").write_bytes(b"x")
    for location, fine in (("weights.bin", True), ("../weights.bin", False), ("gone.bin", False)):
        (tmp_path / "m.onnx").write_bytes(outside(model, location)[0].SerializeToString())
        if fine:
            assert read_graph(tmp_path / "m.onnx").weights == {location: b"x"}
        else:
            with pytest.raises(ModelError):
                read_graph(tmp_path / "m.onnx")


def test_weights_are_found_wherever_a_graph_can_hold_them() -> None:
    helper = onnx.helper

    def tensor(location: str) -> Any:
        made = onnx.TensorProto(data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        made.external_data.add(key="location", value=location)
        return made

    inner = helper.make_graph([], "inner", [], [], [tensor("subgraph")])
    sparse = onnx.SparseTensorProto(values=tensor("sparse"), indices=tensor("indices"), dims=[1])
    nodes = [
        helper.make_node("Constant", [], ["a"], value=tensor("attribute")),
        helper.make_node("If", ["c"], ["b"], then_branch=inner),
        helper.make_node("Constant", [], ["s"], sparse_value=sparse),
    ]
    model = helper.make_model(helper.make_graph(nodes, "outer", [], []))
    model.graph.sparse_initializer.append(sparse)
    model.functions.append(onnx.FunctionProto(node=[helper.make_node("Constant", [], ["f"], value=tensor("function"))]))
    model.training_info.append(
        onnx.TrainingInfoProto(algorithm=helper.make_graph([], "t", [], [], [tensor("training")]))
    )
    found = external_files(model.SerializeToString())
    assert found == {"subgraph", "sparse", "indices", "attribute", "function", "training"}


def test_the_key_may_come_after_the_value_and_in_a_long_form() -> None:
    for entry in (
        b"\x12\x01x\x0a\x08location",
        b"\x0a\x88\x00location\x12\x01x",
        b"\x0a\x08locatioX\x12\x01x\x0a\x08location",
    ):
        data = b"\x6a" + bytes([len(entry)]) + entry  # TensorProto.external_data
        data = b"\x2a" + bytes([len(data)]) + data  # GraphProto.initializer
        assert external_files(b"\x3a" + bytes([len(data)]) + data) == {"x"}


@pytest.mark.fuzz
def test_mutated_graphs_are_read_or_refused() -> None:
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    tensor = model.graph.initializer.add(data_type=1, dims=[1])
    tensor.external_data.add(key="location", value="a")
    whole, draw, refused = model.SerializeToString(), random.Random(0), 0
    for _ in range(rounds(5000)):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        content = bytes(data[: draw.randint(0, len(data))] if draw.random() < 0.3 else data)
        try:
            external_files(content)
        except ValueError:
            refused += 1
    assert refused > 100


def test_a_manifest_of_a_graph_says_what_it_may_read(tmp_path: Path) -> None:
    path, _ = bundle_with(tmp_path, "model.onnx.data", listed=True)
    bundle = Bundle.open(path)
    data = json.loads((path / "manifest.json").read_text())
    known = {artifact["path"]: artifact["sha256"] for artifact in data["artifacts"]}
    found = bundle.hashes(bundle.manifest.artifacts[0])
    assert found == {name: known[name] for name in ("model.onnx", "model.onnx.data")}


@pytest.mark.parametrize("saturates", [True, False])
def test_a_session_is_told_to_be_exact_only_where_products_saturate(
    saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # with VNNI the entry makes INT8 almost twice as slow
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr("vitdeploy.bundle.graphs.saturates", lambda: saturates)
    options = onnxruntime.SessionOptions()
    exact_bytes(options)
    if saturates:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="session.x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")


def test_products_of_fp8_are_left_as_written_where_onnxruntime_takes_them_for_bytes(tmp_path: Path) -> None:
    """As releases before 1.32 do: `make test-lowest` runs one."""
    onnxruntime = pytest.importorskip("onnxruntime")
    entry, opened = "session.disable_quant_qdq", []

    class Older:
        @staticmethod
        def InferenceSession(source: Any, options: Any, providers: list[Any]) -> Any:
            try:
                opened.append(options.get_session_config_entry(entry))
            except RuntimeError:  # none
                opened.append("")
                raise RuntimeError("Type 'tensor(float8e4m3fn)' of MatMulIntegerToFloat is invalid") from None
            return onnxruntime.InferenceSession(source, options, providers=providers)

    bundle = write_small_bundle(tmp_path)
    source = bundle / "model.onnx"
    session = session_of(Older, str(source), onnxruntime.SessionOptions(), ["CPUExecutionProvider"])
    assert opened == ["", "1"] and session.get_inputs()
    options = onnxruntime.SessionOptions()
    session_of(onnxruntime, str(source), options, ["CPUExecutionProvider"])
    with pytest.raises(RuntimeError):
        options.get_session_config_entry(entry)  # graphs without FP8 keep their products of bytes
    with pytest.raises(Exception, match="nowhere"):
        session_of(onnxruntime, str(tmp_path / "nowhere.onnx"), options, ["CPUExecutionProvider"])

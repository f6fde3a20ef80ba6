"""A real Ray of two nodes on this machine: killed workers and drivers, and the rows of the local command.

`make test-ray` makes the environment, which has Ray and no PyTorch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.command_line import invoke
from vitdeploy import Classifier, InputError, OutputExistsError, VitdeployError, load
from vitdeploy.bulk import predict_files as predict_here
from vitdeploy.core import progress
from vitdeploy.core.progress import Step
from vitdeploy.data.outside import outside_paths

ray = pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
parquet = pytest.importorskip("pyarrow.parquet")
arrow = pytest.importorskip("pyarrow")

from vitdeploy.deploy.ray import Predictor, RaySettings, embed_files, predict_files, ship  # noqa: E402

pytestmark = pytest.mark.full
ROOT = Path(__file__).parents[2]
FORM = {"backend": "onnxruntime", "precision": "fp32"}
DRIVER = """
import json, sys
from vitdeploy.deploy.ray import RaySettings, predict_files
bundle, images, output, address = sys.argv[1:]
settings = RaySettings(address=address, backend="onnxruntime", precision="fp32", batch=1, block=25)
result = predict_files(bundle, [images], output, settings)
print(json.dumps(result.to_json()))
"""


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folder for caches of each node, as of two machines."""
    return [tmp_path_factory.mktemp("node"), tmp_path_factory.mktemp("node")]


@pytest.fixture(scope="module")
def address(caches: list[Path]) -> Iterator[str]:
    """A cluster of two nodes with one CPU each: the workers take all there is."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for cache in caches:
        variables = {"VITDEPLOY_CACHE": str(cache), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        cluster.add_node(num_cpus=1, env_vars=variables, include_dashboard=False)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def joined(address: str) -> Iterator[None]:
    ray.init(address=address, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Iterator[Classifier]:
    with load(tiny_bundle, **FORM, threads=1) as opened:  # type: ignore[arg-type]
        yield opened


@pytest.fixture(scope="module")
def many(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 image files, three of them broken."""
    root = tmp_path_factory.mktemp("many")
    files = sorted(tiny_images.rglob("*.png"))
    for number in range(2000):
        os.link(files[number % len(files)], root / f"{number:04}.png")
    for number in (7, 1000, 1999):
        (root / f"{number:04}.png").unlink()
        (root / f"{number:04}.png").write_bytes(b"oops")
    return root


def rows(folder: Path) -> list[dict[str, Any]]:
    """Of all parts, in their order."""
    return [row for part in sorted(folder.glob("part-*.parquet")) for row in parquet.read_table(part).to_pylist()]


def start(*arguments: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip


def wait_for_parts(output: Path, count: int, driver: subprocess.Popen[bytes]) -> dict[str, int]:
    """{name: when it was written} once there are so many."""
    until = time.monotonic() + 400
    while len(parts := sorted(output.glob("part-*.parquet"))) < count:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < until, f"{len(parts)} parts, and no more come"
        time.sleep(0.1)
    return {part.name: part.stat().st_mtime_ns for part in parts}


def bundles(caches: list[Path]) -> dict[str, int]:
    """{manifest: its inode} of the bundles in the caches; one that is fetched again has another."""
    found = (file for cache in caches for file in cache.glob("bundles/[0-9a-f]*/manifest.json"))
    return {str(file): file.stat().st_ino for file in found}


def workers() -> list[int]:
    """Processes that have a bundle open."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::MapWorker" in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_a_killed_worker_and_a_killed_driver(
    address: str, caches: list[Path], classifier: Classifier, tiny_bundle: Path, many: Path, tmp_path: Path
) -> None:
    output = tmp_path / "results"
    driver = start(tiny_bundle, many, output, address)
    wait_for_parts(output, 4, driver)
    os.kill(workers()[0], signal.SIGKILL)
    kept = wait_for_parts(output, 20, driver)  # others do what it had begun
    driver.kill()
    driver.communicate()
    arrived = bundles(caches)
    assert arrived
    driver = start(tiny_bundle, many, output, address)
    out, err = driver.communicate(timeout=500)
    assert driver.returncode == 0, err.decode()
    result = json.loads(out)
    assert (result["images"], result["failed"]) == (2000, 3) and result["resumed"] >= 25 * len(kept)
    assert [Path(failure["image"]).name for failure in result["failures"]] == ["0007.png", "1000.png", "1999.png"]
    for name, written in kept.items():
        assert (output / name).stat().st_mtime_ns == written, "a part is never written again"
    predict_here(classifier, [many], tmp_path / "here.parquet", batch=1)
    assert rows(output) == parquet.read_table(tmp_path / "here.parquet").to_pylist()
    now = bundles(caches)
    assert len(now) == 2 and now.items() >= arrived.items(), "each node fetches it once"


def test_the_command(address: str, tiny_bundle: Path, tiny_images: Path, tmp_path: Path) -> None:
    options = ("--engine", "ray", "--address", address, "--backend", "onnxruntime", "--precision", "fp32", "--json")
    done = invoke("predict", tiny_bundle, tiny_images, "--output", tmp_path / "by_ray", *options)
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout)
    assert (data["images"], data["failed"], data["precision"]) == (40, 0, "fp32")
    here = invoke("predict", tiny_bundle, tiny_images, "--output", tmp_path / "here.parquet", *options[4:])
    assert here.exit_code == 0, here.stderr
    assert rows(tmp_path / "by_ray") == parquet.read_table(tmp_path / "here.parquet").to_pylist()
    again = invoke("predict", tiny_bundle, tiny_images, "--output", tmp_path / "by_ray", *options)
    assert again.exit_code == 1 and "already exists" in again.stderr


@pytest.mark.usefixtures("joined")
def test_images_and_tables_in_s3(classifier: Classifier, tiny_bundle: Path, tiny_images: Path, tmp_path: Path) -> None:
    """By a server of moto's; what it holds is also here, where the local command reads it."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed: make test-ray")
    boto3 = pytest.importorskip("boto3")
    files = sorted(tiny_images.rglob("*.png"))
    data = tmp_path / "data"
    (data / "photos" / "deep").mkdir(parents=True)
    for index, file in enumerate(files):
        (data / "photos" / ("deep" if index % 2 else "") / f"{index}.png").write_bytes(file.read_bytes())
    (data / "photos" / "broken.png").write_bytes(b"oops")
    (data / "tables").mkdir()
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files] + [{"bytes": b"oops", "path": "x"}]
    parquet.write_table(arrow.table({"image": images}), data / "tables" / "a.parquet", row_group_size=7)
    paths = ["../photos/deep/1.png", "../photos/0.png", "../photos/none.png"]
    parquet.write_table(arrow.table({"path": paths}), data / "tables" / "b.parquet")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        port = server.get_host_and_port()[1]
        client = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{port}", aws_access_key_id="me", aws_secret_access_key="hidden",
            region_name="us-east-1",
        )  # fmt: skip
        client.create_bucket(Bucket="bucket")
        for file in data.rglob("*.*"):
            client.upload_file(str(file), "bucket", file.relative_to(data).as_posix())
        query = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        wanted = [f"s3://me:hidden@bucket/{folder}{query}" for folder in ("photos", "tables")]
        output = f"s3://me:hidden@bucket/results{query}"
        with outside_paths(True):
            result = predict_files(tiny_bundle, wanted, output, RaySettings(batch=1, block=10, **FORM))  # type: ignore[arg-type]
            predict_here(classifier, [data / "photos", data / "tables"], tmp_path / "here.parquet", batch=1)
        assert (result.images, result.failed, result.output) == (85, 3, "s3://bucket/results")
        parts = client.list_objects_v2(Bucket="bucket", Prefix="results/")["Contents"]
        for part in parts:
            (tmp_path / "results").mkdir(exist_ok=True)
            client.download_file("bucket", part["Key"], str(tmp_path / part["Key"]))
        found = rows(tmp_path / "results")
        expected = parquet.read_table(tmp_path / "here.parquet").to_pylist()
        for row, other in zip(found, expected, strict=True):
            assert row["image"] == other["image"].replace(str(data), "s3://bucket")
            assert (row["error"] is None) == (other["error"] is None)
            names = ("row", "label", "index", "score", "top_k")
            assert [row[name] for name in names] == [other[name] for name in names]
        assert "hidden" not in "".join(file.read_bytes().decode("latin-1") for file in (tmp_path / "results").iterdir())
        with pytest.raises(OutputExistsError, match="s3://bucket/results already exists"):
            predict_files(tiny_bundle, wanted, output)
    finally:
        server.stop()


@pytest.mark.usefixtures("joined")
def test_an_image_that_kills_every_worker_is_named_and_the_others_are_kept(
    tiny_bundle: Path, tiny_images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tests.tools.killer_files")
    for number, file in enumerate(sorted(tiny_images.rglob("*.png"))[:6]):
        os.link(file, tmp_path / f"{number}.png")
    (tmp_path / "killer.png").write_bytes(b"")
    with pytest.raises(VitdeployError, match=r"killer\.png to .*killer\.png killed 3 workers one after another"):
        settings = RaySettings(block=1, **FORM)  # type: ignore[arg-type]
        predict_files(tiny_bundle, [f"killer://{tmp_path}"], tmp_path / "results", settings)
    assert len(list((tmp_path / "results").glob("part-*"))) > 0


@pytest.mark.usefixtures("joined")
def test_a_stage_of_a_pipeline(classifier: Classifier, tiny_bundle: Path, tiny_images: Path) -> None:
    files = sorted(tiny_images.rglob("*.png"))[:10]
    items: list[dict[str, Any]] = [{"number": n, "bytes": file.read_bytes()} for n, file in enumerate(files)]
    items += [{"number": 10, "bytes": b"oops"}, {"number": 11, "bytes": None}]
    options = {"bundle": ship(tiny_bundle), **FORM, "top_k": 3, "batch": 1}
    stage = {"batch_size": 4, "compute": ray.data.ActorPoolStrategy(size=1), "num_cpus": 0.5}
    found = ray.data.from_items(items).map_batches(Predictor, fn_constructor_kwargs=options, **stage).take_all()
    assert sorted(found[0]) == ["error", "index", "label", "number", "score", "top_k"]
    for row in sorted(found, key=lambda row: int(row["number"])):
        if row["number"] >= 10:
            assert row["label"] is None and "image" in row["error"]
            continue
        alone = classifier.predict(files[row["number"]], 3)
        assert (row["label"], row["index"], row["score"]) == (alone.label, alone.index, alone.score)
        assert [one["label"] for one in row["top_k"]] == [one.label for one in alone.top_k]
    pixels = [{"image": np.full((20, 30, 3), n, np.uint8), "label": n} for n in range(3)]
    with pytest.raises(Exception, match="the rows have a column 'label' already"):
        ray.data.from_items(pixels).map_batches(Predictor, fn_constructor_kwargs=options, **stage).take_all()
    prefixed = {**options, "prefix": "predicted_"}
    found = ray.data.from_items(pixels).map_batches(Predictor, fn_constructor_kwargs=prefixed, **stage).take_all()
    assert sorted(row["label"] for row in found) == [0, 1, 2] and all(row["predicted_label"] for row in found)


@pytest.mark.usefixtures("joined")
def test_what_the_cluster_has_not_is_refused(tiny_bundle: Path, tiny_images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no machine of the cluster has 1 GPUs .* 1 CPUs and 0 GPUs; 1 CPUs"):
        predict_files(tiny_bundle, [tiny_images], tmp_path / "out", RaySettings(num_gpus=1))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that the Python of VITDEPLOY_PYTHON exports, which has PyTorch."""
    root, python = tmp_path_factory.mktemp("embedding"), os.environ.get("VITDEPLOY_PYTHON")
    if python is None:
        pytest.skip("VITDEPLOY_PYTHON names no Python with PyTorch: make test-ray")
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.tools.towers import write_tower; from vitdeploy import export\n"
        "root = Path(sys.argv[1]); export(write_tower('vit', root / 'checkpoint'), root / 'bundle')"
    )
    subprocess.run([python, "-c", code, str(root)], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return root / "bundle"


@pytest.mark.usefixtures("joined")
def test_a_stage_that_gives_vectors(embedding: Path, tiny_images: Path, tmp_path: Path) -> None:
    """The same rows as the local command's file, null where an image can't be used."""
    files = [*sorted(tiny_images.rglob("*.png"))[:6], tmp_path / "broken.png"]
    files[-1].write_bytes(b"oops")
    here = invoke(
        "embed", embedding, *files, "--backend", "onnxruntime", "--batch-size", 1, "--output", tmp_path / "v.parquet"
    )
    assert here.exit_code == 0, here.stderr
    wanted = {row["image"]: row for row in parquet.read_table(tmp_path / "v.parquet").to_pylist()}
    options = {"bundle": ship(embedding), **FORM, "batch": 1}
    stage = {"batch_size": 4, "compute": ray.data.ActorPoolStrategy(size=1), "num_cpus": 0.5}
    items = [{"name": str(file), "bytes": file.read_bytes()} for file in files]
    found = ray.data.from_items(items).map_batches(Predictor, fn_constructor_kwargs=options, **stage)
    found.write_parquet(str(tmp_path / "by_ray"))
    written = [row for part in (tmp_path / "by_ray").glob("*.parquet") for row in parquet.read_table(part).to_pylist()]
    assert len(written) == len(wanted) == 7 and all(sorted(row) == ["embedding", "error", "name"] for row in written)
    for row in written:
        other = wanted[row["name"]]
        assert (row["error"] is None) == (other["error"] is None) == (row["name"] != str(files[-1]))
        assert row["embedding"] == other["embedding"]
    prefixed = {**options, "prefix": "clip_"}
    again = ray.data.from_items(items[:2]).map_batches(Predictor, fn_constructor_kwargs=prefixed, **stage).take_all()
    assert all(sorted(row) == ["clip_embedding", "clip_error", "name"] for row in again)


def test_embeddings_are_those_of_the_local_command(
    address: str, embedding: Path, tiny_images: Path, tmp_path: Path
) -> None:
    options = ("--backend", "onnxruntime", "--precision", "fp32", "--batch-size", 1)
    arguments = ("embed", embedding, tiny_images, *options, "--output")
    done = invoke(*arguments, tmp_path / "by_ray", "--engine", "ray", "--address", address)
    assert done.exit_code == 0, done.stderr
    here = invoke(*arguments, tmp_path / "here.parquet")
    assert here.exit_code == 0, here.stderr
    found = rows(tmp_path / "by_ray")
    assert found == parquet.read_table(tmp_path / "here.parquet").to_pylist() and len(found) == 40
    assert all(len(row["embedding"]) > 10 for row in found)


class Titles:
    """What is said to be done."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def task(self, description: str, total: float | None, unit: str) -> AbstractContextManager[Step]:
        self.seen.append(description)
        return progress.silent()

    def note(self, message: str) -> None:
        pass


def test_what_is_done_is_called_what_it_is(
    address: str, embedding: Path, tiny_bundle: Path, tiny_images: Path, tmp_path: Path
) -> None:
    settings = RaySettings(address=address, batch=1, **FORM)  # type: ignore[arg-type]
    for run, bundle, title in ((embed_files, embedding, "Embedding"), (predict_files, tiny_bundle, "Classifying")):
        titles = Titles()
        with progress.use(titles):
            run(bundle, [tiny_images], tmp_path / title, settings)
        assert titles.seen[-1] == title

"""`web`: a bundle -> a folder with a page that runs it in the browser, and the ES module that the page is made with.

    OUTPUT/
      index.html, page.css, page.js      the page: camera or file, label and latency
      vitdeploy.js                       `load(url)` -> `.predict(image)`, in browsers and in Node
      pixels.js, scores.js, selftest.js  its parts
      site.json                          labels, threshold, task, forms and the SHA-256 of each
      model.int8-cpu.onnx, model.onnx    the forms
      selftest.json                      the bundle's self-test in what JavaScript reads
      ort/                               onnxruntime-web
      serve.py                           a local server with the headers that threads need

A site fetches nothing from elsewhere. Nothing of a bundle is written into HTML or JavaScript: names and labels are in
site.json, which the page reads and shows as text.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from vitdeploy import __version__
from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.bundle.selftest import Selftest
from vitdeploy.compiler.passes.narrow_splits import narrow_splits
from vitdeploy.compiler.passes.save import save
from vitdeploy.core.errors import BundleError, InputError, require
from vitdeploy.core.storage import check_apart, files_below, lists_all, sha256, staged_folder
from vitdeploy.core.text import quoted
from vitdeploy.data.images import MAX_PIXELS
from vitdeploy.deploy.web.onnxruntime_web import OnnxRuntimeWeb, find
from vitdeploy.models.tasks import CLASSIFICATION, TASKS
from vitdeploy.runtime.remote import open_bundle

__all__ = ["FACTS", "PRECISIONS", "WebSite", "web"]

FACTS = "site.json"
SELFTEST = "selftest.json"
SCHEMA_VERSION = 1
_FORMS = {("int8", "cpu"): ("wasm",), ("fp32", "any"): ("webgpu", "wasm")}
"""(precision, target) of what can run -> where, the one to take first at the front. INT8's integer products are none of
WebGPU's."""
PRECISIONS = tuple(precision for precision, _ in _FORMS)
_PAGE = ("index.html", "page.css", "page.js", "vitdeploy.js", "pixels.js", "scores.js", "selftest.js")


@dataclass(frozen=True)
class WebSite:
    """What was written: the folder, the forms by their files, the version of onnxruntime-web, whether the bundle's
    self-test came with it, and every file."""

    path: Path
    forms: tuple[str, ...]
    onnxruntime_web: str
    selftest: bool
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "forms": list(self.forms),
            "onnxruntime_web": self.onnxruntime_web,
            "selftest": self.selftest,
            "files": list(self.files),
        }


def web(
    bundle: Bundle | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    onnxruntime_web: str | os.PathLike[str] | None = None,
    precision: str = "auto",
    overwrite: bool = False,
) -> WebSite:
    """Write a page that runs a bundle in the browser.

    Args:
        bundle: an open bundle, its folder, or `owner/name` of one on the Hub.
        output: the site's folder.
        onnxruntime_web: the npm package's folder, or one with a node_modules that has it; None: node_modules of the
            working folder, or of one above.
        precision: "int8" or "fp32" for that form alone; "auto": both, where they are there.
        overwrite: replace a site that this wrote.

    Raises:
        BundleError: the bundle is damaged, its self-test is of another graph, or it has no form for that.
        InputError: no such precision, or the bundle is no classifier.
        OutputExistsError: `output` exists and may not be replaced, or holds what is read.
        DependencyError: onnxruntime-web is not there.
    """
    opened = open_bundle(bundle)
    TASKS[opened.manifest.task].require(CLASSIFICATION, str(opened.path), "deploy web")
    artifacts = _chosen(opened, precision)
    runtime = find(onnxruntime_web)
    runtime_files = runtime.files()
    check_apart(output, [opened.path, runtime.folder])
    selftest = Selftest.of(opened) if opened.find(kind="selftest") is not None else None
    target = Path(output)
    with staged_folder(target, overwrite=overwrite, ours=_is_ours, what="site of ours") as staging:
        package = resources.files(__package__)
        for name in _PAGE:
            (staging / name).write_bytes((package / "page" / name).read_bytes())
        (staging / "serve.py").write_bytes((package / "serve.py").read_bytes())
        (staging / "ort").mkdir()
        for path in runtime_files:
            shutil.copyfile(path, staging / "ort" / path.name)
        forms = [_form(opened, artifact, selftest, staging) for artifact in artifacts]
        facts = _facts(opened, runtime, forms)
        if selftest is not None:
            facts["selftest"] = _selftest(opened, selftest, staging)
        facts["files"] = files_below(staging)
        (staging / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    names = tuple(artifact.path for artifact in artifacts)
    return WebSite(target, names, runtime.version, selftest is not None, tuple(sorted([*facts["files"], FACTS])))


def _chosen(bundle: Bundle, precision: str) -> list[Artifact]:
    """The graphs that a browser can run, the one to take first at the front."""
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"precision is {precision!r}", hint=f"one of auto, {', '.join(PRECISIONS)}")
    stale = bundle.out_of_date()
    found = [
        artifact
        for name, target in _FORMS
        if precision in ("auto", name)
        and (artifact := bundle.find(kind="onnx", precision=name, target=target)) is not None
        and artifact.path not in stale
    ]
    if not found:
        wanted = "form" if precision == "auto" else f"{precision} form"
        raise BundleError(
            f"{bundle.path} has no {wanted} that a browser can run, or only one that is out of date",
            hint=f"make one: vitdeploy build-engine {quoted(bundle.path)} --fp32 --target onnx"
            if precision == "fp32"
            else f"make one: vitdeploy build-engine {quoted(bundle.path)} --int8 --target onnx",
        )
    return found


def _form(bundle: Bundle, artifact: Artifact, selftest: Selftest | None, staging: Path) -> dict[str, Any]:
    """Write a form into the site; what site.json says of it."""
    assert artifact.precision is not None
    backends, name = _FORMS[artifact.precision, artifact.target], PurePosixPath(artifact.path).name
    source = bundle.file(artifact)
    if "webgpu" not in backends or not _written_for_webgpu(source, staging / name):
        shutil.copyfile(source, staging / name)
        for weights in bundle.select(kind="weights"):
            if weights.path.startswith(f"{artifact.path}."):
                shutil.copyfile(bundle.file(weights), staging / PurePosixPath(weights.path).name)
    bounds = None if selftest is None else selftest.bounds_of(artifact)
    batch, *size = bundle.manifest.inputs[0].shape[:3]
    return {
        "precision": artifact.precision,
        "backends": list(backends),
        **_hashed(staging / name),
        "weights": [_hashed(path) for path in sorted(staging.glob(f"{name}.*"))],
        "made_from": artifact.sha256,
        "batch": batch if isinstance(batch, int) else 1,
        "size": [edge if isinstance(edge, int) else None for edge in size],
        "bounds": None if bounds is None else bounds.tolist(),
    }


def _written_for_webgpu(source: Path, path: Path) -> bool:
    """Write a graph so that WebGPU runs it; False, and nothing is written, where it does as it is."""
    ir = require("onnx_ir", extra="build")
    model = ir.load(source)
    if not narrow_splits(model).changed:
        return False
    save(model, path)
    return True


def _hashed(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": sha256(path), "size_bytes": path.stat().st_size}


def _facts(bundle: Bundle, runtime: OnnxRuntimeWeb, forms: list[dict[str, Any]]) -> dict[str, Any]:
    """What site.json says, but for the self-test and the list of files."""
    manifest = bundle.manifest
    outputs = [spec.name for spec in manifest.outputs]
    task = TASKS[manifest.task]
    return {
        "schema_version": SCHEMA_VERSION,
        "type": "site",
        "vitdeploy": __version__,
        "onnxruntime_web": runtime.version,
        "model": manifest.model.get("name"),
        "task": task.name,
        "activation": task.activation,
        "labels": list(manifest.labels),
        "threshold": task.threshold(manifest.threshold, str(bundle.path)),
        "input": manifest.inputs[0].name,
        "output": "logits" if "logits" in outputs else outputs[0],
        "max_pixels": MAX_PIXELS,
        "forms": forms,
        "selftest": None,
    }


def _selftest(bundle: Bundle, selftest: Selftest, staging: Path) -> dict[str, Any]:
    """Write the self-test for JavaScript; what site.json says of it."""
    artifact = bundle.find(kind="selftest")
    assert artifact is not None
    document = {
        "schema_version": SCHEMA_VERSION,
        "reference": selftest.reference,
        "images": [
            {
                "height": image.shape[0],
                "width": image.shape[1],
                "rgb": base64.b64encode(image.tobytes()).decode("ascii"),  # (height, width, 3) uint8
            }
            for image in selftest.images
        ],
        "logits": [
            {"size": None if size is None else list(size), "values": values.tolist()}  # (images, classes)
            for size, values in selftest.logits.items()
        ],
    }
    (staging / SELFTEST).write_text(json.dumps(document) + "\n", encoding="utf-8")
    return {**_hashed(staging / SELFTEST), "made_from": artifact.sha256}


def _is_ours(folder: Path) -> bool:
    """Whether it was written by this, and there is nothing else."""
    return lists_all(folder, FACTS, "files")

"""Which instruction set our INT8 kernels run on, what is said where none is for this processor, and their place."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.native import FORM, compiled, images, needs_compiled, needs_kernels
from vitdeploy import load
from vitdeploy.backends import registry
from vitdeploy.backends.native import library, structures
from vitdeploy.backends.native.library import kernels_obstacle
from vitdeploy.backends.native.runner import NativeRunner
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.build import build
from vitdeploy.compiler.export import export
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.core import machine
from vitdeploy.core.errors import DependencyError
from vitdeploy.data import load_dataset
from vitdeploy.doctor import examine
from vitdeploy.runtime.selection import candidates

pytestmark = pytest.mark.usefixtures("exact_products")


def order(bundle: Path) -> list[tuple[str, str, bool]]:
    found = candidates(Bundle.open(bundle), "auto", "int8", "cpu")
    return [(form.precision, form.backend, form.reason is None) for form in found]


def test_its_place(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(registry.find("native"), obstacle=lambda: None)
    monkeypatch.setitem(registry._specs, "native", spec)
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx512_vnni"}))
    assert [name for _, name, _ in order(tiny_bundle)] == ["native", "openvino", "onnxruntime"]
    for flags in ({"avx512_vnni", "amx_int8"}, {"avx_vnni"}):
        monkeypatch.setattr(machine, "cpu_flags", lambda flags=flags: frozenset(flags))
        assert [name for _, name, _ in order(tiny_bundle)] == ["openvino", "onnxruntime", "native"]


@needs_kernels
def test_load_takes_it(tiny_bundle: Path) -> None:
    if "amx_int8" in machine.cpu_flags():
        pytest.skip("it is the last here")
    with load(tiny_bundle, threads=2) as classifier:
        assert (classifier.precision, classifier.backend) == ("int8", "native")
        assert classifier.predict(images(1)[0]).label


OLD = library.InstructionSet("avx", "AVX-512 VNNI", False, structures.Tile(), 0)
PLAIN = library.InstructionSet("plain", None, True, structures.Tile(), 0)


def without_kernels() -> None:
    raise DependencyError("vitdeploy was installed without its kernels", hint="install g++")


@pytest.mark.parametrize(
    ("found", "named", "says"),
    [
        pytest.param(lambda: (OLD, PLAIN), "", "has no AVX-512 VNNI", id="an older processor"),
        pytest.param(lambda: (OLD, PLAIN), "avx", "VITDEPLOY_ISA is 'avx'.* has no AVX-512", id="an older one, named"),
        pytest.param(lambda: (OLD, PLAIN), "mmx", "'mmx': the kernels have avx, plain", id="a name that is none"),
        pytest.param(lambda: (PLAIN,), "", "no instruction set of this kind", id="another kind of processor"),
        pytest.param(without_kernels, "", "without its kernels", id="installed without a compiler"),
    ],
)
def test_where_it_can_not_run(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, found: Callable[[], Any], named: str, says: str
) -> None:
    monkeypatch.setattr(library, "instruction_sets", found)
    monkeypatch.setenv(library.VARIABLE, named)
    obstacle = kernels_obstacle()
    assert obstacle is not None and re.search(says, obstacle[0])
    with pytest.raises(DependencyError, match=says) as caught, NativeRunner(tiny_bundle / FORM):
        pass
    assert caught.value.hint
    (form,) = (form for form in candidates(Bundle.open(tiny_bundle), "native", "auto", None))
    assert re.search(says, form.reason or "")
    with load(tiny_bundle, device="cpu") as classifier:
        assert (classifier.precision, classifier.backend) == ("int8", "openvino")
        assert classifier.describe()["instruction_set"] is None
    monkeypatch.setenv(library.VARIABLE, "plain")
    assert (kernels_obstacle() is None) == (found is not without_kernels)


@needs_compiled
def test_the_portable_instruction_set_runs_anywhere_when_it_is_asked_for(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest = next((isa.name for isa in library.instruction_sets() if isa.missing is None and not isa.on_request), None)
    asked = {"portable": "portable"} | ({"": fastest} if fastest else {})
    scores = []
    for name, taken in asked.items():
        monkeypatch.setenv(library.VARIABLE, name)
        with load(tiny_bundle, backend="native", threads=2) as classifier:
            assert classifier.describe()["instruction_set"] == taken
            scores.append([each.score for each in classifier.predict(list(images(3)))])
        (note,) = (each.note for each in examine().capabilities if each.key == "native")
        assert note == f"compiled for {taken}"
    assert scores[0] == scores[-1]


NATIVE = Path(library.__file__).parent


def test_only_instruction_sets_name_instructions() -> None:
    files = [path for path in NATIVE.rglob("*") if path.suffix in (".cpp", ".h")]
    intrinsic = re.compile(r"\b_mm|\b__m\d|\basm\b|include <(\w*intrin|arm_neon)")
    named = {path.parent.name for path in files if intrinsic.search(path.read_text())}
    assert named == {"isa"}


@pytest.mark.full
@pytest.mark.skipif(None in map(shutil.which, ("g++", "objdump", "nm")), reason="needs g++ and binutils")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86's instructions")
def test_no_code_of_an_instruction_set_is_run_by_another(tmp_path: Path) -> None:
    """AVX and AVX-512 are in the files that say so, and no file offers the linker more than its table of steps."""
    objects = {path.stem: path for path in compiled(tmp_path, ["-O3"])}
    code = {name: subprocess.check_output(["objdump", "-d", path], text=True) for name, path in objects.items()}
    of_avx512 = re.compile(r"^ *[0-9a-f]+:\t62 |%zmm|%k[0-7]", re.MULTILINE)  # no other encoding begins with 62
    assert {name for name, text in code.items() if of_avx512.search(text)} == {"avx512vnni", "avx512vl"}
    assert {name for name, text in code.items() if "%ymm" in text} == {"avx512vnni", "avx512vl", "avxvnni"}
    for name, path in objects.items():
        offered = subprocess.check_output(["nm", "-C", "--defined-only", "--extern-only", path], text=True)
        if name != "encoder":
            assert [line.split(maxsplit=2)[2] for line in offered.splitlines()] == [f"kernels::{name}::steps"]


@pytest.mark.full
@needs_kernels
def test_every_instruction_set_answers_2000_images_alike(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(test_data / "models" / "vit-small-patch14-112-cifar10", tmp_path / "bundle")
    recipe = Recipe(dataset=str(test_data / "cifar10"), count=4, smoothing=False)
    build(tmp_path / "bundle", ["int8"], target="onnx", recipe=recipe)
    dataset = load_dataset(str(test_data / "cifar10"), split="test")
    pixels = np.stack([np.asarray(dataset.image(place)) for place in range(2000)])
    answers = {}
    for isa in library.instruction_sets():
        if isa.missing is None and isa.name != "portable":
            monkeypatch.setenv(library.VARIABLE, isa.name)
            with NativeRunner(tmp_path / "bundle" / FORM, 2) as runner:
                assert runner.instruction_set == isa.name
                answers[isa.name] = np.concatenate(
                    [runner.infer({"image": pixels[start : start + 50]})["logits"] for start in range(0, 2000, 50)]
                )
    first = next(iter(answers.values()))
    assert len(np.unique(first.argmax(axis=1))) == 10
    for logits in answers.values():
        np.testing.assert_array_equal(logits.view(np.uint32), first.view(np.uint32))

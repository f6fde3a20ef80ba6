"""Bundle -> bundle with further forms (rows of `forms.FORMS`) and TensorRT engines in it.

The order: the ONNX forms first, in one change of the bundle, then one engine after the other, each a change of its own.
What is already there and up to date is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitdeploy import __version__
from vitdeploy.bundle import Artifact, Bundle, BundleEditor
from vitdeploy.compiler.float16.check import rounded
from vitdeploy.compiler.forms import FORMS, Form, Ingredients, Making
from vitdeploy.compiler.passes.save import save
from vitdeploy.compiler.selftest import SelftestStage
from vitdeploy.compiler.settings import BuildSettings
from vitdeploy.core import machine, progress
from vitdeploy.core.errors import InputError, require
from vitdeploy.core.precisions import FORMS as SPECS
from vitdeploy.core.precisions import asked_by, spec_of, title
from vitdeploy.core.precisions import precisions as known_precisions
from vitdeploy.core.settings import with_options

if TYPE_CHECKING:
    from vitdeploy.compiler.engine import EngineOptions

__all__ = ["BuildResult", "build"]


@dataclass(frozen=True)
class BuildResult:
    """The bundle after the build, what was made, and what was there already and up to date.

    `stale` are engines of these precisions that were there already and whose graph is not there any more: another took
    its place, and they were not built anew, since another target was asked for. `load` refuses them.
    """

    bundle: Bundle
    target: str
    built: tuple[Artifact, ...]
    kept: tuple[Artifact, ...]
    stale: tuple[Artifact, ...]

    def __repr__(self) -> str:
        built, kept = (", ".join(artifact.path for artifact in made) or "nothing" for made in (self.built, self.kept))
        return f"<BuildResult of {self.bundle.path}: built {built}; kept {kept}>"


def build(
    bundle: Bundle | str | os.PathLike[str],
    precisions: Sequence[str],
    settings: BuildSettings | None = None,
    **options: Any,
) -> BuildResult:
    """Make forms of a bundle and engines from them.

    Example:
        build("bundles/vit", ["fp16", "int8"], recipe=Recipe(dataset="photos/"), max_drop=0.5)

    Args:
        bundle: the bundle, or its folder.
        precisions: of those in `core.precisions`: "fp32" (only an engine), "fp16", "bf16", "int8", "fp8".
        settings: how they are built.
        options: fields of `BuildSettings`, those of its `limits` included, that win over `settings`.

    Raises:
        InputError: a precision that is not known, INT8 with neither a recipe nor a calibration in the bundle, or a
            limit that is not for this model.
        ModelError: INT8's calibration fails its check, it can't meet the budget, or it would be slower than FP16 by
            its structure.
        EngineError: the target can't be built here.
    """
    settings = with_options(settings or BuildSettings(), options)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    opened.check_changeable()
    wanted = _check_precisions(precisions)
    target, engines = _engines(opened, wanted, settings)
    before = {artifact.path: artifact for artifact in opened.manifest.artifacts}
    with opened.edit() as editor:
        _Builder(opened, editor, settings).make(wanted)
    opened = opened.reopen()
    if engines is not None:
        for precision in wanted:
            _build_engine(opened, precision, engines, settings.force)
            opened = opened.reopen()
    return _result(opened, wanted, target, before)


def _engines(bundle: Bundle, precisions: Sequence[str], settings: BuildSettings) -> tuple[str, EngineOptions | None]:
    """The target that "auto" means here, and how its engines are built; None where it has none.

    What engines can't be is said here, before minutes go into calibration.
    """
    from vitdeploy.compiler.engine import EngineOptions, check_options, choose_target, for_gpus

    target = choose_target(settings.target)
    if target == "onnx":
        return target, None
    options = (settings.engine_options or EngineOptions(flavour=target)).for_manifest(bundle.manifest, target)
    for precision in precisions:
        for_gpus(options, precision)
    check_options(options, bundle.manifest.inputs[0])
    return target, options


def _result(bundle: Bundle, precisions: Sequence[str], target: str, before: Mapping[str, Artifact]) -> BuildResult:
    """What is there now, beside what was there before."""
    artifacts, outdated = bundle.manifest.artifacts, bundle.out_of_date()
    built = tuple(a for a in artifacts if before.get(a.path) != a and a.kind != "selftest")
    kinds = {(kind, precision) for kind in ("onnx", "engine") for precision in precisions}
    there = [a for a in artifacts if before.get(a.path) == a and (a.kind, a.precision) in kinds]
    stale = tuple(a for a in there if a.kind == "engine" and a.path in outdated)
    return BuildResult(bundle, target, built, tuple(a for a in there if a not in stale), stale)


def _check_precisions(precisions: Sequence[str]) -> tuple[str, ...]:
    known = known_precisions()
    for precision in precisions:
        if precision not in known:
            raise InputError(f"precision {precision!r} is not known", hint=f"one of {', '.join(known)}")
    if not precisions:
        raise InputError("no precision was asked for", hint=f"add {asked_by()}")
    return tuple(precision for precision in known if precision in precisions)


class _Builder:
    """Makes rows of the table of forms, in one change of the bundle."""

    def __init__(self, bundle: Bundle, editor: BundleEditor, settings: BuildSettings) -> None:
        single = bundle.find(kind="onnx", precision="fp32")
        if single is None:
            raise InputError(f"{bundle.path} has no model.onnx", hint="export it again")
        self._bundle, self._editor, self._force = bundle, editor, settings.force
        self._ingredients = Ingredients(bundle, editor, single, settings)
        self._made: dict[tuple[str, str], Artifact] = {}

    def make(self, precisions: Sequence[str]) -> None:
        forms = [form for form in FORMS.values() if form.spec.precision in precisions]
        for need in dict.fromkeys(need for form in forms for need in form.needs):
            need.check(self._ingredients)  # before images go through the model for another form
        for form in forms:
            origin, ties = self._origin(form), {}
            for need in form.needs:
                ties.update(need.find(self._ingredients))
            if not self._current(form, origin, ties):
                target = form.spec.target
                with progress.task(f"{form.spec.title} graph" + (f" ({target})" if target != "any" else "")):
                    self._made[form.spec.key] = self._write(form, origin, ties)
        self._prove()

    def _prove(self) -> None:
        """Have a self-test in the bundle, with bounds for each of its forms."""
        selftest = self._ingredients.selftest
        for artifact in self._bundle.select(kind="onnx"):
            spec = spec_of(artifact.precision, artifact.target)
            if spec is not None and selftest.lacks(artifact.path):
                with rounded(self._bundle.file(artifact)) as runner:
                    selftest.add(artifact.path, runner, spec.title)
        selftest.write()

    def _origin(self, form: Form) -> Artifact:
        precision, target = form.origin
        found = self._made.get(form.origin) or self._bundle.find(kind="onnx", precision=precision, target=target)
        if found is None:
            raise InputError(
                f"{form.spec.title} is made from the {precision} graph, and {self._bundle.path} has none",
                hint=f"build {precision} as well",
            )
        return found

    def _current(self, form: Form, origin: Artifact, ties: dict[str, Any]) -> bool:
        there = next((a for a in self._bundle.manifest.artifacts if a.path == form.spec.file), None)
        return (
            there is not None
            and not self._force
            and there.built_from == origin.sha256
            and there.built_with.get("vitdeploy") == __version__
            and all(there.built_with.get(key) == value for key, value in ties.items())
            and (self._bundle.path / form.spec.file).is_file()
        )

    def _write(self, form: Form, origin: Artifact, ties: dict[str, Any]) -> Artifact:
        ir = require("onnx_ir", extra="build")
        spec, editor = form.spec, self._editor
        making = Making(spec, self._ingredients, {"vitdeploy": __version__, **ties})
        model = ir.load(editor.read_path(origin.path) if form.origin in self._made else self._bundle.file(origin))
        for step in form.passes:
            model = step(model, making)
        path = editor.path_for(spec.file)
        data = save(model, path)
        if data is not None:
            editor.add(data.name, kind="weights", precision=spec.precision, target=spec.target)
        with rounded(path) as making.runner:
            for check in form.checks:
                check(model, path, making)
            self._ingredients.selftest.add(spec.file, making.runner, spec.title)
        return editor.add(
            spec.file,
            kind="onnx",
            precision=spec.precision,
            target=spec.target,
            built_from=origin.sha256,
            built_with=making.built_with,
        )


def _build_engine(bundle: Bundle, precision: str, options: EngineOptions, force: bool) -> None:
    """One engine, in a change of the bundle of its own; nothing is done where it is there and up to date."""
    from vitdeploy.compiler.engine import build_engine, for_gpus

    spec = next((s for s in SPECS.values() if s.precision == precision and s.engine_place is not None), None)
    if spec is None:
        progress.note(f"No engine is built in {title(precision)}.")
        return
    source = bundle.find(kind="onnx", precision=precision, target=spec.target)
    assert source is not None, "forms are made before engines"
    options = for_gpus(options, precision)
    name = f"engines/{options.flavour}-{precision}.engine"
    request = _request(options)
    there = next((artifact for artifact in bundle.manifest.artifacts if artifact.path == name), None)
    if (
        there is not None
        and not force
        and there.built_from == source.sha256
        and there.built_with.get("request") == request
        and (bundle.path / name).is_file()
    ):
        progress.note(f"{name} is up to date: nothing to build.")
        return
    with bundle.edit() as editor:
        log_path = (bundle.path / name).with_suffix(".log")  # beside the engine, and kept if the build fails
        info = build_engine(bundle.file(source), editor.path_for(name), options, log_path=log_path)
        single = bundle.find(kind="onnx", precision="fp32")
        assert single is not None
        selftest = SelftestStage(bundle, editor, single)
        selftest.cover(options.profiles[0].height, options.profiles[0].width)
        selftest.write()
        editor.add(
            name,
            kind="engine",
            precision=precision,
            target=options.flavour,
            built_from=source.sha256,
            built_with={**info.to_json(), "vitdeploy": __version__, "request": request},
        )


def _request(options: EngineOptions) -> dict[str, Any]:
    """What was asked for, to tell whether an engine is the one that is asked for now."""
    return {
        **options.to_json(),
        "profiles": [profile.to_json() for profile in options.profiles],
        "installed": machine.version(options.flavour),
    }

"""Small mutants of the code against the tests of their module: `make mutants MODULE=bundle`.

    python -m tests.tools.mutants MODULE [--count 40] [--seed 0]   a sample of the module's mutants
    python -m tests.tools.mutants MODULE --again                   those that survived, after a test was added
    python -m tests.tools.mutants --page                           only draws docs/results/mutation.md anew

tests/mutants.toml lists the modules with the tests that cover them. Cosmic Ray makes the mutants; one kind more is made
here, a call for its effect that is dropped. Each mutant is written to a copy of the repository, and a child of this
process, which has the large libraries already, runs there the tests that run the mutated line, then, where fixtures or
an import ran it, the module's others. docs/results/mutation.json keeps what came of it. Why a mutant lives is written
there by hand, as its `why`; "equivalent: ..." takes it out of the score.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from tests.tools.mutation_records import PAGE, RESULTS, ROOT, Module, Mutant, modules, mutants, page, results, score

HEAVY = ("torch", "transformers.trainer", "transformers.models.vit.modeling_vit", "onnx", "onnx_ir", "onnxscript")
HEAVY += ("onnxruntime", "openvino", "datasets", "pyarrow.parquet", "sklearn.datasets", "PIL.Image", "scipy.special")
HEAVY += ("pytest", "pytest_cov.plugin", "hypothesis", "rich.console", "click.testing")

_SWAPS = {
    "Binary": "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Div Mod_FloorDiv Pow_Mul LShift_RShift RShift_LShift"
    " BitOr_BitAnd BitAnd_BitOr BitXor_BitOr",
    "Comparison": "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is",
    "Unary": "Delete_USub Delete_Not",
}
OPERATORS = (
    *(f"Replace{kind}Operator_{swap}" for kind, swaps in _SWAPS.items() for swap in swaps.split()),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
    *("ExceptionReplacer", "NumberReplacer", "ZeroIterationForLoop"),
)
"""Of Cosmic Ray's the small ones: any test at all finds a sum that has become a power."""

_NOT_IMPORTED = (2, 4)  # pytest: errors while collecting, or in a conftest.py
_TOO_LONG = 124
_Place = tuple[tuple[int, int], tuple[int, int]]  # ((line, column), (line, column))


class DropCall:
    """An operator as Cosmic Ray has them: a call for its effect alone, of which nothing is left."""

    def mutation_positions(self, node: Any) -> Iterator[_Place]:
        if node.type == "simple_stmt" and node.children[0].type in ("atom_expr", "power"):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        import parso

        node.children[0] = parso.parse(node.children[0].get_first_leaf().prefix + "pass")
        return node


@cache
def operators() -> dict[str, Any]:
    from cosmic_ray.plugins import get_operator

    return {**{name: get_operator(f"core/{name}")() for name in OPERATORS}, "DropCall": DropCall()}


def mutated(source: str, mutant: Mutant) -> str:
    """The file with the mutant in it, or as it is where Cosmic Ray can't make it: an exception with a dotted name."""
    from cosmic_ray.mutating import mutate_code

    try:
        return str(mutate_code(source, operators()[mutant.operator], mutant.occurrence))
    except AttributeError:
        return source


def places_of(name: str, source: str) -> dict[_Place, list[Mutant]]:
    """The mutants of a file, not made yet, by the place that they change; none inside annotations, which never run."""
    import parso
    from cosmic_ray.ast import ast_nodes

    nodes, silent = list(ast_nodes(parso.parse(source))), _annotations(source)
    found: dict[_Place, list[Mutant]] = {}
    for operator_name, operator in operators().items():
        places = ((node, place) for node in nodes for place in operator.mutation_positions(node))
        for occurrence, (node, (start, end)) in enumerate(places):
            star = node.parent is not None and node.parent.type in ("parameters", "lambdef")
            if not star and not any(first <= start and end <= last for first, last in silent):
                mutant = Mutant(name, start[0], operator_name, "", "", occurrence=occurrence)
                found.setdefault((start, end), []).append(mutant)
    return found


def _annotations(source: str) -> list[_Place]:
    nodes = [getattr(node, name, None) for node in ast.walk(ast.parse(source)) for name in ("annotation", "returns")]
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))
        for node in nodes
        if node is not None
    ]


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def _first_difference(before: list[str], after: list[str]) -> tuple[str, str] | None:
    """The first line that differs, as it was and as it is; None where nothing but spaces does."""
    pairs = [(old, new) for old, new in zip(before, after, strict=False) if old.split() != new.split()]
    return (" ".join(pairs[0][0].split()), " ".join(pairs[0][1].split())) if pairs else None


def sample(module: Module, seed: int, root: Path = ROOT) -> Iterator[Mutant]:
    """The module's mutants in drawn order: places first, then one of each place's mutants."""
    draw = random.Random(seed)
    named = (root.glob(path if path.endswith(".py") else f"{path}/**/*.py") for path in module.paths)
    files = sorted(file for found in named for file in found)
    places: list[list[Mutant]] = []
    for file in files:
        found = places_of(file.relative_to(root).as_posix(), file.read_text(encoding="utf-8"))
        places += [found[place] for place in sorted(found)]
    draw.shuffle(places)
    for mutant in map(draw.choice, places):
        source = (root / mutant.file).read_text(encoding="utf-8")
        text = mutated(source, mutant)
        changed = _first_difference(source.splitlines(), text.splitlines()) if _compiles(text) else None
        if changed is not None:
            yield replace(mutant, before=changed[0], after=changed[1])


def lines_of_statement(source: str, line: int) -> range:
    """The lines of the innermost statement that holds a line; of a block, its head."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            end = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno
            spans += [range(node.lineno, end + 1)] if node.lineno <= line <= end else []
    return min(spans, key=len, default=range(line, line + 1))


class Durations:
    """A plugin of pytest: the seconds that each test took, all of its parameters together."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.partition("[")[0]
        self.seconds[name] = self.seconds.get(name, 0.0) + report.duration


class Workshop:
    """A copy of the repository in which tests run, each time in a child of this process."""

    def __init__(self, root: Path, module: Module) -> None:
        self.root, self.module, self.seconds = root, module, 0.0
        self._covering: dict[str, dict[int, set[str]]] = {}
        self._durations: dict[str, float] = {}
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        names = [name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]
        kernels = [file.relative_to(ROOT).as_posix() for file in (ROOT / "vitdeploy").rglob("*.so")]
        for name in (*names, *kernels):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)

    def prepare(self) -> None:
        """Make the shared bundle; run the module's tests once and note which lines each of them runs."""
        from coverage import CoverageData

        tiny = Path(os.environ["VITDEPLOY_TINY_BUNDLE"])
        if not tiny.exists():
            self._require(self._child(lambda: self._make_bundle(tiny), 600))
        begin = time.monotonic()
        folders = dict.fromkeys(str(Path(path).parent) if path.endswith(".py") else path for path in self.module.paths)
        measure = [*(f"--cov={folder}" for folder in folders), "--cov-context=test", "--cov-report="]
        self._require(self._child(lambda: self._pytest([*measure, *self.module.tests]), 1800))
        self.seconds = time.monotonic() - begin
        data = CoverageData(str(self.root / ".coverage"))
        data.read()
        for file in data.measured_files():
            by_line = {line: set(contexts) for line, contexts in data.contexts_by_lineno(file).items()}
            self._covering[Path(file).relative_to(self.root).as_posix()] = by_line
        self._durations = json.loads((self.root / "durations.json").read_text(encoding="utf-8"))

    def _require(self, code: int) -> None:
        if code != 0:
            raise SystemExit(f"it fails without any mutant:\n{(self.root / 'said.txt').read_text()[-5000:]}")

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that run a line, the quickest first; behind them all, where a fixture or an import ran it too."""
        lines = self._covering.get(mutant.file, {})
        span = lines_of_statement((self.root / mutant.file).read_text(encoding="utf-8"), mutant.line)
        contexts = {context for line in span for context in lines.get(line, ())}
        own = {name.partition("|")[0].partition("[")[0] for name in contexts if name.endswith("|run")}
        ordered = sorted(own, key=lambda name: (self._durations.get(name, 0.0), name))
        return ordered if all(name.endswith("|run") for name in contexts) else [*ordered, *self.module.tests]

    def judge(self, mutant: Mutant) -> str:
        """ "killed", "survived", or "" where nothing is known of the tests.

        So it is of a mutant that can't be imported, and of one whose tests take too long, unless they don't without it:
        then it hangs, and they would show that.
        """
        tests = self.tests_of(mutant)
        if not tests:
            return "survived"
        known = all(test in self._durations for test in tests)
        limit_s = 120 + 5 * (sum(self._durations[test] for test in tests) if known else self.seconds)
        path = self.root / mutant.file
        before = path.read_text(encoding="utf-8")
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()
        path.write_text(mutated(before, mutant), encoding="utf-8")
        try:
            code = self._child(lambda: self._pytest(["-x", *tests]), limit_s)
        finally:
            path.write_text(before, encoding="utf-8")
        if code == _TOO_LONG and self._child(lambda: self._pytest(["-x", *tests]), limit_s) == _TOO_LONG:
            return ""
        return "survived" if code in (0, 5) else "" if code in _NOT_IMPORTED else "killed"

    def _child(self, work: Callable[[], int], limit_s: float) -> int:
        """The exit code of the work in a child."""
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.setsid()
                said = os.open(self.root / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                os.dup2(said, 1)
                os.dup2(said, 2)
                self._enter()
                code = work()
            except BaseException as error:
                print(repr(error), file=sys.stderr)
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        deadline = time.monotonic() + limit_s
        while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # it, or what its tests have left running
        if not ended[0]:
            os.waitpid(child, 0)
            return _TOO_LONG
        return os.waitstatus_to_exitcode(ended[1])

    def _enter(self) -> None:
        """Be a process that was started in the copy."""
        for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "vitdeploy")]:
            del sys.modules[name]
        os.chdir(self.root)
        sys.path[:] = [str(self.root), *(place for place in sys.path if place and Path(place).resolve() != ROOT)]
        os.environ.update(PYTHONPATH=str(self.root), OMP_NUM_THREADS="1")
        os.environ.pop("VITDEPLOY_TEST_DATA", None)

    def _pytest(self, arguments: list[str]) -> int:
        import hypothesis
        import pytest

        calm = {"deadline": None, "suppress_health_check": list(hypothesis.HealthCheck)}  # a busy machine fails no test
        hypothesis.settings.register_profile("mutants", derandomize=True, **calm)
        if "-x" in arguments:  # the first run leaves compiled files, which the others read and add none to
            sys.dont_write_bytecode = True
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        usual = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not full and not gpu"]
        usual += ["--hypothesis-profile=mutants", f"--basetemp={self.root / 'tmp'}"]
        durations = Durations()
        code = int(pytest.main([*usual, *arguments], plugins=[durations]))
        (self.root / "durations.json").write_text(json.dumps(durations.seconds), encoding="utf-8")
        return code

    def _make_bundle(self, path: Path) -> int:
        tools = importlib.import_module("tests.tools.tiny")
        images = tools.write_images(self.root / "tiny-images")
        tools.write_bundle(path, tools.write_checkpoint(self.root / "tiny-checkpoint"), images)
        return 0


def run(name: str, count: int, seed: int, again: bool) -> None:
    """Judge mutants of one module, and record each."""
    module, record = modules()[name], results().get(name, {})
    before = {mutant.key: mutant for mutant in mutants(record)}
    living = {key for key, mutant in before.items() if mutant.outcome == "survived" and not mutant.is_equivalent}
    judged = dict(before) if again else {}
    seed = record.get("seed", seed) if again else seed
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        workshop = Workshop(Path(folder), module)
        workshop.prepare()
        print(f"{name}: its tests take {workshop.seconds:.0f} s", flush=True)
        for mutant in sample(module, seed, workshop.root):
            if not living if again else len(judged) == count:
                break
            outcome = workshop.judge(mutant) if not again or mutant.key in living else ""
            if outcome:
                living.discard(mutant.key)
                print(f"{outcome:9} {mutant.file}:{mutant.line}  {mutant.before}  ->  {mutant.after}", flush=True)
                why = before[mutant.key].why if mutant.key in before and outcome == "survived" else ""
                since = " since" if again and outcome == "killed" else ""
                judged[mutant.key] = replace(mutant, outcome=f"{outcome}{since}", why=why)
                _record(name, seed, judged.values())


def _record(name: str, seed: int, judged: Iterable[Mutant]) -> None:
    rows = [{key: value for key, value in asdict(one).items() if key != "occurrence"} for one in judged]
    rows.sort(key=lambda row: (row["file"], row["line"], row["after"]))
    recorded = {**results(), name: {"seed": seed, "mutants": rows}}
    RESULTS.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(modules())}; none: all")
    parser.add_argument("--count", type=int, default=40, help="mutants of a module")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--again", action="store_true", help="only those that survived")
    parser.add_argument("--least", type=float, default=0, help="the lowest score, in per cent, that is a success")
    parser.add_argument("--page", action="store_true", help="only draw the page anew")
    asked = parser.parse_args()
    chosen = [] if asked.page else asked.modules or list(modules())
    for heavy in HEAVY if chosen else ():
        with contextlib.suppress(ImportError):
            importlib.import_module(heavy)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        os.environ.setdefault("VITDEPLOY_TINY_BUNDLE", str(Path(folder) / "tiny"))  # mutants are judged by one bundle
        for name in chosen:
            run(name, asked.count, asked.seed, asked.again)
    PAGE.write_text(page(), encoding="utf-8")
    low = [name for name in chosen if score(mutants(results()[name])) < asked.least]
    if low:
        print(f"below {asked.least:g} %: {', '.join(low)}")
    return bool(low)


if __name__ == "__main__":
    sys.exit(main())

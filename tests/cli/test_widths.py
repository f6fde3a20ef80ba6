"""What every command draws at 80, 100 and 200 columns: nothing is wider, no word is broken, no number cut off."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.cells import cell_len
from rich.console import Console

from tests.tools.command_names import every_command, name_of
from tests.tools.forms import report_of
from tests.tools.small_bundle import write_small_bundle
from vitdeploy.cli import terminal

Cli = Callable[..., Any]
WIDTHS = (80, 100, 200)
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
PICTURE = "a picture whose name is long, as those of cameras and phones are.png"
TRAIN = "--dataset digits --overwrite --max-steps 2 --limit-train 100 --limit-test 30 --threads 1"


@dataclass(frozen=True)
class Case:
    """A command in the folder of `drawn`, and a sentence that it shows, whole; `needs` is a package."""

    command: str
    shows: str
    exit_code: int = 0
    needs: str = "vitdeploy"


CASES = (
    Case("", "Every command: vitdeploy --help"),
    Case("doctor", "For the rest:"),
    Case("inspect bundle", "Checks made on export"),
    Case("inspect bundle/model.int8.onnx", "(MatMul, Gemm, Conv) are on INT8 factors"),
    Case("inspect small/engines/tensorrt-rtx-int8.engine", "Made for"),
    Case(f"predict small cat.png {PICTURE!r}", "on"),
    Case("predict small photos --output classes.csv --overwrite", "2 images"),
    Case("predict small https://example.com/a.jpg", "is an address, and images are read from files", exit_code=1),
    Case("verify bundle", "Self-test"),
    Case("lint bundle/model.onnx", "model.onnx"),
    Case("analyze bundle --dataset digits --count 8", "the most damaging per share of the MACs first"),
    Case("export checkpoint --output made --overwrite", "Graph:"),
    Case("finetune checkpoint --dataset digits --output run --dry-run --batch-size 8", "Nothing was written."),
    Case(f"finetune checkpoint --output run {TRAIN}", "30 images of digits/test"),
    Case("build-engine bundle --fp16 --target onnx", "up to date"),
    Case("explain bundle cat.png --output seen --overwrite", "class token"),
    Case("deploy triton bundle --output models --overwrite", "encoded images", needs="tritonclient"),
    Case("deploy kubernetes bundle --output k8s --image r/vit:1 --overwrite", "docker build -t", needs="tritonclient"),
    Case("deploy web bundle --output site --onnxruntime-web nowhere", "nowhere", exit_code=1),
    Case("embed bundle cat.png --output vectors.npy", "which gives one class an image", exit_code=1),
    Case("push nowhere someone/vit", "there is no bundle", exit_code=1),
    Case("report bundle --no-open", "has not been measured", exit_code=1),
    Case("completion bash", "Open a new bash"),
)
BY_THEIR_RESULTS = {"bench", "compare", "demo"}  # these take minutes: what they show is drawn from reports

Drawn = Callable[..., dict[int, str]]


@pytest.fixture
def drawn(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Drawn:
    """`drawn("doctor")`: what a command, or a function, shows in terminals of these widths, in a folder of its own."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def show(what: object, *arguments: object, exit_code: int) -> str:
        if callable(what):
            with contextlib.redirect_stdout(io.StringIO()) as page:
                what()
            return page.getvalue()
        done = cli(what, *arguments) if what else cli()
        assert done.exit_code == exit_code, done.stderr
        return f"{done.stdout}{done.stderr}"

    def run(*what: object, exit_code: int = 0) -> dict[int, str]:
        found = {}
        for width in WIDTHS:
            monkeypatch.setenv("COLUMNS", str(width))
            found[width] = _COLOUR.sub("", show(*what, exit_code=exit_code))
        return found

    return run


def check(found: dict[int, str], *, prose: str = "") -> None:
    """Compare the widths; `prose` is a sentence whose words must all be whole, in order, at each."""
    for width, text in found.items():
        for line in text.splitlines():
            is_command = re.search(r"\b(vitdeploy|pip|sudo|curl) \S", line)  # is copied, so it is never broken
            longest = max(map(cell_len, line.split()), default=0)
            assert cell_len(line) <= width or is_command or longest > width - 20, (width, line)
        assert "…" not in text, (width, text)
        assert " ".join(prose.split()) in " ".join(text.split()), (width, text)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command[:40])
def test_what_a_command_shows(case: Case, drawn: Drawn, tiny_bundle: Path, one_layer_checkpoint: Path) -> None:
    pytest.importorskip(case.needs)
    shutil.copytree(tiny_bundle, "bundle")
    shutil.copytree(one_layer_checkpoint, "checkpoint")
    write_small_bundle(Path("small"))
    Path("photos").mkdir()
    for path in ("cat.png", PICTURE, "photos/one.png", "photos/two.png"):
        Image.new("RGB", (32, 32), (90, 40, 7)).save(path)
    check(drawn(*shlex.split(case.command) or [""], exit_code=case.exit_code), prose=case.shows)


def test_every_command_is_drawn() -> None:
    commands = {name_of(case.command.split()) for case in CASES if case.command}
    assert commands | BY_THEIR_RESULTS == set(every_command()) - {"deploy"}, "deploy is a group"


def test_bench_and_compare(drawn: Drawn) -> None:
    from vitdeploy.cli.bench import show_report

    before, after = report_of(flip=1, seed=1), report_of(int8_ms=12.0, flip=2, seed=5)
    pages = drawn(lambda: show_report(before))
    check(pages, prose=before.recommendation["sentence"])
    assert "[" not in pages[80].split("\n\n")[0] and "1.00" in pages[80]
    before.write_json(Path("before.json"))
    after.write_json(Path("after.json"))
    found = drawn("compare", "before.json", "after.json", "--fail-if", "int8.p50 > 1.1x", exit_code=3)
    check(found)
    for width in WIDTHS:
        (line,) = (line for line in found[width].splitlines() if "INT8 on OpenVINO" in line and "→" in line)
        assert "slower" in line and "−1.00" in line
    assert "MB" in found[200] and "[" in found[200]


def test_a_tune(drawn: Drawn) -> None:
    from vitdeploy.cli.qat import show_result
    from vitdeploy.qat import QatResult

    accuracies = {"fp32_before": 0.9, "int8_before": 0.8, "fp32_after": 0.91, "int8_after": 0.89}
    steps: dict[str, Any] = {"test_images": 360, "steps": 200, "best_step": 100, "seconds": 61.2}
    folder = "a-folder-of-runs-whose-name-is-long"
    result = QatResult(Path(folder, "vit-qat"), Path("bundles/vit"), **accuracies, **steps, validation=(), checks=())
    check(drawn(lambda: show_result(result)), prose="of 360 test images")


def test_demo(drawn: Drawn, one_layer_checkpoint: Path) -> None:
    from vitdeploy.cli.demo import show_result
    from vitdeploy.demo import DemoResult
    from vitdeploy.training import FinetuneConfig, finetune

    few: dict[str, Any] = {"max_steps": 2, "limit_train": 100, "limit_test": 30, "threads": 1}
    trained = finetune(FinetuneConfig(one_layer_checkpoint, "digits", "run", **few))
    result = DemoResult(Path("demo"), trained, report_of(flip=1, seed=1), "5", ("5", "5", "9", "5", "5"), 0.97)
    pages = drawn(lambda: show_result(result))
    check(pages, prose="of 30 held-out images.")
    assert all("\nNext: vitdeploy predict demo/digits-vit demo/digit.png\n" in page for page in pages.values())


def test_lines_break_between_words_and_commands_do_not(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    sentence = "a sentence that is longer than eighty columns, in which no word may be broken at the end of a line"
    command = "vitdeploy export runs/photos-of-a-long-name --output bundles/photos-of-a-long-name-and-then-some --json"
    terminal.echo(sentence)
    terminal.echo(command)
    terminal.echo_problem("Error", sentence, command)
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == command and len(shown.out.splitlines()) == 3
    error = _COLOUR.sub("", shown.err)
    assert f"Error: {sentence}" in " ".join(error.split()) and f"Hint: {command}\n" in error
    assert max(map(len, error.splitlines()[:2])) <= 80
    monkeypatch.delenv("FORCE_COLOR")
    terminal.echo(sentence)
    assert capsys.readouterr().out == f"{sentence}\n"  # what is piped stays whole


@pytest.mark.parametrize("width", WIDTHS)
def test_progress_keeps_its_times(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    page = io.StringIO()
    monkeypatch.setattr(terminal, "errors_console", Console(file=page, width=width, force_terminal=True))
    with (
        terminal.RichReporter() as reporter,
        reporter.task("Fine-tuning with a long description", 900, "steps") as step,
    ):
        step.update(completed=300, detail="step 300/900, loss 0.1234, accuracy 91.27 %, best 92.50 % at step 250")
        time.sleep(0.001)
    lines = [line for line in _COLOUR.sub("", page.getvalue()).splitlines() if "Fine-tuning" in line]
    assert lines and all(cell_len(line) <= width for line in lines)
    assert all(len(re.findall(r"-?:?-?\d*:\d\d:\d\d|-:--:--", line)) == 2 for line in lines), lines


def test_the_flags_of_every_command_stand_anywhere(
    cli: Cli, capsys: Any, tmp_path: Path, one_layer_checkpoint: Path
) -> None:
    from vitdeploy.cli.app import run

    def said(*arguments: object) -> tuple[str, str]:
        run(list(map(str, arguments)))
        shown = capsys.readouterr()
        return shown.out, shown.err

    for place in range(3):
        line: list[object] = ["inspect", tmp_path / "nothing"]
        line.insert(place, "--quiet")
        out, err = said(*line)
        assert out == "" and "No such option" not in err and "Error: " in err
        line[place] = "--debug"
        with pytest.raises(Exception, match="nothing"):
            run(list(map(str, line)))
    export = ("export", one_layer_checkpoint, "--output", tmp_path / "bundle", "--overwrite")
    assert "declined" not in "".join(said(*export))
    out, err = said(*export, "--verbose")
    assert "merge-qkv declined: not asked for" in err and "declined" not in out
    assert said(*export, "--verbose", "--quiet")[1] == ""
    assert "--verbose" in cli("export", "--help").stdout

"""The code blocks of the documents, and how one is run as a reader would run it, with everything made small.

A block is fenced or indented by four spaces. Comments in front of it say what is particular about it:

    <!-- not run: WHY -->      it needs what a test has not: another machine, a network, hours
    <!-- run: full -->         it takes long: run by `make test-full`; `full with MODULE`: where that is installed
    <!-- before: COMMAND -->   what a reader has done before it
    <!-- file: NAME -->        it is no program but the content of this file, for the blocks below it

The blocks of a page are run in their order in one folder that holds what the documents speak of: `bundles/vit-cifar10`,
`runs/vit-cifar10`, `photos`, `cat.png`, CIFAR-10, a checkpoint of the Hub, two reports (`make_world`).
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tools.command_line import Outcome, invoke
from vitdeploy.core import progress

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "calibration" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = (
    *("vitdeploy", "python", "python3", "pip", "make", "curl", "cmake", "cp", "scp", "ssh", "git", "npm", "hf", "sudo"),
    *("docker", "kubectl", "torchrun", "accelerate", "tritonserver"),
)
CHECKPOINTS = ("vit-cifar10", "vit", "small", "large", "deit")
HUB_MODELS = ("google/vit-base-patch16-224", "google/vit-base-patch16-224-in21k")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What makes a command small: other values, options that it has not, and more of them outside the full tests.
REPLACED = {"--max-steps": "2", "--rounds": "6", "--max-drop": "40", "--min-cosine": "0.1", "--min-recall": "0.01"}
SMALLER = {
    "bench": {"--rounds": "6", "--max-seconds": "10", "--threads": "1"},
    "export": {"--overwrite": ""},
    "finetune": {"--max-steps": "2", "--threads": "1"},
}
SMALLEST = {
    "bench": {"--precision": "fp32,int8", "--backend": "onnxruntime", "--no-memory": "", "--no-phases": ""},
    "build-engine": {"--target": "onnx"},
}
# Exit codes that say something about the data, and are no failure of the document.
ALLOWED = {"compare": (0, 3, 4)}
# `vitdeploy` is answered by the process of the test, which has the libraries loaded; its exit code comes back.
_SHELL = """
set -euo pipefail
vitdeploy() { printf '%s\\0' "$#" "$PWD" "$@" >&"$ASK"; read -r code <&"$ANSWER"; return "$code"; }
"""
_ON_GITHUB = "git() { :; }; pip() { :; }; GITHUB_STEP_SUMMARY=summary.md\n"
_MARK = re.compile(r"<!-- (not run|run|before|file): (.+?) -->")


@dataclass(frozen=True)
class Block:
    """A code block: its language ("sh", "python", "yaml" ..., "" for what is no program) and the marks before it."""

    page: Path
    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def is_program(self) -> bool:
        """Whether it is there to be run."""
        return self.language in ("sh", "python") or (self.language == "yaml" and "\n    steps:" in self.text)

    @property
    def is_slow(self) -> bool:
        return "run" in self.marks

    @property
    def script(self) -> str:
        """What bash is to run; of a workflow on GitHub the steps that run something, on a machine of our own."""
        text = self.text.replace("\n$ ", "\n").removeprefix("$ ")
        if self.language == "yaml":
            import yaml

            steps = [step for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"]]
            text = _ON_GITHUB + "\n".join(step["run"] for step in steps if "run" in step)
            text = text.replace("${{ github.base_ref }}", "main").replace("${{ github.sha }}", "0123abc")
        return text


def blocks(page: Path) -> list[Block]:
    """Every code block of a page, in order."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    marks: dict[str, str] = {}
    number = 0
    while number < len(lines):
        line, start = lines[number], number + 1
        number += 1
        if mark := _MARK.fullmatch(line.strip()):
            marks[mark[1]] = mark[2]
            continue
        if fence := re.fullmatch(r"\s*```(\w*)", line):
            inside = []
            while lines[number].strip() != "```":
                inside.append(lines[number])
                number += 1
            number += 1
            language = {"bash": "sh", "shell": "sh", "console": "sh"}.get(fence[1], fence[1])
        elif line.startswith("    ") and (start == 1 or not lines[start - 2].strip() or lines[start - 2][0] in "#<"):
            inside = [line[4:]]
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                inside.append(lines[number][4:])
                number += 1
            language = "sh" if re.match(rf"\s*(\$ )?({'|'.join(PROGRAMS)}) ", line) else ""
        else:
            marks = {} if line.strip() else marks
            continue
        found.append(Block(page, start, language, "\n".join(inside).strip() + "\n", marks))
        marks = {}
    return found


def make_world(folder: Path, bundle: Path, checkpoint: Path, images: Path) -> Path:
    """The folder that the documents speak of, tiny."""
    from PIL import Image

    for name in ("vit-cifar10", "vit"):
        shutil.copytree(bundle, folder / "bundles" / name)
    for name in CHECKPOINTS:
        shutil.copytree(checkpoint, folder / "runs" / name)
    for name in HUB_MODELS:
        cached = folder / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(checkpoint, cached / "snapshots" / COMMIT)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(COMMIT)
    for name, copies in (("train", 7), ("test", 1)):
        shutil.copytree(images, folder / "photos" / name)
        _write_parquet(folder / "cifar10" / f"{name}.parquet", images, copies)
    shutil.copytree(ROOT / "calibration", folder / "calibration")
    recipe = folder / "calibration" / "cifar10.toml"
    recipe.write_text(re.sub("count = .*", "count = 16", recipe.read_text()))
    for name, there in (("MODEL", "runs/vit"), ("DATA", "photos")):
        (folder / name).symlink_to(there)
    with Image.open(next(images.rglob("*.png"))) as image:
        for name in ("cat.png", "dog.png", "cat.jpg"):
            image.save(folder / name)
    settings = ["--dataset", folder / "photos", "--rounds", 6, "--max-seconds", 10, "--no-memory", "--no-phases"]
    forms = ["--precision", "fp32,int8", "--backend", "onnxruntime", "--threads", 1]
    for name in ("before", "after"):
        outcome = invoke("bench", folder / "bundles" / "vit", *settings, *forms, "--json", folder / f"{name}.json")
        assert outcome.exit_code == 0, outcome.stderr
    for name in ("before1", "after1"):
        shutil.copy(folder / "before.json", folder / f"{name}.json")
    for name in ("before2", "after2"):
        shutil.copy(folder / "after.json", folder / f"{name}.json")
    return folder


def _write_parquet(path: Path, images: Path, copies: int) -> None:
    """The images and copies of them that are a little darker."""
    import datasets
    from PIL import Image

    classes = sorted(each.name for each in images.iterdir())
    rows: dict[str, list[Any]] = {"img": [], "label": []}
    for file in sorted(images.rglob("*.png")):
        for number in range(copies):
            data = io.BytesIO()
            Image.open(file).point([max(0, value - number) for value in range(256)] * 3).save(data, "PNG")
            rows["img"].append({"bytes": data.getvalue(), "path": None})
            rows["label"].append(classes.index(file.parent.name))
    path.parent.mkdir(exist_ok=True)
    kinds = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    datasets.Dataset.from_dict(rows, features=kinds).to_parquet(path)


def stand_in(world: Path, monkeypatch: Any) -> None:
    """As a reader in the world: no network, the models of the Hub in its cache, CIFAR-10 in a folder."""
    import huggingface_hub.constants

    monkeypatch.chdir(world)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(world / "hub"))
    monkeypatch.setattr("vitdeploy.data.load._CIFAR10", str(world / "cifar10"))


def run(block: Block) -> list[tuple[list[str], Outcome]]:
    """Run a block in the current folder: each call of `vitdeploy` in it and what came of it.

    Raises:
        AssertionError: a command failed; the message has its errors.
    """
    if "file" in block.marks:
        Path(block.marks["file"]).write_text(block.text, encoding="utf-8")
        return []
    before = block.marks.get("before", "")
    if block.language != "python":
        return _run_shell(block, before + "\n" + block.script)
    _run_shell(block, before)
    try:
        exec(compile(block.text, str(block), "exec"), {"__name__": "document"})
    finally:
        progress.by_default(None)  # a page shows how to see it, and the next test is not of that page
    return []


def _run_shell(block: Block, script: str) -> list[tuple[list[str], Outcome]]:
    ask_end, ask = os.pipe()
    answer, answer_end = os.pipe()
    environment = {**os.environ, "ASK": str(ask), "ANSWER": str(answer)}
    command = ["bash", "-c", _SHELL + script]
    calls: list[tuple[list[str], Outcome]] = []
    with subprocess.Popen(
        command, env=environment, pass_fds=(ask, answer), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as shell:
        os.close(ask)
        os.close(answer)
        with os.fdopen(ask_end, "rb") as asked, os.fdopen(answer_end, "w", buffering=1) as answered:
            while count := _word(asked):
                folder, *arguments = (_word(asked) for _ in range(int(count) + 1))
                os.chdir(folder)
                outcome = invoke(*small(arguments, slow=block.is_slow))
                calls.append((arguments, outcome))
                fine = outcome.exit_code in ALLOWED.get(arguments[0], (0,))
                answered.write(f"{0 if fine else outcome.exit_code}\n")
        said = shell.stderr.read() if shell.stderr else ""
        code = shell.wait(60)
    last = f"\nvitdeploy {' '.join(calls[-1][0])}\n{calls[-1][1].stderr}" if calls else ""
    assert code == 0, f"{block} ended with {code}: {said}{last}"
    return calls


def small(arguments: list[str], *, slow: bool) -> list[str]:
    """The command with the options that make it small."""
    name, *_ = arguments
    small = [REPLACED.get(before, word) for before, word in zip(["", *arguments], arguments, strict=False)]
    for option, value in {**SMALLER.get(name, {}), **({} if slow else SMALLEST.get(name, {}))}.items():
        if option not in small:
            small += [option, value] if value else [option]
    return small


def _word(pipe: Any) -> str:
    """The next word that ends with a zero byte; empty at the end."""
    read = bytearray()
    while (byte := pipe.read(1)) not in (b"", b"\0"):
        read += byte
    return read.decode()

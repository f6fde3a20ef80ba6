"""What a base install takes on a small device: its size, the start to the first answer, and peak memory.

    python benchmarks/small_devices.py BUNDLE --work FOLDER [--machine x86_64 aarch64] [--rounds 5]
        [--busy] [--json OUT.json] [--markdown OUT.md]

For each machine the packages are installed by pip into a folder of its own, vitdeploy from this source, and Python sees
nothing else. In it the bundle's self-test runs, then a new process loads the bundle and answers one image: seconds from
the start of the process to its answer, and the most memory that it had (VmHWM). Sizes are those of the files of all
packages, without Python; compiled Python files are left out, though pip writes them, as it does on a device.

aarch64 runs in an emulator (qemu-user): what is installed is what a device installs, and answers are those of its code.
Seconds are the emulator's and are not given; memory holds what the emulator translates, so it is an upper bound. Nor
are seconds given with `--busy`, for a machine that other programs use, or of kernels that the environment asks for by
name (VITDEPLOY_ISA=portable, where the processor has none of theirs). Rows of machines that are not asked for stay what
they are in OUT.json: a ViT-S's self-test takes a quarter of an hour in the emulator.
Debian's Python for arm64 and the emulator are fetched by apt-get into FOLDER; nothing is installed on this machine.
ONNX Runtime is 1.27 there: later ones read processor caches that qemu-user does not show, and end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitdeploy.backends.native.library import VARIABLE
from vitdeploy.bundle import Bundle
from vitdeploy.core.machine import machine

SOURCE = Path(__file__).parents[1]
BASE = ("click", "numpy", "pillow", "rich")
ANSWER = """
import sys, vitdeploy
options = {"backend": sys.argv[2], "threads": int(sys.argv[4])}
with vitdeploy.load(sys.argv[1], precision="int8", device="cpu", **options) as classifier:
    prediction = classifier.predict(sys.argv[3])
print("answer", prediction.label, prediction.score, flush=True)
print("peak", next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@dataclass(frozen=True)
class Install:
    """Packages beside the base, and the backend that they are for."""

    title: str
    machine: str
    backend: str
    packages: tuple[str, ...]
    kernels: bool = False

    @property
    def emulated(self) -> bool:
        return self.machine == "aarch64"


INSTALLS = (
    Install("ONNX Runtime", "x86_64", "onnxruntime", ("onnxruntime",)),
    Install("our kernels", "x86_64", "native", ("onnxruntime",), kernels=True),
    Install("ONNX Runtime", "aarch64", "onnxruntime", ("onnxruntime==1.27.*",)),
)


@dataclass(frozen=True)
class Row:
    """`first_answer_s`: the median of the rounds; None where it says nothing. Sizes in bytes, without Python's own."""

    install: str
    machine: str
    emulated: bool
    installed_bytes: int
    packages: dict[str, int]
    selftest: str
    answer: str
    first_answer_s: float | None
    peak_bytes: int


def run(command: Sequence[object], **more: Any) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **more)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return str(done.stdout)


def installed(install: Install, work: Path) -> Path:
    """The folder of its packages, made if it is not there."""
    folder = work / f"{install.machine}-{install.backend}"
    if folder.exists():
        return folder
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder]
    where = []
    if install.emulated:
        names = [f"manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 31, 34)] + ["manylinux2014_aarch64"]
        where = ["--only-binary=:all:", "--python-version", "3.11", *(f"--platform={name}" for name in names)]
    run([*pip, *where, *BASE, *install.packages])
    pure = {} if install.kernels else {"VITDEPLOY_PURE": "1"}
    wheels = work / f"wheels-{'kernels' if install.kernels else 'pure'}"
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, SOURCE]
    run(wheel, env={**os.environ, **pure})
    run([*pip, "--no-deps", *wheels.glob("*.whl")])
    return folder


def emulator(work: Path) -> list[str]:
    """The command that runs Debian's Python for arm64."""
    root, tools = work / "arm64", work / "tools"
    python = root / "usr/bin/python3.11"
    if not python.exists():
        fetched, state = work / "debs", work / "apt"
        for folder in (root, tools, fetched, state / "lists/partial", state / "cache/archives/partial"):
            folder.mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        run(["apt-get", "download", "qemu-user-static"], cwd=fetched)
        run(["dpkg-deb", "-x", next(fetched.glob("qemu-user-static_*")), tools])
        architecture = ["APT::Architecture=arm64", "APT::Architectures::=arm64", f"Dir::State={state}"]
        architecture += [f"Dir::State::status={state}/status", f"Dir::Cache={state}/cache"]
        apt = ["apt-get", *(word for setting in architecture for word in ("-o", setting))]
        run([*apt, "update"])
        plan = run([*apt, "install", "--simulate", "--no-install-recommends", "python3", "libstdc++6"])
        names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
        run([*apt, "download", *names], cwd=fetched)
        for package in (*fetched.glob("*_arm64.deb"), *fetched.glob("*_all.deb")):
            run(["dpkg-deb", "-x", package, root])
    return [str(tools / "usr/bin/qemu-aarch64-static"), "-L", str(root), str(python)]


def sizes(folder: Path) -> dict[str, int]:
    """Bytes by top folder, the largest first."""
    found: Counter[str] = Counter()
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            found[path.relative_to(folder).parts[0].split("-")[0].removesuffix(".libs")] += path.stat().st_size
    return dict(found.most_common())


def answered(command: Sequence[object], environment: dict[str, str]) -> tuple[str, float, int]:
    """What it answered, seconds until then, and its peak memory in bytes."""
    start = time.perf_counter()
    with subprocess.Popen([*map(str, command)], env=environment, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        answer = process.stdout.readline().split()
        seconds = time.perf_counter() - start
        peak = process.stdout.read().split()
    if process.returncode or answer[:1] != ["answer"] or peak[:1] != ["peak"]:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}")
    return " ".join(answer[1:]), seconds, 1024 * int(peak[1])


def measured(install: Install, bundle: Path, image: Path, work: Path, rounds: int, busy: bool) -> Row:
    folder = installed(install, work)
    # without site: what the environment of this script holds is not there
    timed = not (install.emulated or busy or VARIABLE in os.environ)
    python = [*(emulator(work) if install.emulated else [sys.executable]), "-S"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "ORT_DISABLE_TELEMETRY": "1"}
    environment |= {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}
    test = [*python, "-m", "vitdeploy", "verify", bundle, "--backend", install.backend, "--precision", "int8", "--json"]
    # threads that wait for each other with their cores kept busy are emulated too
    test += ["--threads", "1"] if install.emulated else []
    (form,) = (row for row in json.loads(run(test, env=environment))["rows"] if row["status"] != "skipped")
    command = [*python, "-c", ANSWER, bundle, install.backend, image, 1 if install.emulated else 2]
    runs = [answered(command, environment) for _ in range(rounds if timed else 1)]
    packages = sizes(folder)
    return Row(
        install.title + (f", {os.environ[VARIABLE]}" if install.kernels and VARIABLE in os.environ else ""),
        install.machine,
        install.emulated,
        sum(packages.values()),
        packages,
        f"{form['status']}, {form['same_class']} of {form['images']} the same class",
        runs[0][0],
        statistics.median(seconds for _, seconds, _ in runs) if timed else None,
        max(peak for _, _, peak in runs),
    )


def markdown(rows: Sequence[Row], model: str) -> str:
    lines = [
        "# What a base install takes on a small device",
        "",
        f"Made by `benchmarks/small_devices.py`, which says how it measures, with {model}.",
        "Memory in an emulator holds what it translates. Its seconds are no device's and are not given, nor are those",
        "of a busy machine.",
        "",
        "| machine | install | installed, MB | largest | self-test | first answer, s | peak memory, MB |",
        "| --- | --- | ---: | --- | --- | ---: | ---: |",
    ]
    for row in rows:
        largest = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in list(row.packages.items())[:4])
        seconds = "–" if row.first_answer_s is None else f"{row.first_answer_s:.2f}"
        peak = f"{'under ' * row.emulated}{row.peak_bytes / 1e6:.0f}"
        where = f"{row.machine}{', emulated' * row.emulated}"
        cells = (where, row.install, f"{row.installed_bytes / 1e6:.0f}", largest, row.selftest, seconds, peak)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is installed")
    parser.add_argument("--machine", nargs="+", default=["x86_64", "aarch64"], choices=["x86_64", "aarch64"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", action="store_true", help="other programs run: give no seconds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    bundle, work = arguments.bundle.resolve(), arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    image = work / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
    wanted = [install for install in INSTALLS if install.machine in arguments.machine]
    rows = [measured(install, bundle, image, work, arguments.rounds, arguments.busy) for install in wanted]
    if arguments.json is not None and arguments.json.exists():
        before = [Row(**row) for row in json.loads(arguments.json.read_text(encoding="utf-8"))["rows"]]
        rows += [row for row in before if row.machine not in arguments.machine]
    text = markdown(rows, Bundle.open(bundle).manifest.model["name"])
    print(text, end="")
    if arguments.markdown is not None:
        arguments.markdown.write_text(text, encoding="utf-8")
    if arguments.json is not None:
        document = {"machine": machine(), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

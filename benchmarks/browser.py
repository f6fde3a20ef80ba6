"""A bundle in Chromium's WebAssembly beside native ONNX Runtime on the same machine, interleaved.

    python -m benchmarks.browser BUNDLE --onnxruntime-web tests/web/node_modules/onnxruntime-web \
        [--rounds 40] [--threads 1 2] [--json FILE] [--markdown FILE]

For each form (FP32 and the INT8 form for CPUs) and each number of threads there are two sides: a page of `deploy web`
in a headless Chromium, and ONNX Runtime in this process. Every round asks each of them once, in a drawn order and with
a rest of 30 ms before; one image at a time, raw pixels in, label out. Times are those of `predict` itself, in the page
by its own clock, so that neither has the way to the browser in it. Ratios are medians over the rounds of WebAssembly's
time over native's, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from tests.tools.browser import Browser, find_chromium
from tests.tools.web import encoded, served
from vitdeploy import load
from vitdeploy.core.machine import machine, versions
from vitdeploy.deploy.web.onnxruntime_web import find
from vitdeploy.deploy.web.site import web
from vitdeploy.evaluation.statistics import median, ratio_interval

REST_S = 0.03
WARM_ROUNDS = 5
PRECISIONS = ("fp32", "int8")
Side = Callable[[], float]
"""Answers once; milliseconds."""


@contextmanager
def in_chromium(program: str, address: str, precision: str, threads: int, image: np.ndarray) -> Iterator[Side]:
    """A page with one open form; a browser each, since a page's first `load` decides on threads."""
    # the browser's last children write to its profile after it has ended: what they leave is not worth an error
    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with scratch as profile, Browser(program, Path(profile)) as browser:
        browser.open(f"{address}site.json")  # isolated as the page is, without a model of its own
        options = json.dumps({"precision": precision, "backend": "wasm", "threads": threads})
        opened = browser.evaluate(
            f"(async () => {{ const {{ load }} = await import('{address}vitdeploy.js');"
            f"window.classifier = await load('{address}', {options});"
            f"const {{ data, width, height }} = {json.dumps(encoded(image))};"
            "window.image = { data: Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), width, height };"
            "return [crossOriginIsolated, window.classifier.threads, window.classifier.selftest?.status]; })()"
        )
        if opened != [True, threads, "passed"]:
            raise SystemExit(f"{precision} with {threads} threads is not open as it should be: {opened}")
        yield lambda: float(browser.evaluate("window.classifier.predict(window.image).then((a) => a.milliseconds)"))


@contextmanager
def native(bundle: Path, precision: str, threads: int, image: np.ndarray) -> Iterator[Side]:
    with load(bundle, "onnxruntime", precision, device="cpu", threads=threads) as classifier:

        def ask() -> float:
            began = time.perf_counter()
            classifier.predict(image)
            return 1e3 * (time.perf_counter() - began)

        yield ask


def measured(sides: dict[str, Side], rounds: int) -> dict[str, list[float]]:
    """Milliseconds by the side, one a round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    draw = random.Random(0)
    for number in range(WARM_ROUNDS + rounds):
        for name in draw.sample(sorted(sides), len(sides)):
            time.sleep(REST_S)
            taken = sides[name]()
            if number >= WARM_ROUNDS:
                times[name].append(taken)
    return times


def table(times: dict[str, list[float]], threads: list[int]) -> str:
    """Markdown: a row a form and number of threads."""
    lines = ["| form | threads | WebAssembly, ms | native, ms | ratio |", "| --- | ---: | ---: | ---: | ---: |"]
    for precision in PRECISIONS:
        for count in threads:
            wasm, alone = (times[f"{precision} {count} {side}"] for side in ("wasm", "native"))
            ratio, interval = ratio_interval(wasm, alone)
            between = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
            row = f"| {precision.upper()} | {count} | {median(wasm):.1f} | {median(alone):.1f} | {ratio:.2f}{between} |"
            lines.append(row)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--onnxruntime-web", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], help="height and width of the image")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    program = find_chromium()
    if program is None:
        parser.error("there is no Chromium or Chrome on the PATH")
    image = np.random.default_rng(0).integers(0, 256, (*arguments.size, 3), np.uint8)
    with ExitStack() as stack:
        site = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "site"
        web(arguments.bundle, site, onnxruntime_web=arguments.onnxruntime_web)
        address = stack.enter_context(served(site))
        sides: dict[str, Side] = {}
        for precision in PRECISIONS:
            for threads in arguments.threads:
                page = in_chromium(program, address, precision, threads, image)
                sides[f"{precision} {threads} wasm"] = stack.enter_context(page)
                alone = native(arguments.bundle, precision, threads, image)
                sides[f"{precision} {threads} native"] = stack.enter_context(alone)
        times = measured(sides, arguments.rounds)
    text = table(times, arguments.threads)
    print(text, end="")
    if arguments.markdown is not None:
        arguments.markdown.write_text(text, encoding="utf-8")
    if arguments.json is not None:
        document = {
            "machine": machine(),
            "versions": {**versions(), "onnxruntime-web": find(arguments.onnxruntime_web).version},
            "size": arguments.size,
            "samples_ms": times,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

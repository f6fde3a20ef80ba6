"""The classifier against the bare backend session, and callers together against one caller: prints times and ratios.

    python benchmarks/runtime.py BUNDLE [--backend openvino] [--precision int8] [--threads 1] [--json FILE]

Overhead: `predict` on an array against the same session called directly, on the same image, in one process. A round
calls the session, `predict`, `predict` with its `top_k` read, and the session once more, in an order drawn anew each
time; ratio and difference are medians over the rounds. What the second call of the session differs from the first is
what cannot be told apart here.
The code of `predict` is timed alone as well, once with warm caches and once with caches emptied by what stands in for
the model: a model of 86 MB leaves nothing in them. Throughput, in rounds of all of these by turns: one caller of
a plain classifier; a batch given as one array, which shows what the backend gains from batches; callers at the same
time with micro-batching; one caller with micro-batching. All use one session: two sessions of the same file differ by
several percent, by where their memory lies. Ratios are to the one caller of the same round, and the median and range of
the rounds are shown. Every answer is compared with the first one's.

The bars, each said to hold or not: `predict` costs at most 3 % and at most 0.1 ms more than the session; callers
together are at least 1.2 times one caller where batches alone are, and never slower than one caller.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy import load
from vitdeploy.core.machine import machine, versions
from vitdeploy.runtime.classifier import Classifier
from vitdeploy.runtime.serving import Serving

COLD_BYTES = 96 * 2**20  # about what the weights of a ViT-S take


def bare_call(classifier: Classifier, image: np.ndarray) -> Callable[[], Any]:
    """The session inside the classifier, called as its own documentation shows: another one would not be the same."""
    batch = image[np.newaxis]
    if classifier.backend == "onnxruntime":
        session = classifier._runner._session
        return lambda: session.run(["logits"], {"image": batch})
    classifier.predict(image)
    request = classifier._runner._graph._idle[-1]._request
    return lambda: request.infer({"image": batch}, share_inputs=True, share_outputs=True)


def micro_batching(plain: Classifier, most: int) -> Classifier:
    """A classifier that joins callers, on the session of `plain`."""
    return Classifier(plain._bundle, plain._runner, plain._chosen, plain._passed_over, Serving(max_batch=most))


def milliseconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - begun)


def overhead(classifier: Classifier, image: np.ndarray, rounds: int) -> dict[str, float]:
    """Medians over the rounds, in milliseconds."""
    bare = bare_call(classifier, image)
    ways = {
        "bare": bare,
        "predict": lambda: classifier.predict(image),
        "listed": lambda: classifier.predict(image).top_k,
        "again": bare,
    }
    draw = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-10, rounds):
        for name in draw.sample(list(ways), len(ways)):
            took = milliseconds(ways[name])
            if number >= 0:
                times[name].append(took)
    return {
        "pairs": rounds,
        "bare_ms": statistics.median(times["bare"]),
        "predict_ms": statistics.median(times["predict"]),
        "difference_ms": median_difference(times["predict"], times["bare"]),
        "ratio": statistics.median(p / b for p, b in zip(times["predict"], times["bare"], strict=True)),
        "listed_difference_ms": median_difference(times["listed"], times["bare"]),
        "again_difference_ms": median_difference(times["again"], times["bare"]),
    }


def code_alone_ms(classifier: Classifier, image: np.ndarray, rounds: int, ballast: np.ndarray) -> float:
    """Median milliseconds of `predict` less the model, for which `ballast` is read: a large one empties the caches."""
    runner: Any = classifier._runner
    answer = runner.infer({"image": image[np.newaxis]})
    asleep = [0.0]

    def run(_: Any) -> Any:
        begun = time.perf_counter()
        ballast.sum()
        asleep[0] = 1000 * (time.perf_counter() - begun)
        return answer

    runner.infer_checked = run
    try:
        return statistics.median(milliseconds(lambda: classifier.predict(image)) - asleep[0] for _ in range(rounds))
    finally:
        del runner.infer_checked


def median_difference(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(o - t for o, t in zip(ours, theirs, strict=True))


def images_per_s(call: Callable[[], list[Any]]) -> tuple[float, list[Any]]:
    begun = time.perf_counter()
    answers = call()
    return len(answers) / (time.perf_counter() - begun), answers


def throughput(
    plain: Classifier, together: Classifier, image: np.ndarray, callers: int, requests: int, rounds: int
) -> dict[str, Any]:
    """Images per second of each way, in rounds."""
    batch = np.stack([image] * callers)
    expected = plain.predict(image)
    with ThreadPoolExecutor(callers) as pool:
        ways: dict[str, Callable[[], list[Any]]] = {
            "one caller": lambda: [plain.predict(image) for _ in range(requests)],
            "batches": lambda: [answer for _ in range(requests // callers) for answer in plain.predict(batch)],
            "callers together": lambda: list(pool.map(lambda _: together.predict(image), range(requests))),
            "one caller, micro-batching": lambda: [together.predict(image) for _ in range(requests)],
        }
        ways["callers together"]()
        rates: dict[str, list[float]] = {name: [] for name in ways}
        draw = random.Random(0)
        for _ in range(rounds):
            for name in draw.sample(list(ways), len(ways)):  # what came before tells by a few percent
                rate, answers = images_per_s(ways[name])
                rates[name].append(rate)
                assert all(a.index == expected.index and abs(a.score - expected.score) < 1e-5 for a in answers)
    return {"callers": callers, "requests": requests, "rounds": rounds, "images_per_s": rates}


def ratios(rates: dict[str, list[float]], name: str) -> tuple[float, float, float]:
    """(median, least, most) of the ratio to one caller of the same round."""
    values = [ours / one for ours, one in zip(rates[name], rates["one caller"], strict=True)]
    return statistics.median(values), min(values), max(values)


def show(result: dict[str, Any]) -> None:
    o, t = result["overhead"], result["throughput"]
    print(f"{result['form']}, {result['threads']} threads, image {result['image']}")
    print(
        f"  overhead at batch 1: session {o['bare_ms']:.3f} ms, predict {o['predict_ms']:.3f} ms,"
        f" difference {o['difference_ms']:+.3f} ms, ratio {o['ratio']:.4f} (medians of {o['pairs']} pairs);"
        f" the session against itself {o['again_difference_ms']:+.3f} ms"
    )
    print(f"  with its top_k read: {o['listed_difference_ms']:+.3f} ms")
    print(f"  predict without the model: {o['code_cold_ms']:.3f} ms, {o['code_warm_ms']:.3f} ms with warm caches")
    print(f"  {bar(o['ratio'] <= 1.03)} at most 3 %; {bar(o['difference_ms'] <= 0.1)} at most 0.1 ms")
    one = statistics.median(t["images_per_s"]["one caller"])
    print(f"  one caller: {one:.1f} images/s")
    words = {"batches": f"batches of {t['callers']}", "callers together": f"{t['callers']} callers, micro-batching"}
    for name in ("batches", "callers together", "one caller, micro-batching"):
        median, least, most = ratios(t["images_per_s"], name)
        print(f"  {words.get(name, name)}: {median:.2f}x ({least:.2f} to {most:.2f} in {t['rounds']} rounds)")
    gain, reached = (ratios(t["images_per_s"], name)[0] for name in ("batches", "callers together"))
    wanted = 1.2 if gain >= 1.2 else 1.0
    print(f"  {bar(reached >= wanted)} callers together at least {wanted:g} times one caller")


def bar(holds: bool) -> str:
    return "holds:" if holds else "does not hold:"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--backend", choices=("openvino", "onnxruntime"), action="append")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--size", type=int, default=224, help="edge of the image (default: 224)")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--requests", type=int, default=80, help="of each way in a round (default: 80)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the samples there")
    arguments = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (arguments.size, arguments.size, 3), dtype=np.uint8)
    results = []
    for backend in arguments.backend or ("openvino", "onnxruntime"):
        for precision in arguments.precision or ("fp32", "int8"):
            options: dict[str, Any] = {"backend": backend, "precision": precision, "threads": arguments.threads}
            with (
                load(arguments.bundle, device="cpu", **options) as plain,
                micro_batching(plain, arguments.callers) as together,
            ):
                result = {
                    "form": f"{precision} on {backend}",
                    "threads": arguments.threads,
                    "image": f"{arguments.size}x{arguments.size}",
                    "overhead": {
                        **overhead(plain, image, arguments.pairs),
                        "code_warm_ms": code_alone_ms(plain, image, arguments.pairs, np.ones(1)),
                        "code_cold_ms": code_alone_ms(plain, image, arguments.pairs, np.ones(COLD_BYTES // 8)),
                    },
                    "throughput": throughput(
                        plain, together, image, arguments.callers, arguments.requests, arguments.rounds
                    ),
                }
            show(result)
            results.append(result)
    if arguments.json is not None:
        document = {"machine": machine(), "versions": versions(), "results": results}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""How large TensorRT-RTX engines are, and what is in them: weights, and the source text of fused kernels.

    python benchmarks/engine_sizes.py bundles/vit [--ranges "1 image of 224x224"] [--markdown OUT.md]

The bundle needs its FP32, FP16 and INT8 forms (`vitdeploy build-engine BUNDLE --fp16 --int8 --target onnx`). Each form
is built with the usual ranges and for images of one size, ahead of time, without a GPU. "Text" counts the 4 KiB blocks
that are nothing but printable characters: TensorRT-RTX writes fused kernels as CUDA C++, each with the same long
preamble, and the device compiles them. Sizes do not depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitdeploy.bundle import Bundle
from vitdeploy.compiler.engine import EngineOptions, Profile, build_engine
from vitdeploy.compiler.preprocessing.filters import vertical_first
from vitdeploy.core.machine import version
from vitdeploy.core.specs import ShapeRange
from vitdeploy.inspection.plan import read_plan

FORMS = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}


def one(batch: int, size: int) -> Profile:
    """Images of one size, in batches of one size."""
    return Profile(*(ShapeRange(n, n, n) for n in (batch, size, size)))


PROFILES: dict[str, tuple[Profile, tuple[str, ...]]] = {
    "1 image of 112x112": (one(1, 112), ()),
    "1 image of 112x112, for 8.6 only": (one(1, 112), ("8.6",)),
    "1 image of 224x224": (one(1, 224), ()),
    "1 to 8 images of 112x112": (Profile(ShapeRange(1, 1, 8), *(ShapeRange(112, 112, 112),) * 2), ()),
    "the usual: 1 to 8 images, 1x1 to 1080x1920": (Profile(), ()),
}


def resize_macs(size: tuple[int, int], made: int, radius: int) -> dict[str, float]:
    """Millions of multiply-accumulates of the resize of one image to (made, made) in the ways to pick the order of the
    passes: the one that is right (by an If), both, the right one with the image turned, the same with the axis of each
    pass in front. `radius` is the filter's."""
    block = 8

    def window(inputs: int) -> int:
        return min(inputs, ((block - 1) * inputs + 2 * radius * max(inputs, made)) // made + 1)

    def front(inputs: int, others: int) -> int:  # the product along the leading axis, per value of the others
        return math.ceil(made / block) * window(inputs) * 2 * block * others

    def back(inputs: int, lines: int) -> int:  # along the trailing axis, where each channel meets zeros for the others
        return front(inputs, 9 * lines)

    height, width = size
    width_first = back(width, height) + front(height, 3 * made)
    height_first = front(height, 3 * width) + back(width, made)
    tall = vertical_first(size, (made, made))
    first, second = (height, width) if tall else (width, height)
    counts = {
        "one order, by an If": height_first if tall else width_first,
        "both orders": width_first + height_first,
        "turned (FP32, FP16)": back(first, second) + front(second, 3 * made),
        "turned (INT8)": front(first, 3 * second) + front(second, 3 * made),
    }
    return {name: count / 1e6 for name, count in counts.items()}


def rows(bundle: Bundle, chosen: list[str]) -> Iterator[dict[str, Any]]:
    for name in chosen:
        profile, capabilities = PROFILES[name]
        sizes: dict[str, int] = {}
        for precision, form in FORMS.items():
            options = EngineOptions(profiles=(profile,), compute_capabilities=capabilities)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "engine"
                info = build_engine(bundle.path / form, path, options.for_manifest(bundle.manifest))
                plan = read_plan(path)
                assert plan is not None
            sizes[precision] = info.size_bytes
            yield {
                "profile": name,
                "precision": precision,
                "onnx_bytes": (bundle.path / form).stat().st_size,
                "engine_bytes": info.size_bytes,
                "text_bytes": plan.text_bytes,
                "capturable": plan.capturable,
                "of_fp32": info.size_bytes / sizes["fp32"],
                "of_fp16": info.size_bytes / sizes["fp16"] if "fp16" in sizes else None,
            }


def markdown(found: list[dict[str, Any]]) -> str:
    lines = [
        "| ranges | precision | engine, MB | of FP32 | of FP16 | ONNX, MB | larger by, MB | text in it, MB |",
        "| --- | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for row in found:
        more = row["engine_bytes"] - row["onnx_bytes"]
        counts = (row["engine_bytes"], row["onnx_bytes"], more, row["text_bytes"])
        size, graph, larger, text = (f"{count / 1e6:.1f}" for count in counts)
        shares = ("–" if row[of] is None else f"{row[of]:.3f}" for of in ("of_fp32", "of_fp16"))
        cells = [row["profile"], row["precision"], size, *shares, graph, larger, text]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def markdown_of_macs() -> str:
    sizes = [(224, 224), (480, 640), (1080, 1920), (1920, 1080)]
    columns = [resize_macs(size, 112, 2) for size in sizes]
    head = " | ".join(f"{height}x{width}" for height, width in sizes)
    lines = [f"| to 112x112, bicubic, million MACs | {head} |", f"| --- |{' --: |' * len(sizes)}"]
    lines += [f"| {name} | {' | '.join(f'{column[name]:.1f}' for column in columns)} |" for name in columns[0]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--ranges", nargs="+", choices=list(PROFILES), default=list(PROFILES))
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    found = []
    for row in rows(bundle, arguments.ranges):
        found.append(row)
        print(json.dumps(row), flush=True)
    if arguments.markdown:
        head = f"TensorRT-RTX {version('tensorrt-rtx')}, {bundle.manifest.model.get('name')}.\n\n"
        arguments.markdown.write_text(
            "# Sizes of engines\n\n" + head + markdown(found) + "\n" + markdown_of_macs(), encoding="utf-8"
        )


if __name__ == "__main__":
    main()

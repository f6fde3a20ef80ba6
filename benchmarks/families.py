"""Every architecture of image classifiers and image models in the installed transformers: what export makes of it.

    python benchmarks/families.py --work FOLDER [--json docs/results/families.json] [--resume]
        [--stages export fp16 int8 rtx] [--only NAME ...] [--seconds 300] [--markdown]

Of each a tiny model of random weights is made, by rule from its default configuration (`shrunk`, and `OTHERS` where the
rule does not do), and saved with the image processor of its family. It takes the way of a user's checkpoint: export as
a classifier or an embedding, with its own check against transformers; the FP16 form; INT8, calibrated on drawn images;
an engine of TensorRT-RTX ("rtx", which builds without a GPU), of INT8 where there is one, else of FP16. The forms are
compared with FP32 in ONNX Runtime on images that did not calibrate.

Where export refuses the family's own image processor, ViTImageProcessor takes its place, and the row says so. What a
row has under "refused" is an error of vitdeploy, which names the reason; "crashed" is anything else, and to be mended.
Each row has a process of its own with a time limit, and is written as it comes. `--stages` are those to do, one or
some; `--resume` does those alone that the record lacks. Checkpoints and bundles stay in FOLDER, where later stages find
them. `--markdown` writes the
table into docs/export.md (benchmarks/tables.py). One row: `--only vit`, or `--only vit/ViTModel`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs" / "results" / "families.json"
EDGE = 64  # pixels
CLASSES = 4
DRAWN, CALIBRATE, JUDGE = 24, 16, 8  # images: of the first calibration takes some and is checked on others
PACKAGES = ("torch", "transformers", "onnxruntime", "tensorrt-rtx", "timm", "torchvision")

# The rule: settings by the pattern of their names, and what they become. A list keeps its length.
RULES: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    (r"image_size|pretrain_image_size", lambda value: each(value, lambda _, __: EDGE)),
    (r"patch_size", lambda value: each(value, lambda size, _: min(size, 8))),
    (r"(.*_)?depths?|(num_)?(.*_)?layers|n_layer|stage_num(b_of_layers|_blocks)|.*_repeats|n_attn_blocks",
     lambda value: each(value, lambda count, _: min(count, 2))),
    (r"(.*_)?(num_)?(.*_)?heads|n_head|num_key_value_heads",
     lambda value: each(value, lambda _, stage: 4 if stage is None else 2**stage)),
    (r"embed_dim", lambda value: each(value, lambda _, stage: 24 * 2 ** (stage or 0))),
    (r"hidden_sizes|embed_dims|.*_unit_dims", lambda value: each(value, lambda _, stage: 16 * 2**stage)),
    (r"(.*_)?hidden_size|d_model|d_latents|n_embd|hidden_dim|fusion_hidden_size|aspp_out_channels|auxiliary_channels",
     lambda value: each(value, lambda _, __: 48)),
    (r"(.*_)?intermediate_size(_mlp)?|(.*_)?ffn_dim|class_expand", lambda value: each(value, lambda _, __: 96)),
    (r"window_size", lambda value: each(value, lambda size, _: min(size, 2))),
    (r"projection_dim|pooler_output_size", lambda value: each(value, lambda _, __: 32)),
    (r"neck_hidden_sizes|num_queries|num_latents", lambda value: each(value, lambda _, __: 24)),
    (r"vocab_size", lambda value: each(value, lambda _, __: 99)),
    (r"max_position_embeddings", lambda value: each(value, lambda _, __: 64)),
)  # fmt: skip
# What the rule does not find, by kind; a sub-configuration's settings under its name.
OTHERS: dict[str, dict[str, Any]] = {
    "bit": {"embedding_size": 16, "num_groups": 8},
    "cvt": {"depth": [1, 2, 3]},
    "dpt": {"backbone_out_indices": [0, 1, 0, 1]},
    "efficientnet": {"width_coefficient": 0.5, "depth_coefficient": 0.3, "hidden_dim": 640},
    "hgnet_v2": {
        "stem_channels": [3, 8, 16],
        "stage_in_channels": [16, 16, 32, 64],
        "stage_mid_channels": [8, 8, 16, 16],
        "stage_out_channels": [16, 32, 64, 128],
        "embedding_size": 16,
    },
    "hiera": {"embed_dim": 16},
    "levit": {"patch_size": 16, "key_dim": [8, 8, 8], "num_attention_heads": [2, 4, 6]},
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "perceiver": {"num_self_attends_per_block": 2, "num_cross_attention_heads": 1, "d_model": 32},
    "pp_lcnet": {"scale": 0.25},
    "regnet": {"embedding_size": 16, "groups_width": 8},
    "resnet": {"embedding_size": 16},
    "swin2sr": {"depths": [2, 2], "num_heads": [2, 2]},
    "textnet": {"stem_out_channels": 16},
    "timm_backbone": {"backbone": "resnet18"},
    "timm_wrapper": {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"img_size": EDGE, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4},
        "pretrained_cfg": {
            "input_size": [3, EDGE, EDGE],
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "classifier": "head",
        },
    },
}
BY_CONFIGURATION = ("cohere2_vision", "depth_pro", "llama4", "mllama", "shieldgemma2")
"""Models of more than an image, refused before their weights are read: a file of other weights stands for them."""
DERIVED = ("stage_names", "out_features", "out_indices", "id2label", "label2id", "num_labels", "model_type")


def each(value: Any, make: Callable[[Any, int | None], Any]) -> Any:
    """A number made of a number and None; a list of each of its numbers and their places."""
    if isinstance(value, (list, tuple)):
        return [make(number, place) if isinstance(number, int) else number for place, number in enumerate(value)]
    return make(value, None) if isinstance(value, int) and not isinstance(value, bool) else value


def shrunk(config: Any, others: dict[str, Any]) -> dict[str, Any]:
    """The settings of a default configuration that are others in a tiny one."""
    found: dict[str, Any] = {}
    for name in type(config).__dataclass_fields__:
        value = getattr(config, name, None)
        if name.startswith("_") or name in DERIVED:
            continue
        if hasattr(value, "to_dict"):
            found[name] = {"model_type": value.model_type, **shrunk(value, others.get(name, {}))}
            if getattr(value, "out_features", None) and name == "backbone_config":
                found[name]["out_features"] = list(value.out_features)
            continue
        make = next((make for pattern, make in RULES if re.fullmatch(pattern, name)), None)
        made = value if make is None else make(value)
        if made != (list(value) if isinstance(value, tuple) else value):
            found[name] = made
    own = {name: value for name, value in others.items() if not isinstance(found.get(name), dict)}
    return {**found, **own}


def architectures() -> Iterator[tuple[str, str, str]]:
    """(kind, class, task) of everything that transformers lists, each once."""
    from transformers.models.auto import modeling_auto as auto

    tables = {
        "classification": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "embedding": auto.MODEL_FOR_IMAGE_MAPPING_NAMES,
    }
    for task, table in tables.items():
        for kind, names in table.items():
            for name in (names,) if isinstance(names, str) else names:
                yield kind, name, task


def write_checkpoint(kind: str, architecture: str, task: str, folder: Path) -> None:
    """A tiny model of random weights that tell where they are left out."""
    import torch
    import transformers
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind]
    model_class = getattr(transformers, architecture)
    settings = {} if kind in BY_CONFIGURATION else shrunk(config_class(), OTHERS.get(kind, {}))
    config = config_class(**settings, **({"num_labels": CLASSES} if task == "classification" else {}))
    try:
        if kind in BY_CONFIGURATION:
            raise ImportError
        module = model_class(config)
    except ImportError:
        config.architectures = [architecture]
        config.save_pretrained(folder)
        save_file({"weight": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
        return
    with torch.no_grad():
        for part in module.modules():
            for name, values in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
                _vary(part, name, values)
    module.save_pretrained(folder)


def _vary(part: Any, name: str, values: Any) -> None:
    """Weights that keep the size of what they multiply; nothing is zero or one, which would hide what reads it."""
    import torch

    if name == "running_var":
        values.uniform_(0.5, 1.5)
    elif not values.is_floating_point() or (
        name not in dict(part.named_parameters(recurse=False)) and "running" not in name
    ):
        return
    elif values.ndim > 1 and isinstance(part, (torch.nn.Linear, torch.nn.Conv2d)):
        values.normal_(std=float(np.prod(values.shape[1:])) ** -0.5)
    elif values.numel() > 1 and (values == values.flatten()[0]).all():
        values.add_(0.1 * torch.randn_like(values))


def write_processor(kind: str, folder: Path) -> str:
    """The image processor of a family for images of `EDGE` pixels; returns its class, without the backend."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    if kind == "timm_wrapper":  # whose config.json has it
        return "timm's evaluation transform"
    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(kind) or {"pil": "ViTImageProcessorPil"}
    if not names.get("pil"):  # torchvision's alone, which may not be here: it is not made, but named
        settings = {"image_processor_type": names["torchvision"], "size": {"height": EDGE, "width": EDGE}}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return str(names["torchvision"])
    made = getattr(transformers, names["pil"])()
    sizes: dict[str, Any] = {}
    if getattr(made, "size", None):
        edge = EDGE + EDGE // 8 if made.do_center_crop else EDGE
        kept = [key for key, value in vars(made.size).items() if value is not None]
        sizes["size"] = {key: edge * (2 if key == "longest_edge" else 1) for key in kept}
    if getattr(made, "do_center_crop", None):
        sizes["crop_size"] = {"height": EDGE, "width": EDGE}
    type(made)(**sizes).save_pretrained(folder)
    return str(names["pil"]).removesuffix("Pil")


def write_images(folder: Path, count: int, seed: int) -> None:
    """Drawn ones with the statistics of photographs, as PNG."""
    from PIL import Image

    from vitdeploy.compiler.samples import dead_leaves

    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(dead_leaves(96, 80, generator)).save(folder / f"{number:02}.png")


def exported(kind: str, architecture: str, task: str, work: Path) -> dict[str, Any]:
    """What export says; with the family's own image processor, or ViT's where that is refused.

    Raises:
        VitdeployError: export refuses the model.
    """
    from vitdeploy import VitdeployError, export

    checkpoint = work / "checkpoint"
    write_checkpoint(kind, architecture, task, checkpoint)
    found: dict[str, Any] = {"processor": write_processor(kind, checkpoint)}
    try:
        bundle = export(checkpoint, work / "bundle", task=task, overwrite=True)
    except VitdeployError as own:
        if kind == "timm_wrapper":
            raise
        from transformers import ViTImageProcessor

        ViTImageProcessor(size={"height": EDGE, "width": EDGE}).save_pretrained(checkpoint)
        bundle = export(checkpoint, work / "bundle", task=task, overwrite=True)
        found["processor_refused"] = said(own, work)
    checks = {check["name"]: check["value"] for check in bundle.manifest.provenance["checks"]}
    found["difference"] = rounded_off(checks["FP32 graph against PyTorch"])
    if task == "embedding":
        found["cosine_lost"] = rounded_off(checks["direction against PyTorch"])
    return found


def form(precision: str, work: Path) -> dict[str, Any]:
    """What a form is, built into the bundle, beside FP32."""
    from vitdeploy import Bundle, Recipe, build
    from vitdeploy.compiler.float16.check import rounded
    from vitdeploy.data.images import decode
    from vitdeploy.models.tasks import cosines

    recipe = Recipe(dataset=str(work.parent / "images"), count=CALIBRATE, selection="random")
    build(work / "bundle", [precision], target="onnx", recipe=recipe)
    bundle = Bundle.open(work / "bundle")
    pictures = [decode(file)[np.newaxis] for file in sorted((work.parent / "judged").glob("*.png"))]
    answers = {}
    for file in ("model.onnx", f"model.{precision}.onnx"):
        with rounded(bundle.path / file, 1) as runner:
            answer = next(spec.name for spec in runner.outputs if spec.name in ("logits", "embedding"))
            answers[file] = np.concatenate([runner.infer({"image": picture})[answer] for picture in pictures])
    exact, other = answers.values()
    found: dict[str, Any] = {"difference": rounded_off(float(np.abs(other - exact).max() / np.ptp(exact)))}
    if answer == "embedding":
        found["cosine_lost"] = rounded_off(1 - float(cosines(other, exact).min()))
    artifact = bundle.find(kind="onnx", precision=precision, target="tensorrt" if precision == "int8" else "any")
    if artifact is not None and "structure" in artifact.built_with:
        found["share"] = artifact.built_with["structure"]["share_int8"]
    return found


def engine(precision: str, work: Path) -> dict[str, Any]:
    """An engine of one of the forms, built into the bundle."""
    from vitdeploy import build

    bundle = build(work / "bundle", [precision], target="tensorrt-rtx").bundle
    built = bundle.find(kind="engine", precision=precision, target="tensorrt-rtx")
    assert built is not None
    return {"precision": precision, "megabytes": rounded_off(built.size_bytes / 1e6)}


def rounded_off(value: float) -> float:
    return float(f"{max(value, 0):.2g}")


def said(error: Exception, work: Path) -> str:
    """An error's first line, without this machine's paths."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return line.replace(str(work / "checkpoint"), "it").replace(str(work / "bundle"), "the bundle")


def attempt(make: Callable[[], dict[str, Any]], work: Path) -> dict[str, Any]:
    """What `make` finds; else the error: "refused" where it is vitdeploy's own, "crashed" where it is not."""
    from vitdeploy import VitdeployError

    try:
        return make()
    except VitdeployError as error:
        return {"refused": said(error, work), **({"hint": error.hint} if error.hint else {})}
    except Exception as error:
        traceback.print_exc()
        return {"crashed": f"{type(error).__name__}: {said(error, work)}"}


def worked(found: dict[str, Any] | None) -> bool:
    return found is not None and not {"refused", "crashed"} & set(found)


STAGES: dict[str, Callable[[dict[str, Any], Path], dict[str, Any]]] = {
    "export": lambda row, work: exported(row["kind"], row["architecture"], row["task"], work),
    "fp16": lambda row, work: form("fp16", work),
    "int8": lambda row, work: form("int8", work),
    "rtx": lambda row, work: engine("int8" if worked(row.get("int8")) else "fp16", work),
}


def lacking(row: dict[str, Any], stages: Sequence[str]) -> list[str]:
    """The stages that are still to do: behind an export that failed there are none."""
    if "export" in row and not worked(row["export"]):
        return []
    return [name for name in STAGES if name in stages and name not in row]


def row_of(row: dict[str, Any], stages: Sequence[str], work: Path) -> dict[str, Any]:
    """The row with those stages done that it lacks."""
    for name in lacking(row, stages):
        if name in lacking(row, stages):
            row[name] = attempt(lambda name=name: STAGES[name](row, work), work)  # type: ignore[misc]
    return row


def asked(row: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """The same in a process of its own, which has all packages imported already."""
    import multiprocessing

    work = arguments.work / f"{row['kind']}-{row['architecture']}"
    results = work.with_suffix(".json")
    results.unlink(missing_ok=True)

    def run() -> None:
        with open(results.with_suffix(".log"), "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            results.write_text(json.dumps(row_of(row, arguments.stages, work)), encoding="utf-8")

    started = time.perf_counter()
    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(arguments.seconds)
    why = f"the process ended with {process.exitcode}"
    if process.is_alive():
        process.kill()
        process.join()
        why = f"not done after {arguments.seconds} s"
    if results.exists():
        row = json.loads(results.read_text(encoding="utf-8"))
    else:
        row = {**row, lacking(row, arguments.stages)[0]: {"crashed": why}}
    return {**row, "seconds": row.get("seconds", 0) + round(time.perf_counter() - started)}


def shown(row: dict[str, Any]) -> str:
    parts = []
    for name in STAGES:
        found = row.get(name)
        if found is not None:
            numbers = {key: value for key, value in found.items() if key not in ("hint", "processor")}
            parts.append(f"{name} {', '.join(f'{key} {value}' for key, value in numbers.items())}")
    return f"{row['kind']} {row['architecture']} ({row['seconds']} s): {'; '.join(parts)}"


def run(arguments: argparse.Namespace) -> None:
    import onnxscript.optimizer  # noqa: F401  here, and not in the process of each row
    import torch.onnx
    from transformers import AutoModelForImageClassification, ViTImageProcessor  # noqa: F401

    import vitdeploy.compiler.build
    import vitdeploy.compiler.export  # noqa: F401
    from vitdeploy.core.machine import versions

    torch.set_num_threads(1)

    record = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else {"rows": []}
    there = {(row["kind"], row["architecture"]): row for row in record["rows"]}
    arguments.work.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate({"images": DRAWN, "judged": JUDGE}.items()):
        if not (arguments.work / name).exists():
            write_images(arguments.work / name, count, seed)
    everything = list(architectures())
    wanted = [row for row in everything if not arguments.only or {row[0], f"{row[0]}/{row[1]}"} & set(arguments.only)]
    for number, (kind, architecture, task) in enumerate(wanted, 1):
        row = {"kind": kind, "architecture": architecture, "task": task}
        if arguments.resume:
            row = there.get((kind, architecture), row)
        if not lacking(row, arguments.stages):
            continue
        row = asked(row, arguments)
        print(f"{number} of {len(wanted)}  {shown(row)}", flush=True)
        there[kind, architecture] = row
        rows = [there[place[:2]] for place in everything if place[:2] in there]
        text = json.dumps(
            {"versions": {**record.get("versions", {}), **versions(PACKAGES)}, "edge": EDGE, "rows": rows},
            indent=1,
            ensure_ascii=False,
        )
        arguments.json.write_text(text + "\n", encoding="utf-8")


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=RECORD)
    parser.add_argument("--only", nargs="+", default=())
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=tuple(STAGES))
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--seconds", type=int, default=300)
    arguments = parser.parse_args(given)
    run(arguments)
    if arguments.markdown:
        from tables import main as write_tables

        write_tables([])


if __name__ == "__main__":
    main()

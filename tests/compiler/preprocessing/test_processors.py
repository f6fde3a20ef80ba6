"""Image processors of transformers -> spec -> graph: what is reproduced, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.preprocessing import assert_levels, noise, photograph, runner
from vitdeploy.compiler.preprocessing import build_preprocessing, reference, spec_from_processor
from vitdeploy.compiler.preprocessing.reference import follows_pillow
from vitdeploy.core.decoding import decode
from vitdeploy.core.errors import ModelError
from vitdeploy.core.specs import PreprocessSpec, ResizeSpec

SIZES = [(32, 32), (90, 61), (40, 133), (200, 31)]


def sizes(spec: PreprocessSpec) -> list[tuple[int, int]]:
    """Those that the installed Pillow resizes in the order of Pillow 13."""
    return [size for size in SIZES if follows_pillow(spec, size)]


def processor(name: str, **settings: Any) -> Any:
    """An image processor of transformers' Pillow backend, which needs no torchvision."""
    import transformers

    try:
        return getattr(transformers, f"{name}ImageProcessorPil")(**settings)
    except ImportError:  # transformers 5.20 asks for torchvision to make Segformer's
        pytest.skip(f"this transformers has no {name}ImageProcessorPil without torchvision")


CASES = [
    ("ViT", {}),
    ("ViT", {"size": 48, "resample": 3}),
    ("ViT", {"size": {"height": 40, "width": 56}, "resample": 1, "image_mean": [0.1, 0.5, 0.9], "image_std": 0.25}),
    ("ViT", {"size": 48, "resample": 5, "do_normalize": False}),
    ("ViT", {"size": 48, "do_rescale": False, "do_normalize": False}),
    ("ViT", {"size": 48, "do_rescale": False}),
    ("ViT", {"size": 48, "rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]}),
    ("ViT", {"do_resize": False, "do_center_crop": True, "crop_size": 48}),
    ("DeiT", {}),
    ("DeiT", {"size": 33, "crop_size": {"height": 48, "width": 20}}),
    ("Beit", {}),
    ("Beit", {"size": 64, "do_center_crop": True, "crop_size": 48}),
    ("Bit", {}),  # DINOv2's
    ("Bit", {"size": {"shortest_edge": 40}, "crop_size": 61}),  # zeros around
    ("ConvNext", {}),  # 384: resize only
    ("ConvNext", {"size": {"shortest_edge": 64}, "crop_pct": 0.875}),
    ("ConvNext", {"size": {"shortest_edge": 64}, "crop_pct": 0.9, "resample": 2}),
    ("Siglip", {}),
    ("Siglip", {"size": {"height": 64, "width": 64}, "resample": 2}),
    ("CLIP", {}),
    ("CLIP", {"size": {"shortest_edge": 50}, "crop_size": {"height": 48, "width": 48}}),
    ("DPT", {"size": 64}),
    ("DPT", {"size": {"height": 50, "width": 70}, "ensure_multiple_of": 32}),
    ("EfficientNet", {"size": 48}),
    ("EfficientNet", {"size": 48, "rescale_factor": 1 / 127.5, "rescale_offset": True, "do_center_crop": True}),
    ("EfficientNet", {"size": 48, "rescale_offset": True, "include_top": False, "do_normalize": False}),
    ("EfficientNet", {"size": 48, "include_top": True, "do_normalize": False, "image_std": [0.2, 0.3, 0.4]}),
    ("Levit", {}),
    ("Levit", {"size": {"shortest_edge": 50}, "crop_size": 48}),
    ("Levit", {"size": {"height": 40, "width": 56}, "do_center_crop": False}),
    ("MobileNetV2", {}),
    ("MobileNetV2", {"size": {"shortest_edge": 50}, "crop_size": 48}),
    ("MobileViT", {}),
    ("MobileViT", {"size": {"shortest_edge": 50}, "crop_size": 48, "do_normalize": True}),
    ("MobileViT", {"size": {"shortest_edge": 50}, "crop_size": 48, "do_flip_channel_order": False}),
    ("PoolFormer", {}),
    ("PoolFormer", {"size": {"height": 48, "width": 48}, "crop_size": 48, "crop_pct": 0.95}),
    ("PoolFormer", {"size": {"shortest_edge": 50}, "crop_size": 48, "crop_pct": None}),
    ("Pvt", {"size": 48}),
    ("Segformer", {"size": 64}),
    ("Segformer", {"size": 64, "do_center_crop": True, "crop_size": 48}),  # it does not
]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda value: str(value)[:40])
def test_the_graph_does_what_the_processor_does(name: str, settings: dict[str, Any]) -> None:
    theirs = processor(name, **settings)
    spec = spec_from_processor(theirs)
    run = runner(spec)
    level = np.full(3, spec.rescale if spec.rescale is not None else 1.0)
    level = level if spec.std is None else level / np.array(spec.std)
    for seed, size in enumerate(sizes(spec)):
        pixels = noise(*size, seed) if seed % 2 else photograph(*size, seed)
        expected = np.asarray(theirs(pixels, input_data_format="channels_last", return_tensors="np")["pixel_values"][0])
        # the reference resizes bit for bit; what is left is one float32 rounding of the normalisation
        np.testing.assert_allclose(reference(spec, pixels), expected, rtol=2e-6, atol=2e-6 * max(1, level.max()))
        assert_levels(run(pixels[np.newaxis])[0], expected.astype(np.float32), levels=1, share=0.001, level=level)
    assert decode(PreprocessSpec, spec.to_json()) == spec


@pytest.mark.parametrize("resample", [0, 4])
def test_nearest_and_box_are_reproduced_for_a_known_size(resample: int) -> None:
    theirs = processor("ViT", size=48, resample=resample)
    spec = spec_from_processor(theirs)
    for size in sizes(spec):
        pixels = noise(*size)
        expected = theirs(pixels, input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(runner(spec, size)(pixels[np.newaxis])[0], expected, rtol=0, atol=2e-6)


def test_shortest_and_longest_edge_are_reproduced_for_a_known_size() -> None:
    theirs = processor("Bit", size={"shortest_edge": 40, "longest_edge": 70}, do_center_crop=False)
    spec = spec_from_processor(theirs)
    assert spec.resize == ResizeSpec("bicubic", shortest_edge=40, longest_edge=70)
    for size in sizes(spec):
        pixels = noise(*size)
        expected = theirs(pixels, input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(runner(spec, size)(pixels[np.newaxis])[0], expected, rtol=0, atol=5e-6)


def test_the_torchvision_family_is_read_as_well() -> None:
    from transformers.models.bit.image_processing_bit import BitImageProcessor
    from transformers.models.vit.image_processing_vit import ViTImageProcessor

    # without torchvision they can be made, and hold settings, but not run
    assert spec_from_processor(ViTImageProcessor(size=32)) == spec_from_processor(processor("ViT", size=32))
    assert spec_from_processor(BitImageProcessor()) == spec_from_processor(processor("Bit"))


def test_settings_survive_a_saved_folder(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    saved = processor("Bit", size={"shortest_edge": 40}, crop_size=32)
    saved.save_pretrained(tmp_path)
    assert spec_from_processor(AutoImageProcessor.from_pretrained(tmp_path)) == spec_from_processor(saved)


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CHECKPOINTS = [  # what checkpoints of each family have in preprocessor_config.json, and what the graph must do
    ("vit", {"size": 224, "resample": 2}, ResizeSpec("bilinear", height=224, width=224), None),
    (
        "deit",
        {"size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224},
        ResizeSpec("bicubic", height=256, width=256),
        (224, 224),
    ),
    (
        "beit",
        {"size": 224, "resample": 2, "do_center_crop": False, "crop_size": 224},
        ResizeSpec("bilinear", height=224, width=224),
        None,
    ),
    (
        "dinov2",
        {"size": {"shortest_edge": 256}, "resample": 3, "do_center_crop": True, "crop_size": 224},
        ResizeSpec("bicubic", shortest_edge=256),
        (224, 224),
    ),
    ("swin", {"size": 224, "resample": 3}, ResizeSpec("bicubic", height=224, width=224), None),
    ("swinv2", {"size": 256, "resample": 3}, ResizeSpec("bicubic", height=256, width=256), None),
    (
        "convnext",
        {"size": 224, "crop_pct": 0.875, "resample": 3},
        ResizeSpec("bicubic", shortest_edge=256),
        (224, 224),
    ),
    ("siglip", {"size": {"height": 256, "width": 256}}, ResizeSpec("bicubic", height=256, width=256), None),
    (
        "clip",
        {"size": 224, "resample": 3, "do_center_crop": True, "crop_size": 224},
        ResizeSpec("bicubic", shortest_edge=224),
        (224, 224),
    ),
]


@pytest.mark.parametrize(("family", "settings", "resize", "crop"), CHECKPOINTS, ids=lambda value: str(value)[:12])
def test_a_folder_of_each_family_does_what_its_processor_does(
    family: str, settings: dict[str, Any], resize: ResizeSpec, crop: Any, tmp_path: Path
) -> None:
    """The folder names no processor, as old ones don't: the family of its config.json does (Swin has ViT's)."""
    from transformers import AutoImageProcessor

    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, **IMAGENET}))
    theirs = AutoImageProcessor.from_pretrained(tmp_path)
    spec = spec_from_processor(theirs)
    mean, std = (tuple(numbers) for numbers in IMAGENET.values())
    assert spec == PreprocessSpec(resize, crop, 1 / 255, mean, std)
    run, level = runner(spec), 1 / 255 / np.array(std)
    for seed, size in enumerate(sizes(spec)):
        pixels = noise(*size, seed) if seed % 2 else photograph(*size, seed)
        expected = np.asarray(theirs(pixels, input_data_format="channels_last", return_tensors="np")["pixel_values"][0])
        # see check_any_size of the other tests: bicubic may be a level apart, next to nowhere
        assert_levels(run(pixels[np.newaxis])[0], expected.astype(np.float32), levels=1, share=0.001, level=level)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_the_channels_are_turned_round_in_every_layout(target: str) -> None:
    theirs = processor("MobileViT", size={"shortest_edge": 50}, crop_size=48)
    spec, pixels = spec_from_processor(theirs), photograph(60, 70, 0)
    assert spec.channels == "bgr"
    expected = np.asarray(theirs(pixels, input_data_format="channels_last", return_tensors="np")["pixel_values"][0])
    assert np.abs(expected - expected[::-1]).max() > 0.1, "a picture whose red is not its blue"
    level = np.full(3, 1 / 255)
    assert_levels(runner(spec, target=target)(pixels[np.newaxis])[0], expected, levels=1, share=0.001, level=level)


@pytest.mark.parametrize(
    ("name", "settings", "setting"),
    [
        ("ViT", {"do_pad": True}, "do_pad"),
        ("ViT", {"size": {"max_height": 32, "max_width": 32}}, "size="),
        ("ViT", {"resample": 7}, "resample=7"),
        ("ViT", {"do_center_crop": True, "crop_size": {"shortest_edge": 7}}, "crop_size="),
        ("ViT", {"image_std": [0.5, 0.0, 0.5]}, "image_std"),
        ("ViT", {"image_mean": [0.5, 0.5]}, "image_mean"),
        ("ViT", {"image_mean": [0.5, float("nan"), 0.5]}, "image_mean"),
        ("ViT", {"image_std": ["a", "b", "c"]}, "image_std"),
        ("ViT", {"rescale_factor": 0}, "rescale_factor=0"),
        ("ViT", {"rescale_factor": float("nan")}, "rescale_factor=nan"),
        ("ViT", {"rescale_factor": float("inf")}, "rescale_factor=inf"),
        ("ConvNext", {"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": 64}, "do_center_crop"),
        ("ConvNext", {"size": {"shortest_edge": 64}, "crop_pct": 1.5}, "crop_pct"),
        ("PoolFormer", {"size": {"height": 40, "width": 48}}, "crop_pct"),
        ("DPT", {"keep_aspect_ratio": True}, "keep_aspect_ratio"),
        ("TextNet", {}, "TextNetImageProcessorPil"),  # rounds both edges up to multiples of 32
        ("GLPN", {}, "GLPNImageProcessorPil"),  # and down
        ("Perceiver", {}, "PerceiverImageProcessorPil"),  # crops before it resizes
    ],
)
def test_what_can_not_be_reproduced_is_refused_by_name(name: str, settings: dict[str, Any], setting: str) -> None:
    with pytest.raises(ModelError) as caught:
        spec_from_processor(processor(name, **settings))
    assert setting in caught.value.message and caught.value.hint


def test_something_else_is_refused() -> None:
    with pytest.raises(ModelError, match="PreprocessSpec"):
        spec_from_processor(PreprocessSpec(None, None, None, None, None))


@pytest.fixture(scope="module")
def tensorrt_rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx, which builds engines without a GPU, is not there")


def build_engine(trt: Any, data: bytes, input_size: tuple[int, int] | None = None) -> bytes:
    """A strongly typed engine of an ONNX model; of a dynamic one for 1 to 4 images of 1x1 to 2160x3840."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(data), [parser.get_error(index).desc() for index in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    low, middle, high = (input_size,) * 3 if input_size else ((1, 1), (480, 640), (2160, 3840))
    profile.set_shape("image", (1, *low, 3), (1, *middle, 3), (4, *high, 3))
    config.add_optimization_profile(profile)
    config.builder_optimization_level = 0  # whether it builds is the question, not how fast it runs
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return bytes(plan)


def preprocessing_model(resize: Any, crop: Any, input_size: Any) -> bytes:
    import onnx_ir as ir

    spec = PreprocessSpec(resize, crop, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return bytes(ir.to_proto(build_preprocessing(spec, input_size=input_size)).SerializeToString())


QUICK_ENGINES = [(ResizeSpec("bicubic", height=32, width=32), None, None)]
FULL_ENGINES = [
    *((ResizeSpec(name, height=224, width=224), None, None) for name in ("bilinear", "bicubic", "hamming", "lanczos")),
    (ResizeSpec("bicubic", shortest_edge=256), (224, 224), None),
    (ResizeSpec("bicubic", shortest_edge=40), (64, 64), None),
    (None, (224, 224), None),
    (None, None, None),
    *((ResizeSpec(name, height=224, width=224), None, (480, 640)) for name in ("nearest", "box", "bicubic", "lanczos")),
    (ResizeSpec("bicubic", shortest_edge=256, longest_edge=300), (224, 224), (480, 640)),
]


@pytest.mark.parametrize(("resize", "crop", "input_size"), QUICK_ENGINES)
def test_a_tensorrt_rtx_engine_builds(tensorrt_rtx: Any, resize: Any, crop: Any, input_size: Any) -> None:
    assert build_engine(tensorrt_rtx, preprocessing_model(resize, crop, input_size), input_size)


@pytest.mark.full
@pytest.mark.parametrize(("resize", "crop", "input_size"), FULL_ENGINES, ids=str)
def test_every_variant_builds_as_a_tensorrt_rtx_engine(
    tensorrt_rtx: Any, resize: Any, crop: Any, input_size: Any
) -> None:
    assert build_engine(tensorrt_rtx, preprocessing_model(resize, crop, input_size), input_size)


@pytest.mark.full
@pytest.mark.parametrize("form", ["model.onnx", "model.fp16.onnx", "model.int8.onnx"])
def test_the_preprocessing_builds_inside_every_form_of_a_model(tensorrt_rtx: Any, tiny_bundle: Path, form: str) -> None:
    import onnx

    data = (tiny_bundle / form).read_bytes()
    assert build_engine(tensorrt_rtx, data)
    graph = onnx.load_from_string(data).graph
    names = {value.name for value in graph.initializer if value.name.startswith("preprocess/")}
    assert names, "the constants of the preprocessing keep their names"
    kinds = {value.data_type for value in graph.initializer if value.name in names}
    assert onnx.TensorProto.FLOAT16 not in kinds and onnx.TensorProto.INT8 not in kinds  # float32 in every form

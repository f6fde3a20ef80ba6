"""What the tests of the preprocessing share: a graph to run, images to run it on, the comparison with Pillow."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from vitdeploy.compiler.preprocessing import build_preprocessing
from vitdeploy.compiler.preprocessing.filters import vertical_first
from vitdeploy.core.machine import release
from vitdeploy.core.specs import PreprocessSpec, ResizeSpec

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Run = Callable[[Pixels], Floats]

PILLOW = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
CONTINUOUS = ("bilinear", "bicubic", "hamming", "lanczos")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def only_resize(resample: str, height: int, width: int) -> PreprocessSpec:
    """A spec whose result is levels of 0..255."""
    return PreprocessSpec(ResizeSpec(resample, height=height, width=width), None, None, None, None)


def runner(spec: PreprocessSpec, input_size: tuple[int, int] | None = None, target: str = "any") -> Run:
    """`uint8 (batch, height, width, 3) -> float32 (batch, 3, h, w)` in ONNX Runtime."""
    import onnx_ir as ir
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = ir.to_proto(build_preprocessing(spec, input_size=input_size, target=target)).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(images: Pixels) -> Floats:
        (values,) = session.run(["pixel_values"], {"image": images})
        return values

    return run


def openvino_runner(spec: PreprocessSpec, input_size: tuple[int, int] | None = None, target: str = "any") -> Run:
    """The same in OpenVINO, in float32: left alone it computes in bfloat16 where the processor can."""
    import onnx_ir as ir

    from vitdeploy.backends.openvino.runner import shared_core

    data = ir.to_proto(build_preprocessing(spec, input_size=input_size, target=target)).SerializeToString()
    core = shared_core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = core.compile_model(core.read_model(io.BytesIO(data)), "CPU", config).create_infer_request()
    return lambda images: np.array(request.infer({0: images})[0])


@functools.lru_cache(maxsize=64)
def resizer(resample: str, height: int, width: int, target: str = "any") -> Run:
    """A runner of `only_resize` for images of any size, made once."""
    return runner(only_resize(resample, height, width), target=target)


def pillow_resize(pixels: Pixels, size: tuple[int, int], resample: str) -> Floats:
    """Pillow's result, float32 (3, height, width) of 0..255; an older Pillow makes its passes in the order of 13.0."""
    import PIL
    from PIL import Image

    image = Image.fromarray(pixels)
    if release(PIL.__version__) < (13,) and vertical_first((pixels.shape[0], pixels.shape[1]), size):
        image = image.resize((image.width, size[0]), PILLOW[resample])
    resized = image.resize((size[1], size[0]), PILLOW[resample])
    return np.asarray(resized).transpose(2, 0, 1).astype(np.float32)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    """Every value equally likely, every pixel for itself: what rounds most often close to a half."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@functools.lru_cache(maxsize=1)
def photographs() -> list[Pixels]:
    """The two photographs that scikit-learn brings, uint8 (427, 640, 3)."""
    from sklearn.datasets import load_sample_images

    return [np.asarray(image) for image in load_sample_images().images]


def photograph(height: int, width: int, seed: int = 0) -> Pixels:
    """A photograph brought to that size, flipped or not."""
    from PIL import Image

    image = photographs()[seed % 2]
    return np.asarray(Image.fromarray(image[:, :: 1 - 2 * (seed // 2 % 2)].copy()).resize((width, height), 3))


def assert_levels(ours: Floats, theirs: Floats, *, levels: float, share: float, level: npt.ArrayLike = 1.0) -> None:
    """Both (3, height, width): at most `levels` apart anywhere, at most `share` of the values apart at all.

    `level` is what one of 255 levels is worth, by channel; a thousandth of it is rounding of the normalisation.
    """
    assert ours.shape == theirs.shape
    apart = np.abs(ours - theirs) / np.reshape(np.asarray(level, np.float32), (-1, 1, 1))
    assert apart.max() <= levels + 1e-3, f"{apart.max():.4f} levels apart"
    assert (apart > 1e-3).mean() <= share, f"{(apart > 1e-3).mean():.2%} of the values differ"

"""Our own INT8 kernels against NumPy: the same arithmetic for models of many shapes, with any number of threads."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.backends.native.library import InstructionSet, instruction_sets, kernels_obstacle
from vitdeploy.backends.native.packing import Encoder
from vitdeploy.backends.native.plain_vit import Classifier, Factors, Layer, Norm, PlainVit, Product
from vitdeploy.core.errors import ModelError, RunnerClosedError

OBSTACLE = kernels_obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=": ".join(OBSTACLE or ()))


def made_up(
    width: int, heads: int, hidden: int, layers: int, grid: tuple[int, int], side: tuple[int, int], front: int
) -> PlainVit:
    """A model of random weights, whose activations use their 256 steps."""
    generator = np.random.default_rng(width + heads + hidden)

    def floats(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * generator.standard_normal(shape)).astype(np.float32)

    def product(inputs: int, outputs: int, reach: float, zero: int) -> Product:
        weight = generator.integers(-127, 128, (inputs, outputs), dtype=np.int8)
        scale = np.abs(floats(outputs)) + 0.5
        weight_scale = (scale / (73 * math.sqrt(inputs))).astype(np.float32)
        return Product(reach / 255, zero, weight, weight_scale, floats(outputs, scale=0.1))

    def norm() -> Norm:
        return Norm(1 + floats(width, scale=0.1), floats(width, scale=0.1), 1e-6)

    def layer() -> Layer:
        linears = [product(width, width, 8.0, 127) for _ in range(3)]
        linears = [replace(each, scale=linears[0].scale, zero=linears[0].zero) for each in linears]
        rest = (product(width, width, 6.0, 120), product(width, hidden, 8.0, 127), product(hidden, width, 4.0, 11))
        return Layer(norm(), norm(), *linears, *rest)

    inputs = 3 * math.prod(side)
    return PlainVit(
        heads=heads,
        image=(3, grid[0] * side[0], grid[1] * side[1]),
        kernel=floats(width, 3, *side, scale=1 / math.sqrt(inputs)),
        kernel_bias=floats(width, scale=0.1),
        positions=floats(front + math.prod(grid), width, scale=0.5),
        layers=tuple(layer() for _ in range(layers)),
        norm=None,
        classifier=Classifier(norm(), floats(7, width, scale=1 / math.sqrt(width)), floats(7, scale=0.1)),
        end="x",
        read=1,
    )


FACTORS = Factors(query=0.02, key=0.03, share=0.003, value=0.03, query_zero=128, share_zero=0)


def in_bytes(form: PlainVit, factors: Factors, every: int = 1) -> PlainVit:
    """A form of which each `every`th layer, from the first on, has attention's products in INT8."""
    layers = (replace(layer, factors=None if i % every else factors) for i, layer in enumerate(form.layers))
    return replace(form, layers=tuple(layers))


def reference(form: PlainVit, pixels: np.ndarray) -> np.ndarray:
    """What a form gives of images, in float64 with every product's input rounded as ONNX's QuantizeLinear does."""

    def norm(x: np.ndarray, constants: Norm) -> np.ndarray:
        off = x - x.mean(axis=-1, keepdims=True)
        unit = off / np.sqrt((off**2).mean(axis=-1, keepdims=True) + constants.epsilon)
        return unit * constants.weight + constants.bias

    def product(x: np.ndarray, p: Product) -> np.ndarray:
        if p.exact:
            return x @ p.weight.astype(np.float64) + p.bias
        steps = rounded(x, p.scale, p.zero, 0) / p.scale
        return (steps @ p.weight.astype(np.float64)) * (p.scale * p.weight_scale.astype(np.float64)) + p.bias

    def rounded(x: np.ndarray, scale: float, zero: int, least: int) -> np.ndarray:
        return scale * (np.clip(np.rint(x / scale) + zero, least, least + 255) - zero)

    def curve(x: np.ndarray, layer: Layer) -> np.ndarray:
        if layer.curve is None:
            return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        steep, cubic = layer.curve
        return x / (1 + np.exp(-x * (steep + cubic * x**2)))

    images, (_, _, down, across) = len(pixels), form.kernel.shape
    _, height, width = form.image
    # (images, channels, rows, y, columns, x) -> (images, rows * columns, channels * y * x)
    cut = pixels.astype(np.float64).reshape(images, 3, height // down, down, width // across, across)
    patches = cut.transpose(0, 2, 4, 1, 3, 5).reshape(images, -1, 3 * down * across)
    patches = patches @ form.kernel.reshape(len(form.kernel), -1).T + form.kernel_bias
    x = np.pad(patches, ((0, 0), (len(form.positions) - patches.shape[1], 0), (0, 0))) + form.positions
    x = x if form.norm is None else norm(x, form.norm)
    for layer in form.layers:
        normal = norm(x, layer.before)
        # (images, tokens, width) -> (images, heads, tokens, head)
        query, key, value = (
            product(normal, each).reshape(*x.shape[:2], form.heads, -1).swapaxes(1, 2)
            for each in (layer.query, layer.key, layer.value)
        )
        f = layer.factors
        if f is not None:
            query = rounded(query, f.query, f.query_zero, 0)
            key, value = rounded(key, f.key, 0, -128), rounded(value, f.value, 0, -128)
        scores = query @ key.swapaxes(2, 3)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares = shares / shares.sum(axis=-1, keepdims=True)
        if f is not None:
            shares = rounded(shares, f.share, f.share_zero, 0)
        context = shares @ value
        x = x + product(context.swapaxes(1, 2).reshape(x.shape), layer.output)
        normal = norm(x, layer.after)
        raised, gate = product(normal, layer.fc1), layer.gate
        raised = curve(raised, layer) if gate is None else raised * curve(product(normal, gate), layer)
        x = x + product(raised, layer.fc2)
    last = form.classifier
    return x[:, : form.read] if last is None else norm(x[:, 0], last.norm) @ last.weight.T + last.bias


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((64, 1, 128, 1, (2, 2), (4, 4), 1), id="one head of 64"),
        pytest.param((192, 3, 768, 2, (14, 14), (16, 16), 1), id="ViT-Ti at 224"),
        pytest.param((384, 6, 1536, 1, (8, 8), (14, 14), 1), id="a layer of ViT-S"),
        pytest.param((48, 4, 96, 3, (4, 4), (8, 8), 1), id="heads of 12, width of 48"),
        pytest.param((80, 2, 100, 2, (3, 5), (8, 6), 1), id="heads of 40, hidden of 100, a rectangle"),
        pytest.param((160, 2, 320, 2, (5, 3), (4, 4), 1), id="heads of 80, as in ViT-H"),
        pytest.param((176, 2, 352, 1, (4, 4), (4, 4), 1), id="heads of 88, as in ViT-g"),
        pytest.param((128, 2, 128, 2, (1, 1), (8, 8), 1), id="one patch"),
        pytest.param((64, 2, 64, 2, (4, 4), (4, 4), 5), id="registers in front"),
        pytest.param((16, 1, 16, 1, (5, 3), (4, 4), 2), id="the least: 17 tokens"),
    ],
)
def test_against_numpy(shape: Any, threads: int) -> None:
    """What may differ is which of two steps a value between them is rounded to: in a few values, by one step of 256."""
    form = made_up(*shape)
    pixels = np.random.default_rng(1).standard_normal((3, *form.image)).astype(np.float32)
    encoder = Encoder(form, threads)
    found = encoder.run(pixels)
    encoder.close()
    expected = reference(form, pixels)
    spread = expected.std()
    assert np.abs(found - expected).max() < 0.02 * spread
    first = form.layers[0]
    for wrong in (
        replace(form, positions=np.roll(form.positions, 1, axis=0)),
        replace(form, layers=(replace(first, fc1=replace(first.fc1, zero=0)), *form.layers[1:])),
        replace(form, layers=(replace(first, query=first.key, key=first.query), *form.layers[1:])),
    ):
        assert np.abs(reference(wrong, pixels) - expected).max() > 0.02 * spread


def test_products_in_float32_among_the_others() -> None:
    form = made_up(80, 2, 100, 4, (3, 5), (8, 6), 1)

    def exact(product: Product) -> Product:
        weight = (product.weight * product.weight_scale).astype(np.float32)
        return replace(product, weight=weight, scale=1.0, zero=0)

    names = (("query", "key", "value"), ("output", "fc2"), ("fc1",), ("query", "key", "value", "output", "fc1", "fc2"))
    layers = (
        replace(layer, **{name: exact(getattr(layer, name)) for name in chosen})
        for layer, chosen in zip(form.layers, names, strict=True)
    )
    mixed = replace(form, layers=tuple(layers))
    encoder = Encoder(mixed, 3)
    found, expected = encoder.run(noise(form, 3)), reference(mixed, noise(form, 3))
    encoder.close()
    assert np.abs(found - expected).max() < 0.02 * expected.std()
    assert np.abs(reference(form, noise(form, 3)) - expected).max() > 0.02 * expected.std()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((192, 3, 384, 2, (14, 14), (8, 8), 1), id="ViT-Ti at 224"),
        pytest.param((48, 4, 96, 3, (4, 4), (8, 8), 1), id="heads of 12, 17 tokens"),
        pytest.param((80, 2, 100, 2, (3, 5), (8, 6), 2), id="heads of 40, 17 tokens"),
        pytest.param((160, 2, 320, 2, (5, 3), (4, 4), 1), id="heads of 80, 16 tokens"),
        pytest.param((128, 2, 128, 2, (1, 1), (8, 8), 1), id="one patch"),
    ],
)
def test_attention_in_int8(shape: Any, threads: int) -> None:
    """In every second layer, with zero points that are none of the usual."""
    form = made_up(*shape)
    factors = replace(FACTORS, query_zero=120, share_zero=3)
    encoder = Encoder(in_bytes(form, factors, every=2), threads)
    found = encoder.run(noise(form, 3))
    alone = np.concatenate([encoder.run(noise(form, 3)[i : i + 1]) for i in range(3)])
    encoder.close()
    np.testing.assert_array_equal(found, alone)
    expected = reference(in_bytes(form, factors, every=2), noise(form, 3))
    assert np.abs(found - expected).max() < 0.02 * expected.std()
    for wrong in (
        in_bytes(form, replace(factors, query_zero=0), every=2),
        in_bytes(form, replace(factors, key=0.005), every=2),
        in_bytes(form, replace(factors, value=0.01), every=2),
    ):
        assert np.abs(reference(wrong, noise(form, 3)) - expected).max() > 0.02 * expected.std()


SILU, QUICK_GELU, GELU_BY_TANH = (1.0, 0.0), (1.702, 0.0), (1.5957691, 0.0713548)


def unlike(form: PlainVit, read: int, curve: tuple[float, float] | None, gated: bool) -> PlainVit:
    """A form with a LayerNorm in front of its layers, whose first tokens are read."""
    layers = tuple(
        # as if its weights were the other way round
        replace(layer, curve=curve, gate=replace(layer.fc1, weight=layer.fc1.weight[::-1]) if gated else None)
        for layer in form.layers
    )
    return replace(form, layers=layers, norm=form.layers[-1].after, classifier=None, read=read)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("front", "read", "curve", "gated"),
    [
        pytest.param(0, 15, GELU_BY_TANH, False, id="SigLIP: no other token, all are read"),
        pytest.param(1, 1, QUICK_GELU, False, id="CLIP: the class token"),
        pytest.param(5, 1, SILU, True, id="DINOv2: registers, a gate"),
        pytest.param(2, 2, None, False, id="DeiT: the first two"),
        pytest.param(1, 16, GELU_BY_TANH, True, id="GELU in the gate"),
    ],
)
def test_what_the_layers_make(
    front: int, read: int, curve: tuple[float, float] | None, gated: bool, threads: int
) -> None:
    form = unlike(made_up(80, 2, 100, 3, (3, 5), (8, 6), front), read, curve, gated)
    pixels = noise(form, 4)
    encoder = Encoder(form, threads)
    found = encoder.run(pixels)
    alone = np.concatenate([encoder.run(pixels[i : i + 1]) for i in range(4)])
    encoder.close()
    assert found.shape == (4, read, 80)
    np.testing.assert_array_equal(found, alone)
    expected = reference(form, pixels)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.01 * expected.std()
    for wrong in (
        replace(form, norm=None),
        unlike(form, read, SILU if curve != SILU else None, gated),
        unlike(form, read, curve, not gated),
    ):
        assert np.sqrt(np.mean((reference(wrong, pixels) - expected) ** 2)) > 0.02 * expected.std()


def runnable() -> list[InstructionSet]:
    return [isa for isa in instruction_sets() if isa.missing is None] if OBSTACLE is None else []


@pytest.mark.parametrize("width", [48, 50])
@pytest.mark.parametrize("isa", runnable(), ids=lambda isa: isa.name)
def test_every_instruction_set_gives_the_same_bits(isa: InstructionSet, width: int) -> None:
    """Products in INT8 and in float32, more rows than a tile and fewer, a width that is no whole vectors."""
    form = made_up(width, 2, 100, 3, (3, 5), (8, 6), 2)
    first, *rest = form.layers
    weight = (first.fc1.weight * first.fc1.weight_scale).astype(np.float32)
    first = replace(first, fc1=replace(first.fc1, weight=weight, scale=1.0, zero=0))
    mixed = in_bytes(replace(form, layers=(first, *rest)), FACTORS, every=2)
    for each in (mixed, unlike(form, 17, SILU, True), unlike(form, 1, GELU_BY_TANH, False)):
        assert_same_bits(each, isa)


def assert_same_bits(mixed: PlainVit, isa: InstructionSet) -> None:
    pixels, answers = noise(mixed, 5), []
    for each in (isa, runnable()[0]):
        encoder = Encoder(mixed, 2, each)
        assert encoder.instruction_set == each.name
        answers.append(encoder.run(pixels))
        encoder.close()
    np.testing.assert_array_equal(answers[0].view(np.uint32), answers[1].view(np.uint32))
    expected = reference(mixed, pixels)
    assert np.abs(answers[0] - expected).max() < 0.02 * expected.std()


def noise(form: PlainVit, count: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((count, *form.image)).astype(np.float32)


def test_threads_and_batches_change_no_bit() -> None:
    form = made_up(192, 3, 384, 2, (6, 6), (8, 8), 1)
    pixels = noise(form, 4)
    answers = []
    for threads in (1, 2, 3, 7):
        encoder = Encoder(form, threads)
        answers += [encoder.run(pixels), np.concatenate([encoder.run(pixels[i : i + 1]) for i in range(4)])]
        encoder.close()
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read in /proc")
def test_a_large_batch_goes_in_passes_of_bounded_memory() -> None:
    """23 images at 1.4 MB each, of which 5 fit 8 MB: five passes, with the bits of each image alone."""
    form = made_up(192, 3, 768, 1, (14, 14), (16, 16), 1)
    pixels = noise(form, 23)
    encoder = Encoder(form, 2)
    alone = {place: encoder.run(pixels[place : place + 1]) for place in (0, 3, 4, 8, 9, 13, 14, 22)}
    before = resident()
    found = encoder.run(pixels)
    after = resident()
    encoder.close()
    for place, logits in alone.items():
        np.testing.assert_array_equal(found[place : place + 1], logits)
    assert len(np.unique(found, axis=0)) == len(found)
    assert after - before < 16e6  # all 23 would take 33


def test_the_callers_denormals_stay() -> None:
    """The kernels count denormals as zeros; whoever called them does not."""
    encoder = Encoder(made_up(64, 1, 64, 1, (2, 2), (4, 4), 1), 2)
    encoder.run(noise(made_up(64, 1, 64, 1, (2, 2), (4, 4), 1), 1))
    encoder.close()
    assert np.float32(1e-38) * np.float32(0.01) > 0


def test_extreme_pixels_give_numbers() -> None:
    form = made_up(64, 1, 64, 2, (3, 3), (4, 4), 1)
    encoder = Encoder(form, 2)
    for value in (0.0, 1e-30, 1e6, -1e6):
        assert np.isfinite(encoder.run(np.full((1, *form.image), value, np.float32))).all()
    encoder.close()


def test_pixels_of_another_shape_are_refused() -> None:
    form = made_up(64, 1, 64, 1, (2, 2), (4, 4), 1)
    encoder = Encoder(form, 1)
    for pixels in (noise(form, 1)[:, :, :-1], noise(form, 1)[:, :2], noise(form, 1).astype(np.float64)):
        with pytest.raises(ModelError, match="the model takes float32"):
            encoder.run(pixels)
    encoder.close()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_closing_ends_the_threads_and_frees_the_memory() -> None:
    form = made_up(384, 6, 1536, 2, (8, 8), (8, 8), 1)
    pixels = noise(form, 1)
    threads = len(os.listdir("/proc/self/task"))

    for turn in range(60):
        encoder = Encoder(form, 4)
        assert len(os.listdir("/proc/self/task")) == threads + 3
        encoder.run(pixels)
        encoder.close()
        encoder.close()
        assert len(os.listdir("/proc/self/task")) == threads
        with pytest.raises(RunnerClosedError):
            encoder.run(pixels)
        if turn == 9:
            before = resident()
    assert resident() < before + 8e6  # the model takes 4 MB each time

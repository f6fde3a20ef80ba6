"""The graph against Pillow: sizes, filters, crops, and twins that must fail."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.tools.preprocessing import (
    CONTINUOUS,
    MEAN,
    PILLOW,
    STD,
    Run,
    assert_levels,
    noise,
    only_resize,
    openvino_runner,
    photograph,
    pillow_resize,
    resizer,
    runner,
)
from vitdeploy.compiler.preprocessing import build_preprocessing, graph, interleaved, planar, reference, weights
from vitdeploy.compiler.preprocessing.reference import center_crop, output_size, resize
from vitdeploy.core.errors import InputError, ModelError
from vitdeploy.core.specs import PreprocessSpec, ResizeSpec

# Sizes from 1 to 4096, small and large ones equally often; areas bounded so that a test stays a test.
EDGES = st.floats(0, 12).map(lambda power: min(4096, round(2**power)))
SIZES = st.tuples(EDGES, EDGES).filter(lambda size: size[0] * size[1] <= 2_000_000)
SMALL = st.tuples(st.integers(1, 90), st.integers(1, 90))
CROPS = st.tuples(st.integers(1, 60), st.integers(1, 60))
MADE = [(224, 224), (112, 112), (32, 32), (256, 192), (37, 61)]
OUTPUTS = st.sampled_from(MADE)
QUICK = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
FULL = settings(max_examples=5000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def check_any_size(size: tuple[int, int], made: tuple[int, int], seed: int, resample: str) -> None:
    """Bilinear: equal. The others: at most 1 level apart, and next to nowhere.

    A few of their weights are off by one in 22 bits, so that a sum at a half falls to the other side. Where an image
    has a few pixels only, such a sum is repeated all over the result, and no share is asked.
    """
    pixels = photograph(*size, seed) if seed % 2 else noise(*size, seed)
    theirs = pillow_resize(pixels, made, resample)
    ours = resizer(resample, *made)(pixels[np.newaxis])[0]
    for target in ("cpu", "tensorrt"):
        np.testing.assert_array_equal(resizer(resample, *made, target)(pixels[np.newaxis])[0], ours)
    if resample == "bilinear":
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert_levels(ours, theirs, levels=1, share=0.001 if min(size) >= 16 else 1.0)


@QUICK
@given(SIZES, OUTPUTS, st.integers(0, 1000), st.sampled_from(CONTINUOUS))
@example((1, 1), (224, 224), 0, "bicubic")
@example((1, 4096), (224, 224), 0, "lanczos")
@example((4096, 1), (224, 224), 0, "bilinear")
@example((300, 200), (32, 32), 1, "bicubic")
@example((2048, 100), (112, 112), 1, "bicubic")  # Pillow does the height first
def test_any_size_is_resized_as_pillow_does(
    size: tuple[int, int], made: tuple[int, int], seed: int, resample: str
) -> None:
    check_any_size(size, made, seed, resample)


def check_thousands(check: Callable[[tuple[int, int], tuple[int, int], int], None]) -> None:
    """`check(size, made, seed)` with an even and an odd seed, for more than 2,000 sizes, each once."""
    seen: set[tuple[int, int]] = set()

    @FULL
    @given(SIZES)
    @example((4096, 4096))
    @example((256, 480))  # to 224x224: some outputs have an input at their very centre
    def check_one(size: tuple[int, int]) -> None:
        if size in seen:  # Hypothesis draws every other size twice
            return
        made = MADE[sum(size) % len(MADE)] if size != (256, 480) else (224, 224)
        for seed in (2 * size[0], 2 * size[1] + 1):
            check(size, made, seed)
        seen.add(size)

    check_one()
    assert len(seen) >= 2000


@pytest.mark.full
@pytest.mark.parametrize("resample", CONTINUOUS)
def test_thousands_of_sizes_are_resized_as_pillow_does(resample: str) -> None:
    check_thousands(lambda size, made, seed: check_any_size(size, made, seed, resample))


@QUICK
@given(SMALL, SMALL, st.integers(0, 1000), st.sampled_from(sorted(PILLOW)))
def test_a_known_size_is_resized_bit_for_bit(
    size: tuple[int, int], made: tuple[int, int], seed: int, resample: str
) -> None:
    pixels = noise(*size, seed)
    for target in ("any", "tensorrt"):
        ours = runner(only_resize(resample, *made), size, target)(pixels[np.newaxis])[0]
        np.testing.assert_array_equal(ours, pillow_resize(pixels, made, resample))  # exact: all sums are integers


@pytest.mark.full
@pytest.mark.parametrize("resample", sorted(PILLOW))
def test_thousands_of_known_sizes_are_resized_bit_for_bit(resample: str) -> None:
    @functools.lru_cache(maxsize=2)
    def known(size: tuple[int, int], made: tuple[int, int], target: str) -> Run:
        return runner(only_resize(resample, *made), size, target)

    def check(size: tuple[int, int], made: tuple[int, int], seed: int) -> None:
        pixels = photograph(*size, seed) if seed % 2 else noise(*size, seed)
        theirs = pillow_resize(pixels, made, resample)
        for target in ("any", "cpu", "tensorrt"):
            np.testing.assert_array_equal(known(size, made, target)(pixels[np.newaxis])[0], theirs)

    check_thousands(check)


@settings(QUICK, max_examples=150)
@given(SMALL, SMALL, st.integers(0, 1000), st.sampled_from(sorted(PILLOW)))
@example((64, 640), (224, 224), 0, "nearest")  # sums of steps that end just below a whole number
@example((235, 235), (224, 224), 0, "box")  # edges of windows that end just beside a sample
@example((300, 90), (50, 80), 0, "bicubic")
def test_the_reference_is_pillow_bit_for_bit(
    size: tuple[int, int], made: tuple[int, int], seed: int, resample: str
) -> None:
    pixels = noise(*size, seed)
    theirs = pillow_resize(pixels, made, resample)
    np.testing.assert_array_equal(resize(pixels, made, resample).transpose(2, 0, 1), theirs)


@QUICK
@given(SIZES, OUTPUTS, st.integers(0, 1000), st.sampled_from(CONTINUOUS))
@example((300, 200), (32, 32), 1, "bicubic")
@example((2048, 100), (112, 112), 1, "bicubic")  # the height first
def test_the_layout_for_cpus_makes_the_same_bits(
    size: tuple[int, int], made: tuple[int, int], seed: int, resample: str
) -> None:
    images = np.stack([photograph(*size, seed), noise(*size, seed)])
    np.testing.assert_array_equal(resizer(resample, *made, "cpu")(images), resizer(resample, *made)(images))


@QUICK
@given(SMALL, SMALL, CROPS, st.integers(0, 1000), st.sampled_from(sorted(PILLOW)))
def test_the_layout_for_cpus_makes_the_same_bits_of_a_known_size(
    size: tuple[int, int], made: tuple[int, int], crop: tuple[int, int], seed: int, resample: str
) -> None:
    spec = PreprocessSpec(ResizeSpec(resample, height=made[0], width=made[1]), crop, 1 / 255, MEAN, STD)
    images = noise(*size, seed)[np.newaxis]
    np.testing.assert_array_equal(runner(spec, size, "cpu")(images), runner(spec, size)(images))


def test_hamming_is_one_at_its_centre() -> None:
    pixels = photograph(256, 480, 521)  # every seventh of its 224 columns is centred on an input
    theirs = pillow_resize(pixels, (224, 224), "hamming")
    np.testing.assert_array_equal(resize(pixels, (224, 224), "hamming").transpose(2, 0, 1), theirs)


@pytest.mark.parametrize("resample", CONTINUOUS)
def test_photographs_are_the_same_in_999_of_1000_values(resample: str) -> None:
    differing, values = 0, 0
    sizes = [(427, 640), (480, 640), (1080, 1920), (375, 500), (600, 800), (300, 451), (96, 128)]
    for seed, size in enumerate(sizes):
        pixels = photograph(*size, seed)
        theirs = pillow_resize(pixels, (224, 224), resample)
        ours = resizer(resample, 224, 224)(pixels[np.newaxis])[0]
        assert_levels(ours, theirs, levels=1, share=0.001)
        differing += int((ours != theirs).sum())
        values += ours.size
    assert differing <= values * 1e-3


def test_one_call_takes_several_images_and_one_graph_several_sizes() -> None:
    run = resizer("bicubic", 112, 112)
    for size in [(32, 32), (480, 300), (32, 32)]:
        images = np.stack([noise(*size, seed) for seed in range(3)])
        whole = run(images)
        assert whole.shape == (3, 3, 112, 112)
        for index in range(3):
            np.testing.assert_array_equal(whole[index], run(images[index : index + 1])[0])


class TestTwins:
    """Each of these mistakes must be seen by the comparison that the graph passes."""

    pixels = photograph(180, 260, 1)
    spec = PreprocessSpec(ResizeSpec("bicubic", height=112, width=112), None, 1 / 255, MEAN, STD)
    level = 1 / 255 / np.array(STD)
    expected = reference(spec, pixels)

    def compare(self, pixels: np.ndarray, spec: PreprocessSpec, input_size: tuple[int, int] | None = None) -> None:
        ours = runner(spec, input_size)(pixels[np.newaxis])[0]
        assert_levels(ours, self.expected, levels=1, share=0.001, level=self.level)

    def test_the_graph_passes(self) -> None:
        self.compare(self.pixels, self.spec)
        self.compare(self.pixels, self.spec, (180, 260))

    def test_swapped_channels_fail(self) -> None:
        with pytest.raises(AssertionError, match="levels apart"):
            self.compare(self.pixels[..., ::-1].copy(), self.spec)

    def test_a_mean_one_percent_off_fails(self) -> None:
        with pytest.raises(AssertionError, match="levels apart"):
            self.compare(self.pixels, dataclasses.replace(self.spec, mean=tuple(1.01 * m for m in MEAN)))

    def test_another_filter_fails(self) -> None:
        wrong = dataclasses.replace(self.spec, resize=ResizeSpec("bilinear", height=112, width=112))
        with pytest.raises(AssertionError, match="levels apart"):
            self.compare(self.pixels, wrong)

    def test_another_cubic_coefficient_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(x):  # a = -0.75, as in ONNX and OpenCV
            far = -0.75 * (((x - 5) * x + 8) * x - 4)
            return np.where(x < 1, (1.25 * x - 2.25) * x * x + 1, np.where(x < 2, far, 0))

        monkeypatch.setitem(weights.FILTERS, "bicubic", wrong)
        with pytest.raises(AssertionError, match="levels apart"):
            self.compare(self.pixels, self.spec)

    def test_no_antialias_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = weights._tabulated

        def wrong(tape, resample, distance, limit):  # the filter is stretched half as much as it should be
            return right(tape, resample, tape.Mul(distance, tape.scalar(2, np.float32)), limit)

        monkeypatch.setattr(weights, "_tabulated", wrong)
        with pytest.raises(AssertionError, match="levels apart"):
            self.compare(self.pixels, self.spec)

    def test_the_wrong_pass_first_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(graph, "vertical_first", lambda size, resized: size[0] - resized[0] > 0)
        with pytest.raises(AssertionError, match="levels apart"):
            self.compare(self.pixels, self.spec, (180, 260))

    def test_rounding_once_at_the_end_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(tape, high, low, clip):
            return tape.Mul(high, tape.scalar(1 / 2048, np.float32))

        monkeypatch.setattr(interleaved, "_levels", wrong)
        with pytest.raises(AssertionError, match="levels apart"):
            self.compare(self.pixels, self.spec)

    def test_halves_rounded_to_even_fail_in_the_layout_for_cpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = only_resize("bilinear", 112, 112)  # a fifth of these sums end in a half
        pixels = noise(224, 224)
        expected = pillow_resize(pixels, (112, 112), "bilinear")
        np.testing.assert_array_equal(runner(spec, target="cpu")(pixels[np.newaxis])[0], expected)
        monkeypatch.setattr(planar, "_HALVES_UP", 2048.0)
        with pytest.raises(AssertionError):
            np.testing.assert_array_equal(runner(spec, target="cpu")(pixels[np.newaxis])[0], expected)


@settings(QUICK, max_examples=60)
@given(SMALL, CROPS)
def test_the_crop_is_that_of_transformers(size: tuple[int, int], crop: tuple[int, int]) -> None:
    from transformers.image_transforms import center_crop as theirs

    pixels = noise(*size)
    expected = theirs(pixels, crop, data_format="channels_last", input_data_format="channels_last")
    check_crop(PreprocessSpec(None, crop, None, None, None), pixels, expected)


@settings(QUICK, max_examples=60)
@given(SMALL, CROPS)
@example((35, 33), (16, 16))
@example((9, 35), (20, 16))
def test_the_crop_is_that_of_torchvision(size: tuple[int, int], crop: tuple[int, int]) -> None:
    """In its own words: pad what is too small, less of it first, then cut at a half that Python rounds to even."""
    pixels = noise(*size)
    lacks = [max(wanted - length, 0) for length, wanted in zip(size, crop, strict=True)]
    padded = np.pad(pixels, [*((lack // 2, (lack + 1) // 2) for lack in lacks), (0, 0)])
    top, left = (round((length - wanted) / 2.0) for length, wanted in zip(padded.shape[:2], crop, strict=True))
    expected = padded[top : top + crop[0], left : left + crop[1]]
    check_crop(PreprocessSpec(None, crop, None, None, None, "even"), pixels, expected)


def check_crop(spec: PreprocessSpec, pixels: np.ndarray, expected: np.ndarray) -> None:
    assert spec.crop is not None
    size = (pixels.shape[0], pixels.shape[1])
    np.testing.assert_array_equal(center_crop(pixels, spec.crop, spec.crop_starts(size)), expected)
    for run in (runner(spec), runner(spec, size)):
        np.testing.assert_array_equal(run(pixels[np.newaxis])[0].transpose(1, 2, 0), expected)


@settings(QUICK, max_examples=40)
@given(SIZES, st.integers(1, 90), CROPS, st.sampled_from(CONTINUOUS))
@example((4096, 1), 32, (20, 20), "bicubic")
def test_shortest_edge_and_crop_are_those_of_the_reference(
    size: tuple[int, int], edge: int, crop: tuple[int, int], resample: str
) -> None:
    if max(size) / min(size) * edge > 20_000:
        return  # the reference makes the whole resized image, which would be gigantic
    spec = PreprocessSpec(ResizeSpec(resample, shortest_edge=edge), crop, None, None, None)
    pixels = noise(*size)
    ours, theirs = runner(spec)(pixels[np.newaxis])[0], reference(spec, pixels)
    # see check_any_size; long edges make integers that float32 does not hold
    assert_levels(ours, theirs, levels=1, share=0.01 if min(size) >= 16 else 1.0)


@settings(QUICK, max_examples=300)
@given(st.tuples(st.integers(1, 4096), st.integers(1, 4096)), st.integers(1, 1500), st.integers(0, 1500))
@example((480, 640), 800, 533)
def test_sizes_are_those_of_transformers(size: tuple[int, int], shortest: int, more: int) -> None:
    from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio

    image = np.broadcast_to(np.uint8(0), (*size, 3))
    theirs = get_resize_output_image_size(image, shortest, default_to_square=False, input_data_format="channels_last")
    assert output_size(ResizeSpec("bilinear", shortest_edge=shortest), size) == theirs
    both = ResizeSpec("bilinear", shortest_edge=shortest, longest_edge=shortest + more)
    assert output_size(both, size) == get_size_with_aspect_ratio(size, shortest, shortest + more)


@pytest.mark.parametrize(
    "spec",
    [
        only_resize("bilinear", 112, 112),
        only_resize("bicubic", 112, 96),
        only_resize("lanczos", 64, 64),
        only_resize("hamming", 64, 64),
        PreprocessSpec(ResizeSpec("bicubic", shortest_edge=64), (56, 56), 1 / 255, MEAN, STD),
        PreprocessSpec(None, (48, 48), 1 / 255, MEAN, STD),
        PreprocessSpec(None, None, 1 / 255, None, None),
    ],
    ids=lambda spec: f"{spec.resize.resample if spec.resize else 'no resize'}-{'crop' if spec.crop else 'whole'}",
)
def test_openvino_makes_the_same(spec: PreprocessSpec) -> None:
    level = np.ones(3) if spec.std is None else 1 / 255 / np.array(spec.std)
    theirs = runner(spec)
    ours = [openvino_runner(spec, target=target) for target in ("any", "cpu", "tensorrt")]
    for size in [(32, 32), (200, 70), (90, 331)]:
        pixels = photograph(*size)[np.newaxis]
        # both add in float32, in another order: a sum at a half may fall to the other side
        for other in ours:
            assert_levels(other(pixels)[0], theirs(pixels)[0], levels=1, share=0.001, level=level)


@pytest.mark.parametrize("target", ["any", "cpu", "tensorrt"])
@pytest.mark.parametrize("resample", sorted(PILLOW))
def test_openvino_resizes_a_known_size_bit_for_bit(resample: str, target: str) -> None:
    for size in [(90, 331), (300, 40)]:
        run = openvino_runner(only_resize(resample, 64, 56), size, target)
        for pixels in (photograph(*size), noise(*size)):
            np.testing.assert_array_equal(run(pixels[np.newaxis])[0], pillow_resize(pixels, (64, 56), resample))


@QUICK
@given(SIZES, OUTPUTS, st.integers(0, 1000), st.sampled_from(CONTINUOUS))
@example((300, 200), (32, 32), 1, "bicubic")
@example((2048, 100), (112, 112), 1, "bicubic")  # the height first
@example((1, 700), (40, 97), 1, "bilinear")  # fewer rows than columns are made
@example((700, 1), (40, 97), 1, "bilinear")
def test_the_layout_for_engines_makes_the_same_bits(
    size: tuple[int, int], made: tuple[int, int], seed: int, resample: str
) -> None:
    images = np.stack([photograph(*size, seed), noise(*size, seed)])
    np.testing.assert_array_equal(resizer(resample, *made, "tensorrt")(images), resizer(resample, *made)(images))


@pytest.mark.parametrize("size", [(300, 200), (90, 331), (640, 100), (101, 101)])
@pytest.mark.parametrize("resample", CONTINUOUS)
def test_a_turned_image_gives_the_bits_that_a_choice_of_branches_gives(size: tuple[int, int], resample: str) -> None:
    """The graph for CPUs still chooses by an If."""
    spec = PreprocessSpec(ResizeSpec(resample, height=48, width=61), (40, 56), 1 / 255, MEAN, STD)
    images = np.stack([photograph(*size, 2), noise(*size, 2)])
    chosen = runner(spec, target="cpu")(images)
    for target in ("any", "tensorrt"):
        np.testing.assert_array_equal(runner(spec, target=target)(images), chosen)


@pytest.mark.parametrize("target", ["any", "tensorrt"])
def test_only_a_cast_sees_uint8_no_node_has_branches_and_every_name_has_the_prefix(target: str) -> None:
    import onnx
    import onnx_ir as ir

    for size in (None, (48, 64)):
        spec = PreprocessSpec(ResizeSpec("bicubic", shortest_edge=32), (32, 32), 1 / 255, MEAN, STD)
        model = build_preprocessing(spec, input_size=size, target=target)
        assert not [node.name for node in model.graph.all_nodes() if node.op_type in ("If", "Loop", "Scan")]
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        (image,) = model.graph.inputs
        assert {node.op_type for node, _ in image.uses()} <= {"Cast", "Shape"}
        assert [str(dim) for dim in image.shape] == ["batch", *(map(str, size) if size else ("height", "width")), "3"]
        for node in model.graph.all_nodes():
            assert node.domain == "" and node.op_type != "Resize"
            assert (node.name or "").startswith("preprocess/")
        assert model.graph.outputs[0].name == "pixel_values" and list(model.graph.outputs[0].shape)[1:] == [3, 32, 32]


@pytest.mark.parametrize(
    ("resize_spec", "setting"),
    [
        (ResizeSpec("nearest", height=8, width=8), "resample='nearest'"),
        (ResizeSpec("box", height=8, width=8), "resample='box'"),
        (ResizeSpec("bicubic", shortest_edge=8, longest_edge=16), "longest_edge=16"),
        (ResizeSpec("bicubic", shortest_edge=8), "shortest_edge"),
    ],
)
def test_what_needs_a_known_size_is_refused_without_one(resize_spec: ResizeSpec, setting: str) -> None:
    spec = PreprocessSpec(resize_spec, None, None, None, None)
    with pytest.raises(ModelError, match=setting) as caught:
        build_preprocessing(spec)
    assert caught.value.hint
    pixels = noise(30, 50)
    np.testing.assert_array_equal(runner(spec, (30, 50))(pixels[np.newaxis])[0], reference(spec, pixels))


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_the_reference_refuses_other_arrays(pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match="uint8"):
        reference(only_resize("bilinear", 8, 8), pixels)

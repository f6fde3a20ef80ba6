"""Our own INT8 kernels against others: an earlier build of them, or another instruction set. Bits, and ratio of times.

    python benchmarks/int8_kernels.py BUNDLE EARLIER.so [--isa NAME] [--threads 2] [--batch 1] [--images 64]
        [--rounds 40] [--clock wall]
    python benchmarks/int8_kernels.py BUNDLE avx512vl --isa avx512vnni

EARLIER.so is `vitdeploy/backends/native/_kernels*.so` of another commit, of which the instruction set of the same name
is taken, or the only one where the library is older than the choice. Pixel values are random, one image a call or a
batch, both in turn in one process with a rest of 30 ms in front of each. With --clock cpu and --threads 1 the
processor's time is taken: on a busy machine it still tells builds apart, where the clock on the wall does not.
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from peers import CLOCKS, interleaved

from vitdeploy.backends.native import structures
from vitdeploy.backends.native.library import InstructionSet, chosen_isa, instruction_sets
from vitdeploy.backends.native.packing import Encoder
from vitdeploy.backends.native.plain_vit import PlainVit, read_plain_vit
from vitdeploy.bundle.onnx_messages import read_model
from vitdeploy.evaluation.statistics import speedup


def named(name: str) -> InstructionSet:
    return next(each for each in instruction_sets() if each.name == name)


def without(structure: Any, name: str) -> Any:
    """The class of a structure as it was before it had that field, at any depth."""
    fields = [
        (each, without(kind, name) if issubclass(kind, ctypes.Structure) else kind)
        for each, kind in structure._fields_
        if each != name
    ]
    return type(structure.__name__, (ctypes.Structure,), {"_fields_": fields})


def put(source: Any, target: Any) -> Any:
    for name, kind in target._fields_:
        value = getattr(source, name)
        setattr(target, name, put(value, kind()) if issubclass(kind, ctypes.Structure) else value)
    return target


class Earlier(Encoder):
    """The kernels of another library, of the same tile."""

    def __init__(self, form: PlainVit, threads: int, path: Path, isa: str) -> None:
        super().__init__(form, threads, named(isa))
        self._library.encoder_close(self._handle)
        library = ctypes.CDLL(str(path))
        library.encoder_open.restype = ctypes.c_void_p
        library.encoder_run.argtypes, library.encoder_run.restype = self._library.encoder_run.argtypes, None
        library.encoder_close.argtypes, library.encoder_close.restype = (ctypes.c_void_p,), None
        first, packed = [], self._packed
        if hasattr(library, "encoder_isa"):
            library.encoder_isa.restype = ctypes.POINTER(ctypes.c_char_p)
            rows = [row for number in range(9) if (row := library.encoder_isa(number))]
            first = [row for row in rows if row[0].decode() == isa][:1]
        self._layers = packed.layers
        kind = structures.Layer
        if not hasattr(library, "encoder_layer_size"):  # a Linear had no sums
            kind = without(without(kind, "factors"), "sums")
        elif library.encoder_layer_size() != ctypes.sizeof(kind):  # attention was in float32
            kind = without(kind, "factors")
        if kind is not structures.Layer:
            self._layers = (kind * len(packed.layers))(*(put(layer, kind()) for layer in packed.layers))
        parts = (packed.norm, packed.patches, packed.classifier)
        self._library = library
        self._handle = library.encoder_open(
            *first, ctypes.byref(packed.shape), self._layers, *map(ctypes.byref, parts), threads
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("other", help="EARLIER.so, or the name of an instruction set")
    parser.add_argument("--isa", default=chosen_isa().name)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    form = read_plain_vit(read_model((arguments.bundle / "model.int8-cpu.onnx").read_bytes()))
    now = Encoder(form, arguments.threads, named(arguments.isa))
    if arguments.other.endswith(".so"):
        other: Encoder = Earlier(form, arguments.threads, Path(arguments.other), arguments.isa)
    else:
        other = Encoder(form, arguments.threads, named(arguments.other))
    pixels = np.random.default_rng(0).standard_normal((arguments.images, *form.image)).astype(np.float32)
    same = int((now.run(pixels).view(np.uint32) == other.run(pixels).view(np.uint32)).all(axis=1).sum())
    print(f"{arguments.isa}: {same} of {len(pixels)} images have the same bits")
    times = interleaved(
        {arguments.isa: now.run, arguments.other: other.run},
        pixels[: arguments.batch],
        arguments.rounds,
        CLOCKS[arguments.clock],
    )
    for name, values in times.items():
        print(f"{name:24}{np.median(values):8.2f} ms a call")
    ratio, (low, high) = speedup(times[arguments.other], times[arguments.isa])
    print(f"{arguments.isa}: {ratio:.3f} [{low:.3f}, {high:.3f}] times as fast as {arguments.other}")


if __name__ == "__main__":
    main()

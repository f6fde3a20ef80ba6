"""TensorRT engines from the ONNX graphs of a bundle: TensorRT 10.3 and later, 11.x, and TensorRT-RTX.

    options = EngineOptions(flavour="tensorrt-rtx").for_manifest(bundle.manifest)
    info = build_engine(bundle.path / "model.fp16.onnx", Path("fp16.engine"), options)

An engine is code: build it, or take it from a bundle whose hashes match, and load no other.
"""

from __future__ import annotations

from vitdeploy.backends.tensorrt.options import EngineOptions, Profile
from vitdeploy.compiler.engine.builder import EngineInfo, build_engine, check_options
from vitdeploy.compiler.engine.target import choose_target, for_gpus, why_not

__all__ = [
    "EngineInfo",
    "EngineOptions",
    "Profile",
    "build_engine",
    "check_options",
    "choose_target",
    "for_gpus",
    "why_not",
]

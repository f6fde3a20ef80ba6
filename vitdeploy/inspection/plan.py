"""What a TensorRT-RTX engine will run, read from the program that its file holds as text; no GPU is needed.

The programs in a plan start with `header {`, end at a byte 0 and list tensors with their types and regions, then one
step a line: `function` is a fused kernel, `fully_connected` and `corrltn` (a convolution) a product, `runtime_fusion` a
product whose fusions the device compiles (its steps are a program of their own). Each names the graph's nodes in it.
What the file lacks can't be told: the tactics that the device picks, and times. Read from plans of TensorRT-RTX 1.7.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Kernel", "PlanFacts", "PlanProduct", "read_plan"]

_PROGRAM = re.compile(rb"header \{\n  version = \d+\n[^\0]*")
_STEP = re.compile(r'^  (function|fully_connected|corrltn|runtime_fusion)=\{ name=("[^"]+"|\S+)(.*)$', re.M)
_NODE = re.compile(r"\[ONNX Layer: ([^\]|]+?)(?: \|[^\]]*)?\]")
_TENSOR = re.compile(r'^  (?:sub_)?tensor=\{.* name="([^"]+)" .*type=(\w+) \}', re.M)
_HOST_COPY = re.compile(r'^  copy=\{ name="(copy_d2h[^"]*)"', re.M)
_JUMP = re.compile(r'^  cjmp=\{ name="([^"]+)"', re.M)
_TYPES = {"half": "fp16", "float": "fp32", "bfloat16": "bf16", "bf16": "bf16", "int8": "int8", "fp8_e4m3": "fp8"}
_FACTORS = re.compile(r' input=\{"([^"]+)" "([^"]+)"')
_ATTENTION = "_gemm_mha"
_BLOCK = 4096
_PRINTABLE = re.compile(rb"[\x09\x0a\x0d\x20-\x7e]*")


@dataclass(frozen=True)
class Kernel:
    """A step of the program: `kind` is function, fully_connected, corrltn or runtime_fusion."""

    kind: str
    name: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class PlanProduct:
    """A matrix product or convolution; `precision` is that of its two factors, "int8", or "fp16 x int8" where they
    differ. `nodes` are the products of the graph that are done by it."""

    nodes: tuple[str, ...]
    precision: str


@dataclass(frozen=True)
class PlanFacts:
    """`host_copies` and `jumps` are steps that wait for the GPU in the middle of a call; with them `capturable`, what
    TensorRT says of CUDA graphs, is false. `attention` are the nodes of each fused attention kernel. `text_bytes`
    counts the blocks of 4 KiB that are text, most of it the source of kernels."""

    kernels: tuple[Kernel, ...]
    products: tuple[PlanProduct, ...]
    attention: tuple[tuple[str, ...], ...]
    host_copies: tuple[str, ...]
    jumps: tuple[str, ...]
    capturable: bool
    text_bytes: int

    @property
    def by_precision(self) -> dict[str, int]:
        """How many products of the graph are computed in each precision, those of each profile for themselves."""
        return dict(Counter(product.precision for product in self.products for _ in product.nodes))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "by_precision": self.by_precision}


def read_plan(content: bytes | Path) -> PlanFacts | None:
    """The facts of an engine's file; None where it holds no program as text, as engines of TensorRT for servers."""
    data = content.read_bytes() if isinstance(content, Path) else content
    programs = [match.group().decode("latin-1") for match in _PROGRAM.finditer(data)]
    if not programs:
        return None
    kernels, products = [], []
    types: dict[str, str] = {}
    for program in programs:
        types |= dict(_TENSOR.findall(program))
    for program in programs:
        main = program[program.find("\nmain {") :]
        for kind, name, rest in _STEP.findall(main):
            name, nodes = name.strip('"'), tuple(dict.fromkeys(_NODE.findall(rest)))
            kernels.append(Kernel(kind, name, nodes))
            if kind in ("fully_connected", "corrltn"):
                products.append(_product(name, rest, types))
    whole = "\n".join(programs)
    blocks = (data[start : start + _BLOCK] for start in range(0, len(data), _BLOCK))
    return PlanFacts(
        kernels=tuple(kernels),
        products=tuple(products),
        attention=tuple(kernel.nodes for kernel in kernels if kernel.name.startswith(_ATTENTION)),
        host_copies=tuple(_HOST_COPY.findall(whole)),
        jumps=tuple(_JUMP.findall(whole)),
        capturable="stream_capturable=0" not in whole,
        text_bytes=sum(len(block) for block in blocks if _PRINTABLE.fullmatch(block)),
    )


def _product(name: str, rest: str, types: dict[str, str]) -> PlanProduct:
    """A product is called after its nodes, joined by "+", which may have `_U` and a number or a profile behind them."""
    nodes = tuple(re.sub(r"(_U\d+)?( \[profile \d+\])?$", "", node) for node in name.split("+"))
    factors = _FACTORS.search(rest)
    found = [types.get(factor, "?") for factor in factors.groups()] if factors else ["?"]
    return PlanProduct(nodes, " x ".join(dict.fromkeys(_TYPES.get(kind, kind) for kind in found)))

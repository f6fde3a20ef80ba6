"""An ONNX file of any exporter, made ready for the rules: constants are constants, values have types and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from vitdeploy.bundle.graphs import named_files
from vitdeploy.compiler.lint.inference import infer
from vitdeploy.core.errors import ModelError
from vitdeploy.core.onnx_files import read_message
from vitdeploy.core.text import first_line

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["read_graph"]

_AGAIN = "export the model again"


def read_graph(path: Path) -> ir.Model:
    """Read a file; its weights stay where they lie until somebody looks at their numbers.

    Raises:
        ModelError: it is missing, damaged, no ONNX file or too large for one, or the file of its weights is missing,
            cut short, or not in its folder.
        DependencyError: the package onnx is not installed.
    """
    message = read_message(path)
    import onnx_ir as ir

    _check_weights(path)
    try:
        model = ir.from_proto(message)
        ir.external_data.set_base_dir(model.graph, path.parent)
        for node in model.graph.all_nodes():
            _check_node(node, model.opset_imports)
        _prepare(model)
    except ModelError:
        raise
    except Exception as error:  # onnx_ir's many ways to say that a graph contradicts itself
        raise ModelError(f"{path} is no sound ONNX graph: {first_line(error)}", hint=_AGAIN) from error
    _check_extents(model, path)
    return model


def _check_weights(path: Path) -> None:
    """Each file of weights that the graph names is there, and in the graph's folder."""
    try:
        names = named_files(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read as ONNX: {error}", hint=_AGAIN) from error
    for name in sorted(names):
        pure = PurePosixPath(name)
        if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name:
            raise ModelError(
                f"{path} keeps weights in {name!r}, outside its folder",
                hint="save it again with its weights beside it (onnx.save_model with save_as_external_data)",
            )
        if not (path.parent / name).is_file():
            raise ModelError(
                f"{path} keeps weights in {name!r}, which is not beside it", hint=f"copy {name} to {path.parent} too"
            )


def _check_node(node: ir.Node, opsets: Mapping[str, int]) -> None:
    """Names are text, and a node of ONNX's own has as many inputs and outputs, and such attributes, as its operator."""
    import onnx

    names = (node.name, node.op_type, node.domain, *(value.name for value in node.outputs))
    if not all(name is None or isinstance(name, str) for name in names):
        raise ValueError("a name in it is not UTF-8")
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return
    inputs, outputs = len(node.inputs), len(node.outputs)
    if not (schema.min_input <= inputs <= schema.max_input and schema.min_output <= outputs <= schema.max_output):
        raise ValueError(f"the {node.op_type} {node.name} has {inputs} inputs and {outputs} outputs")
    for name, attribute in node.attributes.items():
        known = schema.attributes.get(name)
        if known is not None and int(known.type) != int(attribute.type):
            raise ValueError(f"{name} of the {node.op_type} {node.name} is of type {attribute.type.name}")


def _check_extents(model: ir.Model, path: Path) -> None:
    import onnx_ir as ir

    sizes: dict[str, int] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            name = str(tensor.location)
            if name not in sizes:
                sizes[name] = (path.parent / name).stat().st_size
            if (tensor.offset or 0) + tensor.nbytes > sizes[name]:
                raise ModelError(
                    f"{path}: the weight {value.name} lies beyond the end of {name}",
                    hint=f"{name} is cut short, or of another model: copy it again",
                )


def _prepare(model: ir.Model) -> None:
    """Functions are put in their callers' place, Constant nodes become constants, and shapes are inferred for one image
    a call, where the batch is free: what the exporter noted may be missing or wrong."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    if model.functions:
        common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape) > 1 and not isinstance(value.shape[0], int):
            value.shape = ir.Shape([1, *list(value.shape)[1:]])
    infer(model)

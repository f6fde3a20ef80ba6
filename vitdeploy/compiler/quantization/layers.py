"""All that may be quantised in a graph: found once a build, then pointed at in each copy of the graph that is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.compiler.quantization.attention import AttentionProducts, find_attention
from vitdeploy.compiler.quantization.groups import QuantGroup, Source, find_groups
from vitdeploy.compiler.quantization.recipe import Placement

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["QuantLayers"]


@dataclass(frozen=True)
class QuantLayers:
    """Groups of products with constant weights and the products of attention, by name, in graph order.

    `nodes` are all of the graph, as they were when the layers were found.
    """

    groups: Mapping[str, QuantGroup]
    attention: Mapping[str, AttentionProducts]
    nodes: tuple[ir.Node, ...]

    @classmethod
    def find(cls, model: ir.Model, placement: Placement) -> QuantLayers:
        """Those of a graph; of groups what `placement` names."""
        groups = {group.name: group for group in find_groups(model, placement)}
        return cls(groups, {products.name: products for products in find_attention(model)}, tuple(model.graph))

    @classmethod
    def find_in_file(cls, path: Path, placement: Placement) -> QuantLayers:
        """Those of the graph in a file, less its weights, so that they can be kept: use `on` to look at them."""
        import onnx_ir as ir

        model = ir.load(path)
        found = cls.find(model, placement)
        for value in model.graph.initializers.values():
            value.const_value = None
        return found

    def on(self, model: ir.Model) -> QuantLayers:
        """The same layers of another copy of the graph, which no pass has changed yet."""
        nodes = tuple(model.graph)
        twin = dict(zip(self.nodes, nodes, strict=True))

        def source(found: Source | None) -> Source | None:
            if found is None:
                return None
            (scale, index), shift = found.scale, found.shift
            return Source(twin[found.node], (twin[scale], index), None if shift is None else (twin[shift[0]], shift[1]))

        def group(found: QuantGroup) -> QuantGroup:
            products = tuple(twin[node] for node in found.products)
            activation = products[0].inputs[0]
            assert activation is not None
            return replace(found, activation=activation, products=products, source=source(found.source))

        def products(found: AttentionProducts) -> AttentionProducts:
            return AttentionProducts(
                twin[found.scores],
                twin[found.softmax],
                twin[found.mixing],
                source(found.query_source),
                source(found.key_source),
                source(found.value_source),
                None if found.output is None else twin[found.output],
            )

        return QuantLayers(
            {name: group(found) for name, found in self.groups.items()},
            {name: products(found) for name, found in self.attention.items()},
            nodes,
        )

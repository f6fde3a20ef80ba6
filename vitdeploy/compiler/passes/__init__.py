"""Passes over an ONNX graph, one idea a module.

A pass is a function that takes an `onnx_ir.Model`, changes it in place and returns a `PassResult`: how many places it
changed, or why it left the graph as it was.
"""

from vitdeploy.compiler.passes.result import PassResult

__all__ = ["PassResult"]

"""A backend in one file of somebody else's: importing it is all that it takes to have it everywhere."""

from __future__ import annotations

from vitdeploy.backends.registry import BackendSpec, Need, Offer, RunnerSpec, register

TRIANGLE = ((-1.0, 1.0), (1.0, 1.0), (0.0, -1.0))


def _open(spec: RunnerSpec):  # type: ignore[no-untyped-def]
    from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner

    class ToyRunner(OnnxRuntimeRunner):
        backend = "toy"

    return ToyRunner(spec.path, threads=1)


register(
    BackendSpec(
        name="toy",
        title="Toy Engine",
        takes="onnx",
        offers=(Offer("cpu", ("any",), precisions=lambda: ("fp32", "fp16")),),
        needs=(Need("onnxruntime", "onnxruntime"),),
        extra="cpu",
        open=_open,
        listed=35,
        mark=TRIANGLE,
    )
)

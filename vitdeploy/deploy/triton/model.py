"""What runs inside Triton's python backend: encoded images -> labels, scores and indices of the best classes, and of
several labels those that the image has; or their embeddings.

Triton gives it the requests of a dynamic batch. Their images are decoded here, go through the model in groups of one
size, and an image that can't be used is an error of its own request alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.backends.base import RunnerBase
from vitdeploy.bundle import Bundle
from vitdeploy.bundle.records import MANIFEST
from vitdeploy.core.errors import BundleError, ImageError, ModelError, VitdeployError
from vitdeploy.core.specs import Prediction, ShapeRange
from vitdeploy.core.storage import sha256
from vitdeploy.data.images import most_pixels
from vitdeploy.models.tasks import EMBEDDING, TASKS
from vitdeploy.runtime import Classifier, load
from vitdeploy.runtime.selection import Candidate
from vitdeploy.runtime.serving import Serving
from vitdeploy.runtime.verification import verifier_for

__all__ = ["PixelsRunner", "TritonPythonModel"]

_Answers = Sequence[Prediction | npt.NDArray[np.float32] | ImageError]


class TritonPythonModel:
    """The class that Triton's python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle beside this version's model.py; Triton says that the model is ready when this returns.

        Raises:
            BundleError: the bundle is not the one that the configuration was written for, or is damaged.
        """
        parameters = {
            name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()
        }
        folder = Path(args["model_repository"], args["model_version"], "bundle")
        if sha256(folder / MANIFEST) != parameters["manifest_sha256"]:
            raise BundleError(
                f"{folder} is not the bundle that config.pbtxt was written for",
                hint="write the repository again: vitdeploy deploy triton BUNDLE --output REPOSITORY --overwrite",
            )
        bundle = Bundle.open(folder)
        bundle.verify()
        self._ask: Callable[[list[bytes]], _Answers]
        self._tensors: Callable[[Any, list[Any]], list[Any]]
        if TASKS[bundle.manifest.task].kind is EMBEDDING:
            self._ask = lambda images: self._classifier.embed(images, errors="return")
            self._tensors = _vectors
        else:
            top_k = int(parameters["top_k"])
            self._ask = lambda images: self._classifier.predict(images, top_k, errors="return")
            self._tensors = _classes
        self._verifier: Callable[[], str | None] | None = None
        has_selftest = bundle.find(kind="selftest") is not None
        if parameters["via"] == "load":
            device = "cuda" if parameters["device"] == "gpu" else "cpu"
            self._classifier = load(bundle, precision=parameters["precision"], device=device, verify=has_selftest)
            return
        artifact = next(file for file in bundle.manifest.artifacts if file.path == parameters["pixels_file"])
        runner = PixelsRunner(bundle, parameters["pixels_model"], json.loads(parameters["pixels_shape"])).__enter__()
        backend = "tensorrt" if artifact.kind == "engine" else "onnxruntime"  # Triton's own of that name
        candidate = Candidate(backend, artifact.precision or "", parameters["device"], artifact)
        self._classifier = Classifier(bundle, runner, candidate, (), Serving(max_pixels=most_pixels()))
        if has_selftest:  # other models can't be asked while this one is being loaded
            self._verifier = partial(verifier_for(bundle, True), candidate, runner)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Triton's requests -> its responses, in order."""
        import triton_python_backend_utils as pb_utils

        # (images of the request, 1) -> [bytes]; a model without a batch dimension gives (1,)
        asked = [list(pb_utils.get_input_tensor_by_name(r, "IMAGE").as_numpy().reshape(-1)) for r in requests]
        try:
            self._test()
            answers = self._ask([image for images in asked for image in images])
        except VitdeployError as error:
            refusal = pb_utils.TritonError(error.message, pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=refusal) for _ in requests]
        responses, start = [], 0
        for images in asked:
            responses.append(self._response(pb_utils, answers[start : start + len(images)]))
            start += len(images)
        return responses

    def finalize(self) -> None:
        """Release what `initialize` opened."""
        self._classifier.close()

    def _response(self, pb_utils: Any, answers: _Answers) -> Any:
        for index, answer in enumerate(answers):
            if isinstance(answer, ImageError):
                which = f"image {index} of the request: " if len(answers) > 1 else ""
                error = pb_utils.TritonError(which + answer.message, pb_utils.TritonError.INVALID_ARG)
                return pb_utils.InferenceResponse(error=error)
        return pb_utils.InferenceResponse(self._tensors(pb_utils, list(answers)))

    def _test(self) -> None:
        """The bundle's self-test through the model of pixels, before the first answer."""
        if self._verifier is not None:
            failure = self._verifier()
            if failure is not None:
                raise ModelError(failure, hint="vitdeploy verify BUNDLE shows every form of it")
            self._verifier = None


def _classes(pb_utils: Any, answers: list[Prediction]) -> list[Any]:
    tops = [answer.top_k for answer in answers]
    labels = [[score.label.encode() for score in top] for top in tops]
    scores = [[score.value if score.score is None else score.score for score in top] for top in tops]
    indices = [[score.index for score in top] for top in tops]
    tensors = [
        pb_utils.Tensor("LABEL", np.array(labels, object)),
        pb_utils.Tensor("SCORE", np.array(scores, np.float32)),
        pb_utils.Tensor("INDEX", np.array(indices, np.int32)),
    ]
    found = [answer.to_json().get("labels") for answer in answers]
    if None not in found:  # each image has another number of them
        tensors.append(pb_utils.Tensor("LABELS", np.array([[json.dumps(some).encode()] for some in found], object)))
    return tensors


def _vectors(pb_utils: Any, answers: list[npt.NDArray[np.float32]]) -> list[Any]:
    return [pb_utils.Tensor("EMBEDDING", np.stack(answers))]


class PixelsRunner(RunnerBase):
    """The model of raw pixels in the same server.

    Args:
        bundle: says what goes in and comes out.
        model: its name.
        shape: (least, best, most) of each dimension of its images; most 0: any.
    """

    backend = "triton"

    def __init__(self, bundle: Bundle, model: str, shape: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self._model, self._shape, self._manifest = model, shape, bundle.manifest

    def _open(self, stack: ExitStack) -> None:
        image = self._manifest.inputs[0]
        self._inputs, self._outputs = self._manifest.inputs, self._manifest.outputs
        self._ranges = {image.name: tuple(ShapeRange(low, best, high or 65535) for low, best, high in self._shape)}

    def infer_checked(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Ask the server, for all outputs."""
        import triton_python_backend_utils as pb_utils

        names = [spec.name for spec in self._outputs]
        request = pb_utils.InferenceRequest(
            model_name=self._model,
            requested_output_names=names,
            inputs=[pb_utils.Tensor(name, array) for name, array in feeds.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise ModelError(
                f"{self._model} answers: {response.error().message()}", hint="the server's log says more of that model"
            )
        return {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in names}

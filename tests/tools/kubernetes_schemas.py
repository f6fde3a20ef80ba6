"""What does not fit an object of Kubernetes, by the schemas of its core and by the models of KServe and KEDA.

The packages come with `make test-kubernetes`: kubernetes-validate brings the core's schemas, kserve and
cloudcoil-models-keda bring models that are generated of the custom resources.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["core_faults", "keda_faults", "kserve_faults"]

ROOT = Path(__file__).parents[2]
_PLAIN = {"str": str, "int": int, "float": (int, float), "bool": bool}
_KINDS = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}


def core_faults(item: dict[str, Any]) -> list[str]:
    """Of an object of Kubernetes itself, in the newest version that is known; a field that there is not is a fault."""
    validate = import_module("kubernetes_validate")
    try:
        validate.validate(item, validate.latest_version(), strict=True)
    except (validate.ValidationError, validate.InvalidSchemaError) as error:
        return [str(error)]
    return []


def keda_faults(item: dict[str, Any]) -> list[str]:
    """Of a ScaledObject."""
    models = import_module("cloudcoil.models.keda.v1alpha1")
    try:
        models.ScaledObject.model_validate(item)
    except ValueError as error:
        return [str(error)]
    return []


def kserve_faults(item: dict[str, Any]) -> list[str]:
    """Of a ServingRuntime or InferenceService: fields that there are not, are missing, or are of another type.

    In a process of its own: kserve and tritonclient both register the messages of the same protocol.
    """
    done = subprocess.run(
        [sys.executable, "-m", __name__], input=json.dumps(item), capture_output=True, text=True, check=True, cwd=ROOT
    )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def _model(name: str) -> Any:
    for package in ("kserve.models", "kubernetes.client.models"):
        found = getattr(import_module(package), name, None)
        if found is not None:
            return found
    return None


def _walk(value: Any, kind: str, place: str) -> Iterator[str]:
    if inner := re.fullmatch(r"list\[(.*)\]", kind):
        if not isinstance(value, list):
            yield f"{place} is no list"
            return
        for index, each in enumerate(value):
            yield from _walk(each, inner[1], f"{place}[{index}]")
    elif inner := re.fullmatch(r"dict\(str, (.*)\)", kind):
        if not isinstance(value, dict):
            yield f"{place} is no mapping"
            return
        for key, each in value.items():
            yield from _walk(each, inner[1], f"{place}.{key}")
    elif kind in _PLAIN:
        if not isinstance(value, _PLAIN[kind]) or (kind != "bool" and isinstance(value, bool)):
            yield f"{place} is {value!r}, not {kind}"
    elif (model := _model(kind)) is not None and hasattr(model, "attribute_map"):
        yield from _fields(value, model, place)


def _fields(value: Any, model: Any, place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{place} is no object"
        return
    names = {json: name for name, json in model.attribute_map.items()}
    for key, each in value.items():
        if key not in names:
            yield f"{place} has no field {key}"
        else:
            yield from _walk(each, model.openapi_types[names[key]], f"{place}.{key}")
    try:  # the constructor refuses None where a field is required
        model(**{names[key]: each for key, each in value.items() if key in names})
    except ValueError as error:
        yield f"{place}: {error}"


if __name__ == "__main__":
    whole = json.load(sys.stdin)
    print(json.dumps(list(_walk(whole, _KINDS[whole["kind"]], whole["kind"]))))

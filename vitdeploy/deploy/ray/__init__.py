"""A bundle on the machines of a Ray cluster.

    ds.map_batches(Predictor, fn_constructor_kwargs={"bundle": ship("bundles/vit")}, ...)    in a pipeline of one's own
    predict_files("bundles/vit", ["s3://bucket/photos"], "s3://bucket/results")              from images to rows

Importing this imports no Ray.
"""

from __future__ import annotations

from vitdeploy.deploy.ray.predictor import Predictor
from vitdeploy.deploy.ray.run import RayResult, check_output, embed_files, predict_files
from vitdeploy.deploy.ray.settings import RaySettings
from vitdeploy.deploy.ray.shipping import Shipped, ship

__all__ = [
    "Predictor",
    "RayResult",
    "RaySettings",
    "Shipped",
    "check_output",
    "embed_files",
    "predict_files",
    "ship",
]

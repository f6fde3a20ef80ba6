"""Classify folders and tables of images into one file of results, which a killed run goes on with.

from vitdeploy import load
from vitdeploy.bulk import predict_files

with load("bundles/vit") as classifier:
    print(predict_files(classifier, ["photos"], "results.csv"))
"""

from __future__ import annotations

from vitdeploy.bulk.run import BulkResult, check_output, predict_files

__all__ = ["BulkResult", "check_output", "predict_files"]

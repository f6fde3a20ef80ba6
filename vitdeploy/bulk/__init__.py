"""Classify or embed folders and tables of images into one file of results, which a killed run goes on with.

import vitdeploy

with vitdeploy.load("bundles/vit") as classifier:
    print(vitdeploy.predict_files(classifier, ["photos"], "results.csv"))
"""

from __future__ import annotations

from vitdeploy.bulk.run import BulkResult, check_output, embed_files, predict_files
from vitdeploy.bulk.settings import BulkSettings

__all__ = ["BulkResult", "BulkSettings", "check_output", "embed_files", "predict_files"]

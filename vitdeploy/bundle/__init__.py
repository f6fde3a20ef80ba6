"""The bundle: one folder with everything a device needs."""

from vitdeploy.bundle.editing import BundleEditor
from vitdeploy.bundle.opening import Bundle
from vitdeploy.bundle.records import CALIBRATIONS, MANIFEST, SCHEMA_VERSION, Artifact, Manifest

__all__ = ["CALIBRATIONS", "MANIFEST", "SCHEMA_VERSION", "Artifact", "Bundle", "BundleEditor", "Manifest"]

"""A name, Hub id or local path to labelled images.

    train = load_dataset("cifar10", "train")
    image, label = train.image(0), train.labels[train.label_ids[0]]

Class folders and `digits` need no package beyond NumPy and Pillow (and scikit-learn for the digits themselves);
parquet files and Hub ids need `datasets`.
"""

from __future__ import annotations

from vitdeploy.data.check import BadImage, check_images, find_bad_images, without_images
from vitdeploy.data.dataset import ImageDataset, ImageSource
from vitdeploy.data.load import KNOWN_DATASETS, load_dataset
from vitdeploy.data.sampling import stratified_sample, stratified_split

__all__ = [
    "KNOWN_DATASETS",
    "BadImage",
    "ImageDataset",
    "ImageSource",
    "check_images",
    "find_bad_images",
    "load_dataset",
    "stratified_sample",
    "stratified_split",
    "without_images",
]

"""Classify images with a bundle: python examples/classify.py bundles/vit photos/*.jpg"""

import sys

from vitdeploy import VitdeployError, load
from vitdeploy.core.text import visible  # labels may come from strangers

if len(sys.argv) < 3:
    sys.exit("usage: python examples/classify.py BUNDLE IMAGE...")
with load(sys.argv[1]) as classifier:  # opened once, used for every image
    answers = classifier.predict(sys.argv[2:], errors="return")
for image, answer in zip(sys.argv[2:], answers, strict=True):
    failed = isinstance(answer, VitdeployError)
    print(visible(f"{image}: {answer}" if failed else f"{image}\t{answer.label}\t{answer.score:.3f}"))
sys.exit(any(isinstance(answer, VitdeployError) for answer in answers))

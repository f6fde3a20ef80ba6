"""Classify images with a bundle: python examples/classify.py bundles/vit photos/*.jpg"""

import sys

from vitdeploy import VitdeployError, load
from vitdeploy.core.text import visible  # labels may come from strangers

if len(sys.argv) < 3:
    sys.exit("usage: python examples/classify.py BUNDLE IMAGE...")
try:
    with load(sys.argv[1]) as classifier:  # opened once, used for every image
        answers = classifier.predict(sys.argv[2:], errors="return")
except VitdeployError as error:  # no bundle, or one that gives vectors and no classes
    sys.exit(visible(f"{error.message}\n{error.hint}"))
for image, answer in zip(sys.argv[2:], answers, strict=True):
    failed = isinstance(answer, VitdeployError)
    best = () if failed else answer.top_k[:1] if answer.labels is None else answer.labels  # several labels: all it has
    found = [f"\t{score.label}\t{score.value if score.score is None else score.score:.3f}" for score in best]
    print(visible(f"{image}: {answer}" if failed else image + "".join(found)))
sys.exit(any(isinstance(answer, VitdeployError) for answer in answers))

"""Classify images in an application: one bundle, opened once, used for every image.

    python examples/classify.py bundles/vit photos/*.jpg

Needs `pip install 'vitdeploy[cpu]'`, or the extra of another backend; no PyTorch.
"""

from __future__ import annotations

import sys

from vitdeploy import VitdeployError, load


def main(bundle: str, *images: str) -> int:
    """Print the best class of each image; 1 if some image could not be used."""
    failed = False
    with load(bundle) as classifier:
        print(f"{classifier.precision} on {classifier.backend}", file=sys.stderr)
        for image, answer in zip(images, classifier.predict(list(images), errors="return"), strict=True):
            if isinstance(answer, VitdeployError):
                print(f"{image}: {answer}", file=sys.stderr)
                failed = True
            else:
                print(f"{image}\t{answer.label}\t{answer.score:.3f}")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python examples/classify.py BUNDLE IMAGE...")
    sys.exit(main(*sys.argv[1:]))

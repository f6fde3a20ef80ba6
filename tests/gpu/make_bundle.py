"""Write the bundle that the tests on a GPU run, with every form, for a device that has no PyTorch to make it with.

python -m tests.gpu.make_bundle tiny-bundle
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.tools.tiny import write_bundle, write_checkpoint, write_images


def main(path: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = write_checkpoint(Path(scratch) / "checkpoint")
        write_bundle(path, checkpoint, write_images(Path(scratch) / "images"), ("fp16", "bf16", "int8"))
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""What reaches a classifier's runner."""

from __future__ import annotations

from typing import Any

import pytest

from vitdeploy import Classifier

__all__ = ["sizes_of_batches"]


def sizes_of_batches(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that reach the runner from here on."""
    sizes: list[int] = []
    infer = classifier._runner.infer_checked

    def counted(feeds: Any) -> Any:
        sizes.append(len(feeds["image"]))
        return infer(feeds)

    monkeypatch.setattr(classifier._runner, "infer_checked", counted)
    return sizes

"""What an embedding keeps, against plain loops over the same definitions."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.evaluation.accuracy import Answers
from vitdeploy.evaluation.statistics import paired_difference
from vitdeploy.evaluation.vectors import nearest, summarise_vectors
from vitdeploy.models.tasks import unit

COUNT, WIDTH, K = 120, 16, 5


def answers(vectors: np.ndarray) -> Answers:
    return Answers(vectors.astype(np.float32), np.ones(len(vectors), np.bool_))


@pytest.fixture(scope="module")
def made() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The baseline's vectors in clusters of their classes, a form's, and the classes."""
    generator = np.random.default_rng(2)
    classes = generator.integers(0, 6, COUNT)
    base = generator.normal(size=(6, WIDTH))[classes] + 0.9 * generator.normal(size=(COUNT, WIDTH))
    return base, base + 0.4 * generator.normal(size=base.shape), classes


def neighbours(query: np.ndarray, gallery: np.ndarray, place: int) -> list[int]:
    """By the definition: sort all others by cosine."""
    cosine = gallery @ query / np.linalg.norm(gallery, axis=1) / np.linalg.norm(query)
    return [other for other in np.argsort(-cosine, kind="stable") if other != place][:K]


def test_neighbours_are_those_of_a_sort(made: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    base, form, _ = made
    found = nearest(unit(form), unit(base), K)
    assert found.tolist() == [neighbours(form[place], base, place) for place in range(COUNT)]
    whole = nearest(unit(form), unit(form), COUNT - 1)
    assert all(sorted([*row, place]) == list(range(COUNT)) for place, row in enumerate(whole.tolist()))


def test_equal_vectors_are_taken_in_their_order() -> None:
    same = unit(np.ones((6, 3)))
    assert nearest(same, same, 2).tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]


def test_the_numbers_are_those_of_their_definitions(made: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    base, form, classes = made
    found = summarise_vectors(answers(form), classes, K, answers(base))
    assert found is not None and (found.k, found.count) == (K, COUNT)
    places = range(COUNT)
    of = {
        name: [neighbours(q[place], g[place - place :], place) for place in places]
        for name, q, g in (("ff", form, form), ("bb", base, base), ("fb", form, base), ("bf", base, form))
    }

    def share(name: str) -> float:
        return float(np.mean([len({*of[name][p]} & {*of["bb"][p]}) / K for p in places]))

    cosine = [float(f @ b / np.linalg.norm(f) / np.linalg.norm(b)) for f, b in zip(form, base, strict=True)]
    wanted = {
        "cosine": np.mean(cosine),
        "cosine_p1": sorted(cosine)[1],
        "neighbour": np.mean([of["ff"][p][0] == of["bb"][p][0] for p in places]),
        "recall": share("ff"),
        "queries": share("fb"),
        "index": share("bf"),
    }
    for name, value in wanted.items():
        kept = getattr(found, name)
        assert kept.value == pytest.approx(value, abs=1e-6), name
        assert kept.ci95[0] <= kept.value <= kept.ci95[1] and kept.ci95[0] < kept.ci95[1], name
    assert len({round(value, 6) for value in wanted.values()}) == len(wanted), "each is another number"

    def vote(name: str, place: int) -> int:
        given = [int(classes[other]) for other in of[name][place]]
        return max(given, key=lambda c: (given.count(c), -given.index(c)))

    right = {name: [vote(name, p) == classes[p] for p in places] for name in ("ff", "bb")}
    lost = sum(b and not f for f, b in zip(right["ff"], right["bb"], strict=True))
    won = sum(f and not b for f, b in zip(right["ff"], right["bb"], strict=True))
    assert found.knn is not None and found.knn.top1 == pytest.approx(np.mean(right["ff"]))
    assert (found.knn.delta, found.knn.delta_ci95) == paired_difference(lost, won, COUNT) and lost + won > 0
    assert found.delta == found.knn.delta and found.knn.drop_bound is not None


def test_the_same_vectors_lose_nothing_whatever_their_length(made: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    base, _, classes = made
    longer = base * np.linspace(0.5, 20, COUNT)[:, np.newaxis]
    found = summarise_vectors(answers(longer), classes, K, answers(base))
    assert found is not None and found.knn is not None and found.knn.delta == 0
    for name in ("cosine", "cosine_p1", "neighbour", "recall", "queries", "index"):
        assert getattr(found, name).value == pytest.approx(1, abs=1e-6)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 200 samples of queries whose agreement is 0.8 by chance, about 95 % of the intervals hold 0.8."""
    generator, held = np.random.default_rng(4), 0
    from vitdeploy.evaluation.vectors import _Bootstrap

    draw = _Bootstrap(300)
    for _ in range(200):
        low, high = draw.mean(generator.random(300) < 0.8).ci95
        held += low <= 0.8 <= high
    assert 178 <= held <= 199  # 95 % of 200 and four deviations of a binomial


def test_what_was_not_seen_or_has_no_classes(made: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    base, form, classes = made
    half = Answers(form.astype(np.float32), np.arange(COUNT) < 50)
    found = summarise_vectors(half, None, 99, answers(base))
    assert found is not None and (found.count, found.k, found.knn) == (50, 49, None)
    alone = summarise_vectors(answers(base), classes, K)
    assert alone is not None and alone.cosine is None and alone.knn is not None and alone.knn.delta is None
    assert summarise_vectors(Answers(half.logits, np.arange(COUNT) < 1), classes, K) is None

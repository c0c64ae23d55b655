"""The differential count: intervals that cover, and a correction that undoes the prior."""

import numpy as np
import pytest

from hub_model.inference.counts import corrected_prevalence, differential_count, wilson_interval

RNG = np.random.default_rng(0)
LABELS = ("A", "B", "C")


def simulated(mix: np.ndarray, cells: int, spread: float, rng: np.random.Generator) -> np.ndarray:
    """Posteriors under a flat prior of cells from three overlapping normal classes in the given mix."""
    centres = np.array([-1.0, 0.0, 1.0])
    classes = rng.choice(3, cells, p=mix)
    values = rng.normal(centres[classes], spread)
    likelihood = np.exp(-0.5 * ((values[:, None] - centres) / spread) ** 2)
    return likelihood / likelihood.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [(0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (10, 10, (0.7225, 1.0)), (0, 0, (0.0, 1.0))],
)
def test_wilsons_interval_agrees_with_the_published_table(
    successes: int, trials: int, interval: tuple
) -> None:
    assert wilson_interval(successes, trials) == pytest.approx(interval, abs=1e-4)


def test_the_correction_finds_the_true_mix_where_the_plain_count_leans_to_the_prior() -> None:
    mix = np.array([0.9, 0.08, 0.02])
    probabilities = simulated(mix, 20_000, 0.7, np.random.default_rng(1))
    plain = np.bincount(probabilities.argmax(axis=1), minlength=3) / len(probabilities)
    corrected = corrected_prevalence(probabilities, np.full(3, 1 / 3))
    assert np.abs(plain - mix).sum() > 0.25
    assert np.abs(corrected - mix).sum() < 0.03


def test_corrected_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    mix, hits = np.array([0.6, 0.3, 0.1]), []
    for seed in range(60):
        probabilities = simulated(mix, 200, 0.45, np.random.default_rng(seed))
        counts = differential_count(LABELS, probabilities, resamples=100, seed=seed)
        hits += [
            c.corrected_interval[0] <= share <= c.corrected_interval[1]
            for c, share in zip(counts, mix, strict=True)
        ]
    assert 0.88 <= np.mean(hits) <= 1.0


def test_shares_add_up_and_no_cells_give_no_count() -> None:
    counts = differential_count(LABELS, RNG.dirichlet(np.ones(3), 50), prior=np.array([5, 3, 2]))
    assert sum(c.cells for c in counts) == 50
    assert sum(c.share for c in counts) == pytest.approx(1)
    assert sum(c.corrected for c in counts) == pytest.approx(1, abs=1e-4)
    assert all(c.corrected_interval[0] <= c.corrected <= c.corrected_interval[1] for c in counts)
    assert differential_count(LABELS, np.zeros((0, 3))) == []

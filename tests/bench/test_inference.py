"""The arithmetic of the inference comparison: rooflines, multiples of them, and decisions that agree."""

import numpy as np
import pytest

from bench.inference import agreement, multiple, roofline_ms


def test_the_roofline_counts_two_operations_per_multiply_add() -> None:
    assert roofline_ms(multiply_adds=500_000_000, gflops=100) == pytest.approx(10)


def test_a_multiple_of_the_roofline_is_taken_within_rounds() -> None:
    assert multiple([20, 60, 30], [10, 40, 10]) == "2.00 × roofline (1.50–3.00)"


def test_decisions_agree_if_the_most_likely_class_is_the_same() -> None:
    expected = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.0, 1.0]])
    assert agreement(probabilities, expected) == "2 of 3 decisions as timm's"

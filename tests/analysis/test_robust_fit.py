"""Slow runs tilt a least-squares line; the outlier-proof one stays, and a line that misses its points says so."""

from __future__ import annotations

import numpy as np
import pytest

from vlmbench.analysis.curve_shape import design, missed_medians, point_table, pulled_to_medians, robust_fit
from vlmbench.analysis.regression import least_squares


def tilted() -> tuple[np.ndarray, np.ndarray]:
    """Half a millisecond a token, 1 % of noise, and three runs in thirty at the longest point five times as slow."""
    random = np.random.default_rng(0)
    x = np.tile(np.array([100.0, 200, 300, 400, 500, 600]), 30)
    y = (20 + 0.5 * x) * random.normal(1, 0.01, x.size)
    slow = np.flatnonzero(x == 600)[[3, 14, 25]]
    y[slow] *= 5
    return x, y


def test_outliers_are_pulled_in_and_none_is_dropped() -> None:
    x, y = tilted()
    pulled = pulled_to_medians(y, x)
    assert pulled.shape == y.shape
    assert pulled.max() < 1.1 * 320
    assert (pulled == y).mean() > 0.95


def test_the_outlier_proof_slope_stays_where_slow_runs_tilt_the_other() -> None:
    x, y = tilted()
    plain = least_squares(design(x, "linear"), y, x).estimate([0, 1])
    robust = robust_fit(x, y, x).estimate([0, 1])
    assert plain.value > 0.6
    assert robust.value == pytest.approx(0.5, abs=0.01)
    assert robust.low < 0.5 < robust.high


def test_a_line_that_misses_most_medians_says_why() -> None:
    x, y = tilted()
    points = point_table(x, y)
    fit = least_squares(design(x, "linear"), y, x)
    missed = missed_medians(x, y, points, design(points["x"], "linear") @ fit.coefficients)
    assert missed.most
    assert missed.words().startswith(f"lies {missed.outside()}, up to ")
    assert missed.outside() == f"outside {missed.missed} of 6 medians' intervals"
    good = missed_medians(x, y, points, 20 + 0.5 * points["x"].to_numpy())
    assert not good.most
    assert good.words() == ""


def test_a_curve_of_the_wrong_form_is_told_from_slow_runs() -> None:
    random = np.random.default_rng(1)
    x = np.tile(np.array([100.0, 200, 300, 400, 500, 600]), 30)
    y = (x / 100) ** 2 * random.normal(1, 0.01, x.size)
    points = point_table(x, y)
    fit = least_squares(design(x, "linear"), y, x)
    missed = missed_medians(x, y, points, design(points["x"], "linear") @ fit.coefficients)
    assert "do not lie on a curve of this form" in missed.words()

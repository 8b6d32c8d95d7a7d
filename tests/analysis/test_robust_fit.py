"""Slow runs tilt a least-squares line; the outlier-proof one stays, and a line that misses its points says so."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from vlmbench.analysis.curve_shape import (
    Missed,
    design,
    fit_forms,
    missed_medians,
    point_table,
    pulled_to_medians,
    robust_fit,
)
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
    missed = missed_medians(x, y, points, design(points["x"], "linear") @ fit.coefficients, "linear")
    assert missed.most
    assert missed.words().startswith(f"lies {missed.outside()}, up to ")
    assert missed.outside() == f"outside {missed.missed} of 6 medians' intervals"
    good = missed_medians(x, y, points, 20 + 0.5 * points["x"].to_numpy(), "linear")
    assert not good.most
    assert good.words() == ""


def test_a_curve_of_the_wrong_form_is_told_from_slow_runs() -> None:
    random = np.random.default_rng(1)
    x = np.tile(np.array([100.0, 200, 300, 400, 500, 600]), 30)
    y = (x / 100) ** 2 * random.normal(1, 0.01, x.size)
    points = point_table(x, y)
    fit = least_squares(design(x, "linear"), y, x)
    missed = missed_medians(x, y, points, design(points["x"], "linear") @ fit.coefficients, "linear")
    assert "do not lie on a curve of this form" in missed.words()


COUNTS = np.array([100.0, 200, 300, 400, 500, 600])
TRUTHS = {
    "linear": 20 + 0.5 * COUNTS,
    "quadratic": 20 + 0.5 * COUNTS + 0.004 * COUNTS**2,
    "kink": 20 + 0.5 * COUNTS + 1.5 * np.clip(COUNTS - 340, 0, None),
    "falling kink": 620 - 0.2 * COUNTS - 0.5 * np.clip(COUNTS - 340, 0, None),
    "steps": 20 + 50 * np.array([1.0, 3, 3, 5, 5, 7]),
    "zigzag": 20 + 0.5 * COUNTS * np.array([1, 1.3, 1, 1.3, 1, 1.3]),
}


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("shape", ["linear", "quadratic", "kink"])
def test_points_are_said_to_be_off_a_form_where_no_curve_of_it_passes_through_them(truth: str, shape: str) -> None:
    """Whatever curve was fitted: this one passes below all."""
    random = np.random.default_rng(2)
    x = np.tile(COUNTS, 20)
    y = np.tile(TRUTHS[truth], 20) * random.normal(1, 0.003, x.size)
    points = point_table(x, y)
    missed = missed_medians(x, y, points, 0.9 * points["median"].to_numpy(), shape)
    assert (missed.missed, missed.points) == (6, 6)
    lies = shape in truth or truth == "linear"
    end = "whether the points lie on a curve of this form cannot be told"
    assert missed.words().endswith(end if lies else "the points do not lie on a curve of this form")


def test_one_median_alone_is_no_finding() -> None:
    """Of runs that resemble each other most medians have no interval, and one may be all there is."""
    alone = Missed(points=1, missed=1, above=0, furthest=0.03, lifted=0.0)
    assert not alone.most
    assert alone.words() == ""


def test_points_on_a_curve_are_seldom_said_to_be_off_it() -> None:
    """Runs that depend on each other, some of them slow: of these curves, described by their own form, 1 in 9 was said to."""
    random, described, said = np.random.default_rng(3), 0, 0
    counts = np.array([64.0, 256, 512, 1024, 1536])
    for _ in range(300):
        x = np.concatenate([random.permutation(counts) for _ in range(20)])
        body = lfilter([1.0], [1.0, -0.8], random.standard_normal(300))[200:] * 0.6
        slow = np.where(random.random(100) < 0.03, random.uniform(1.2, 5, 100), 1.0)
        y = (20 + 0.02 * x + 0.16 * x**2 / counts[-1]) * np.exp(0.01 * body) * slow
        points = point_table(x, y)
        fits, knot, shape = fit_forms(x, y, x, points)
        if shape == "quadratic":
            described += 1
            curve = design(points["x"], shape, knot) @ fits[shape].coefficients
            said += "do not lie" in missed_medians(x, y, points, curve, shape).words()
    assert described > 100
    assert said <= 0.05 * described

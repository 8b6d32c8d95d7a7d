"""How many requests would do for a percentile, and how long they take: planted worths, simulated series."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.signal import lfilter

from vlmbench.analysis.dependence import dependence
from vlmbench.analysis.longer_run import LongerRun, lasted_s, longer_run
from vlmbench.analysis.quantiles import quantile


def test_how_many_requests_would_do_follows_from_what_they_are_worth() -> None:
    dependent = {"n": 900, "n_needed": 368, "shortfall": "too_few_independent", "effective_n": 121.7}
    assert longer_run(dependent, 37.0, 720.0) == LongerRun(requests=5_500, lasts_s=4_400.0), "2 x 900 x 368 / 121.7"
    assert longer_run(dependent, 37.0, None) == LongerRun(requests=5_500, lasts_s=None)
    assert longer_run(dependent | {"shortfall": "too_few_runs"}, 37.0, 720.0) is None, "the count itself says it"
    assert longer_run(dependent, 34.9, 720.0) is None, "too little to go by, whatever P99 makes of it"
    assert longer_run(dependent | {"effective_n": 34.9}, 37.0, 720.0) is None
    assert longer_run(dependent | {"effective_n": 35.0}, 35.0, 720.0) is not None
    assert longer_run(dependent, None, 720.0) is None
    assert longer_run({"n": 9, "value": 4.0}, 9.0, 720.0) is None


def test_how_long_runs_took_is_told_without_the_time_between_sessions() -> None:
    assert lasted_s([0, 0, 1, 1], [100.0, 160.0, 9e4, 9e4 + 30]) == 90.0
    assert lasted_s([0, 0], [100.0, np.nan]) == 0.0
    assert lasted_s([0], [np.nan]) is None
    assert lasted_s([], []) is None


@pytest.mark.parametrize(
    ("n", "q", "factor", "told_of"),
    [(250, 0.9, 0.9, 0), (400, 0.99, 0.9, 0), (150, 0.95, 0.6, 10), (400, 0.99, 0.7, 120), (900, 0.99, 0.9, 100)],
)
def test_as_many_runs_as_are_said_to_do_do(n: int, q: float, factor: float, told_of: int) -> None:
    """For nine in ten series that depend on each other alike; of few runs, those that look less so are told nothing."""
    noise = np.random.default_rng(5)

    def series(length: int) -> Any:
        found = lfilter([1.0], [1.0, -factor], noise.standard_normal(length + 100))[100:]
        return np.exp(0.2 * found * np.sqrt(1 - factor**2))

    said = []
    for _ in range(150):
        values = series(n)
        told = quantile(values, q)
        if told.shortfall is not None:
            entry = {"n": told.n, "n_needed": told.n_needed, "effective_n": told.effective_n}
            found = longer_run(entry | {"shortfall": told.shortfall.key}, dependence(values).effective_n, None)
            said.append(found and found.requests)
    given = [quantile(series(runs), q).value is not None for runs in said if runs]
    assert told_of <= len(given) <= (150 if told_of else 7), "of 150"
    assert not told_of or np.mean(given) >= 0.9, given

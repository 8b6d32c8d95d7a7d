"""How well medians are known, in words."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vlmbench.analysis.precision import precision_summary

NOISE = np.random.default_rng(3).normal(0, 1, 200)


def words(**points: np.ndarray) -> str:
    frames = [
        pd.DataFrame({"point_id": name, "status": "ok", "mode": "instrumented", "T_total": times, "session": 0})
        for name, times in points.items()
    ]
    return str(precision_summary(pd.concat(frames, ignore_index=True))["words"])


@pytest.mark.parametrize("runs", [4, 200])
def test_a_median_of_0_has_no_shares_however_many_runs_there_are(runs: int) -> None:
    nothing = np.zeros(runs)
    assert words(a=nothing) == ("How well the median is known cannot be told: it is 0 at 1 point, and 0 has no shares.")
    assert words(a=nothing, b=NOISE[:3] + 50) == (
        "How well the median is known cannot be told: too few independent runs at 1 point; it is 0 at 1 point, and 0 "
        "has no shares."
    )
    said = words(a=nothing, b=NOISE + 50, c=NOISE[:3] + 50)
    assert said.startswith("The median is known to ±")
    assert said.endswith(
        "; 1 point with too few independent runs to tell; 1 point with a median of 0, which has no shares."
    )

"""The one sentence on the tail, as the terminal and every place of the page have it."""

from __future__ import annotations

from typing import Any

import pytest

from vlmbench.analysis.estimate import Shortfall
from vlmbench.report.narrative.latency import _how_long
from vlmbench.report.narrative.pieces import plain
from vlmbench.report.narrative.tail import lacks, lacks_short, needs, shortage, tail_sentence
from vlmbench.report.table_cells import _dependence
from vlmbench.text import worth

LEAD = "P99 of generate() is 3.00× (2.50–3.50×) its median; "
REPEATED = "one identical request, repeated 60 times, has a tail too: its P95 is 1.500× (1.200–1.800×) its median, "
REPEATED += "that of the workload 3.00×"


def summary(beyond_low: float | None, reference_runs: int = 60) -> dict[str, Any]:
    row = {"quantile": "p95", "workload": 3.0, "beyond": 2.0 if beyond_low else None, "beyond_low": beyond_low}
    row |= {"beyond_high": 2.5, "reference": 1.5, "reference_low": 1.2, "reference_high": 1.8}
    ratio = {"quantile": "p99", "workload": 3.0, "workload_low": 2.5, "workload_high": 3.5}
    tail = {"metric": "T_total", "ratios_to_median": [row]}
    return {"headline": {"tail_ratio": ratio}, "tail": tail, "runs": {"reference_runs": reference_runs}}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (summary(1.6), f"{LEAD}{REPEATED}; what exceeds that, 2.00× (1.600–2.50×), belongs to the workload."),
        (summary(0.9), f"{LEAD}{REPEATED}, so no tail of the workload's own can be told from the machine's."),
        (
            summary(None),
            f"{LEAD}how much of that belongs to the workload is not known: too few repeats of one request.",
        ),
        (
            summary(None, 0),
            f"{LEAD}how much of that belongs to the workload is not known: no single request was repeated.",
        ),
    ],
)
def test_whose_the_tail_is(found: dict[str, Any], said: str) -> None:
    assert plain(tail_sentence(found)) == said


def test_repeats_that_resemble_each_other_say_what_they_are_worth() -> None:
    found = summary(0.9)
    found["distribution"] = {"T_total": {"reference": {"n": 60, "effective_n": 12.6}}}
    assert "repeated 60 times (worth 12 independent ones), has a tail too" in plain(tail_sentence(found))


def test_what_a_percentile_lacks_is_told_from_fields() -> None:
    few = {"n": 4, "n_needed": 36, "shortfall": "too_few_runs", "note": "any words"}
    dependent = {"n": 50, "n_needed": 36, "shortfall": "too_few_independent", "effective_n": 12.7}
    assert shortage(few) == "4 of 36"
    assert lacks(dependent) == "needs 36 independent requests, and the 50 are worth 12"
    assert lacks({"note": "n too small: 4 of 36"}) == "n too small: 4 of 36", "a summary of an earlier version"
    assert (needs("p90"), needs("p99")) == ("needs 36", "needs 368")


@pytest.mark.parametrize(
    ("n", "samples", "said"),
    [
        (900, 900, "some 5,500 runs (61 minutes) for P99."),
        (2700, 900, "some 5,500 requests (61 minutes) for P99."),
        (1, 1, None),
    ],
)
def test_what_would_do_is_said_of_what_counts(n: int, samples: int, said: str | None) -> None:
    """Of requests that were repeated, requests count: more repeats of the same ones would not do."""
    known = {"value": 5.0, "low": 4.0, "high": 6.0}
    lacking = {"value": None, "n": samples, "n_needed": 368}
    lacking |= {"shortfall": "too_few_independent", "effective_n": 121.7} if said else {"shortfall": "too_few_runs"}
    whole = {"n": n, "samples": samples, "effective_n": 37.0, "mean": 5.0, "max": 9.0, "p50": known, "p90": known}
    whole |= {"p95": known, "p99": lacking}
    found: dict[str, Any] = {
        "headline": {"latency_metric": "T_total"},
        "distribution": {"T_total": {"workload": whole}},
    }
    found["runs"] = {"workload_lasted_s": 600.0}
    sentences = [one for one in _how_long(found) if one.startswith("At this dependence")]
    assert sentences == ([f"At this dependence it would take {said}"] if said else [])
    del found["runs"]["workload_lasted_s"]
    assert [one for one in _how_long(found) if " minutes" in one] == [], "a summary of an earlier version"


def test_a_cell_says_what_the_runs_are_worth_where_they_resemble_each_other() -> None:
    assert lacks_short({"note": "n too small: 4 of 36"}, "p90") == "needs 36"
    fields = {"shortfall": "too_few_independent", "effective_n": 7.9, "n_needed": 36, "note": "any words"}
    assert lacks_short(fields, "p90") == "worth 7 of 36"
    assert lacks_short({"note": "too few independent runs: 200 are worth 14 of 36"}, "p90") == "worth 14 of 36"


def test_what_runs_are_worth_is_one_number_wherever_it_stands() -> None:
    """``the 8 are worth 3) at the median of 8 runs, worth 4 independent ones``, and ``worth 0`` beside ``worth 1``."""
    short = {"n": 8, "n_needed": 6, "shortfall": Shortfall.TOO_FEW_INDEPENDENT.key}
    for effective, shown, cell in ((3.82, "3", "3"), (0.81, "less than one", "< 1"), (1234.9, "1,234", "1,234")):
        assert lacks(short | {"effective_n": effective}).endswith(f"are worth {shown}")
        assert worth(2000, effective) == f", worth {shown}"
        assert _dependence({"lag1": 0.5, "effective_n": effective})[1] == cell
    assert worth(8, 8.0) == ""

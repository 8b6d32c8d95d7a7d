"""When a flag counts as a cause of slow runs."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from tests.analysis.made import row, write
from vlmbench.analysis.frames import load_runs
from vlmbench.analysis.tail import cause_counts, flag_causes, shares, slow_requests
from vlmbench.report.narrative.latency import HOW_BAD, answers
from vlmbench.report.phase1_summary import summarise


def test_planted_counts_and_the_test_are_fishers() -> None:
    flags = ["gc_pause"] * 12 + [""] * 8 + ["gc_pause residual_above_goal"] * 3 + [""] * 177
    slow = np.arange(200) < 20
    (found,) = flag_causes(flags, slow).to_dict("records")
    assert shares(found) == "12 of 20 slow, 15 of 200 overall"
    assert found["p"] == pytest.approx(fisher_exact([[12, 8], [3, 177]], alternative="greater").pvalue)
    assert found["cause"]


def test_a_flag_of_nearly_every_run_is_no_cause() -> None:
    # the five runs without it are slower than most, none of them among the slowest two
    (found,) = flag_causes(["throttled:power"] * 195 + [""] * 5, np.arange(200) < 2).to_dict("records")
    assert shares(found) == "2 of 2 slow, 195 of 200 overall"
    assert not found["cause"]
    assert found["p"] > 0.9


def test_a_flag_of_the_slowest_alone_is_a_cause_where_there_are_runs_enough() -> None:
    slow = np.arange(50) < 1
    assert flag_causes(["gc_pause"] + [""] * 49, slow)["cause"].tolist() == [True]
    assert flag_causes(["gc_pause"] + [""] * 9, slow[:10])["cause"].tolist() == [False]  # 1 in 10 by chance


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_p_is_fishers_for_any_table(runs: list[tuple[bool, bool]]) -> None:
    flags = ["gc_pause" if flagged else "" for flagged, _ in runs]
    slow = np.array([is_slow for _, is_slow in runs])
    found = flag_causes(flags, slow)
    both = sum(flagged and is_slow for flagged, is_slow in runs)
    assert len(found) == bool(both)
    if both:
        here, there = int(slow.sum()) - both, sum(flagged and not is_slow for flagged, is_slow in runs)
        table = [[both, here], [there, len(runs) - both - here - there]]
        assert found["p"][0] == pytest.approx(fisher_exact(table, alternative="greater").pvalue)


def test_slow_runs_that_carry_a_common_flag_are_not_blamed_on_it(tmp_path: Path) -> None:
    noise = random.Random(3)
    rows = [
        row(sample=f"s{i}", prefill=20 + noise.gauss(0, 0.2), flags=("throttled:power",) if i >= 5 else ())
        for i in range(400)
    ]
    rows += [row(sample=f"slow{i}", prefill=300.0 + i, flags=("throttled:power",)) for i in range(4)]
    rows += [row(sample="paused", prefill=500.0, flags=("throttled:power", "gc_pause"))]
    rows += [row("reference", "r", repeat=i, prefill=20 + noise.gauss(0, 0.2)) for i in range(50)]
    directory = write(tmp_path, rows)
    slow = slow_requests(load_runs(directory))
    assert cause_counts(slow) == {"unknown": 4, "gc_pause": 1}
    said = " ".join(dict(answers(summarise(directory), {}))[HOW_BAD])
    assert "gc_pause: 1 of 5 slow, 1 of 405 overall." in said
    assert "not clearly commoner among the slow: throttled:power (5 of 5 slow, 400 of 405 overall)." in said


def test_what_tokens_explain_is_not_blamed_on_a_flag(tmp_path: Path) -> None:
    # a long answer draws more power: the flag goes with the length, and the length explains the time
    rows = [row(sample=f"s{i}", gaps=[10.0] * (3 + i % 4)) for i in range(250)]
    rows += [row(sample=f"long{i}", gaps=[10.0] * 60, flags=("throttled:power",)) for i in range(3)]
    assert cause_counts(slow_requests(load_runs(write(tmp_path, rows)))) == {"tokens": 3}


def test_causes_of_slow_runs_beyond_the_list_are_counted(tmp_path: Path) -> None:
    slow = slow_requests(load_runs(write(tmp_path, [row(sample=f"s{i}") for i in range(100)])), most=7)
    assert len(slow) == 7
    assert sum(cause_counts(slow).values()) == 100

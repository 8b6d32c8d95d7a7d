"""What a server gives under load: known answers on planted rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from tests.figures.seen import caption_of
from vlmbench.analysis.serving import (
    Limits,
    client_in_the_way,
    frontier,
    paired_differences,
    rates,
    requests_of,
    saturated,
    serving_table,
    share_within,
)
from vlmbench.figures.serving import pareto_figure, point_label, ttft_figure
from vlmbench.report.narrative.serving import load_name


def _rows(
    users: int, *, count: int = 400, gap_s: float = 0.1, ttft: float = 50.0, tpot: float = 10.0
) -> list[dict[str, Any]]:
    """Requests due every ``gap_s``, each of 11 tokens."""
    return [
        {
            "point_id": f"dataset,load.concurrency={users}",
            "axis_load.concurrency": users,
            "sample_id": str(i),
            "repeat": 0,
            "mode": "instrumented",
            "status": "ok",
            "session": 0,
            "flags": "",
            "attempt": 0,
            "due_s": 1000 + i * gap_s,
            "TTFT": ttft,
            "TPOT": tpot,
            "T_request": ttft + 10 * tpot,
            "T_end": ttft + 10 * tpot,
            "T_late": 0.1,
            "num_output_tokens": 11,
            "num_input_tokens": 20,
            "in_flight_at_start": users - 1,
            "coalesced_share": 0.0,
        }
        for i in range(count)
    ]


def test_arrivals_of_a_trace_have_no_rate_of_the_settings() -> None:
    """``load=open`` has a rate by default, which a trace does not use."""
    load = {"name": "open", "concurrency": 1, "rate_per_s": 1.0, "arrivals": "trace"}
    assert load_name({"load": load}, {"point_id": "dataset"}) == "Requests with the arrivals of a trace"
    assert load_name({"load": {**load, "arrivals": "poisson"}}, {"point_id": "dataset"}).endswith("1 arrival a second")


def test_rates_are_those_of_the_plan() -> None:
    frame = pd.DataFrame(_rows(4))
    answers, tokens = rates(frame, "dataset,load.concurrency=4", closed=False)
    assert answers.value == pytest.approx(10, rel=0.02)
    assert tokens.value == pytest.approx(110, rel=0.02)
    for estimate in (answers, tokens):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= estimate.value <= estimate.high  # type: ignore[operator]


def _closed_loop(users: int, count: int, seed: int, spread: float = 0.1) -> pd.DataFrame:
    """Users who each wait for an answer, of 1 s on average: warm-up, ``count`` measured requests, fillers."""
    random, warm = np.random.default_rng(seed), 2 * users
    free, rows, until = np.zeros(users), [], 0.0
    while len(rows) < warm + count or free.min() < until:
        user = int(free.argmin())
        took = float(np.exp(random.normal(-(spread**2) / 2, spread)))
        measured = warm <= len(rows) < warm + count
        (row,) = _rows(users, count=1, ttft=500 * took)
        rows.append(row | {"due_s": float(free[user]), "status": "ok" if measured else "warmup", "T_end": 1e3 * took})
        free[user] += took
        if measured:
            until = max(until, float(free[user]))
    return pd.DataFrame(rows)


@pytest.mark.parametrize("spread", [0.03, 0.1, 0.3])
def test_users_in_step_give_no_more_than_they_do(spread: float) -> None:
    """16 users, an answer of 11 tokens a second each: a count of 100 answers was 2 to 3 % high, of the last burst."""
    point, found, counted = "dataset,load.concurrency=16", [], []
    for seed in range(60):
        frame = _closed_loop(16, 100, seed, spread)
        answers, tokens = rates(frame, point, closed=True)
        assert answers.value is not None
        assert answers.low is not None
        assert answers.high is not None
        assert tokens.value == pytest.approx(11 * answers.value), "each answer has as many"
        width = (answers.high - answers.low) / answers.value
        found.append((answers.value, answers.low <= 16 <= answers.high, width))
        counted.append(rates(frame, point, closed=False)[0].value or 0.0)
    value, held, width = np.mean(found, axis=0)
    error = np.std([one for one, *_ in found]) / np.sqrt(len(found))
    assert abs(value - 16) < 0.02 + 2.5 * error
    assert held >= 0.85  # 51 of 60; of 95 % there are fewer once in a thousand times
    assert width < 0.6 * spread, "bursts are no noise of the rate"
    if spread <= 0.1:
        assert np.mean(counted) > 1.02 * 16


def test_an_interval_of_a_rate_holds_a_machine_that_is_slow_for_a_while() -> None:
    """One user and a machine that remembers for a tenth of the span: ten independent blocks held 0.76."""
    random, held = np.random.default_rng(5), 0
    kept = np.exp(-1 / 30)
    for _ in range(300):
        noise = random.standard_normal(300)
        noise[1:] *= np.sqrt(1 - kept**2)
        took = np.exp(0.1 * lfilter([1.0], [1.0, -kept], noise))
        frame = pd.DataFrame(_rows(1, count=1) * 300)
        frame["due_s"] = np.concatenate([[0.0], np.cumsum(took)[:-1]])
        frame["TTFT"], frame["T_end"], frame["T_request"] = 500 * took, 1e3 * took, 1e3 * took
        answers, _ = rates(frame, str(frame["point_id"].iloc[0]), closed=True)
        assert answers.low is not None
        assert answers.high is not None
        held += answers.low <= np.exp(-0.005) <= answers.high
    assert held >= 0.88 * 300


def test_an_open_loop_that_falls_behind_gives_what_it_answered() -> None:
    """Requests that wait are no share of an answer: 10 arrivals a second, 5 answers."""
    rows = _rows(1)
    for i, row in enumerate(rows):
        row["T_end"] = 1e3 * (0.2 * (i + 1) - 0.1 * i)
    answers, _ = rates(pd.DataFrame(rows), rows[0]["point_id"], closed=False)
    assert answers.value == pytest.approx(5, rel=0.02)


def test_warm_up_and_fillers_count_in_rates_and_nowhere_else() -> None:
    rows = _rows(4)
    for row in rows[:100] + rows[300:]:
        row["status"] = "warmup"
    frame = pd.DataFrame(rows)
    assert len(requests_of(frame)) == 200
    answers, _ = rates(frame, "dataset,load.concurrency=4", closed=False)
    assert answers.value == pytest.approx(10, rel=0.02)
    assert serving_table(frame, closed=False)["requests"].tolist() == [200]


def test_too_short_for_a_rate() -> None:
    answers, _ = rates(pd.DataFrame(_rows(1, count=1)), "dataset,load.concurrency=1", closed=False)
    assert answers.value is None


def test_goodput_under_limits() -> None:
    rows = _rows(4)
    for row in rows[:40]:
        row["TTFT"] = 500.0
    rows[50]["status"], rows[50]["TTFT"] = "error", None
    table = serving_table(pd.DataFrame(rows), closed=False, limits=Limits(ttft_ms=100), devices=2)
    (row,) = table.to_dict("records")
    assert row["good_share"] == pytest.approx(359 / 400)
    assert row["goodput_per_s"] == pytest.approx(row["requests_per_s"] * 359 / 400)
    assert row["errors"] == 1
    assert row["tokens_per_s_device"] == pytest.approx(row["tokens_per_s"] / 2)
    assert row["tokens_per_s_user"] == pytest.approx(100)


def test_an_answer_of_one_token_keeps_a_limit_on_later_tokens() -> None:
    rows = _rows(1, count=2)
    rows[0]["TPOT"] = None
    assert Limits(tpot_ms=5).held(pd.DataFrame(rows)).tolist() == [True, False]
    assert not Limits()


def test_a_retry_counts_once() -> None:
    rows = _rows(1, count=100)
    rows.append({**rows[0], "status": "error", "attempt": 0})
    rows[0]["attempt"] = 1
    table = serving_table(pd.DataFrame(rows), closed=False, limits=Limits(ttft_ms=100))
    assert table["good_share"].tolist() == [1.0]
    assert table["errors"].tolist() == [1]


def test_share_has_wilsons_interval_for_what_the_requests_are_worth() -> None:
    random = np.random.default_rng(0)
    times = random.normal(100, 5, 400)
    found = share_within(times <= 100, times)
    assert found.low is not None
    assert found.high is not None
    assert 300 < (found.effective_n or 0) < 400
    assert 0.045 < (found.high - found.low) / 2 < 0.06
    tied = np.repeat(random.normal(100, 5, 40), 10)
    wide = share_within(tied <= 100, tied)
    assert wide.low is not None
    assert wide.high is not None
    assert wide.high - wide.low > 2 * (found.high - found.low), "requests that resemble the one before are worth fewer"
    assert share_within(np.ones(50), np.full(50, 3.0)).high == 1
    assert share_within([], []).value is None


def test_a_point_whose_requests_all_failed_has_a_share() -> None:
    rows = [row | {"status": "error", "T_request": np.nan, "TTFT": np.nan} for row in _rows(1, count=100)]
    table = serving_table(pd.DataFrame(rows), closed=False, limits=Limits(ttft_ms=100))
    assert table["errors"].tolist() == [100]
    assert table["good_share"].tolist() == [0.0]
    assert 0 < table["good_share_high"].item() < 0.05


def test_the_frontier() -> None:
    table = pd.DataFrame({"tokens_per_s_user": [100, 80, 60, 70, np.nan], "tokens_per_s_device": [10, 40, 90, 30, 99]})
    assert frontier(table).tolist() == [True, True, True, False, False]


def test_paired_differences_are_of_runs() -> None:
    rows = []
    for number in range(20):
        for arm, ttft in (("image", 80.0 + number), ("text", 50.0 + number)):
            rows.append(
                {
                    "point_id": f"paired,contrast=image_text,arm={arm}",
                    "status": "ok",
                    "session": 0,
                    "pair_contrast": "image_text",
                    "pair_arm": arm,
                    "pair_number": number,
                    "TTFT": ttft,
                    "num_input_tokens": 100,
                }
            )
    del rows[-1]  # a pair without its other half does not count
    table = paired_differences(
        pd.DataFrame(rows), {"image_text": ("image", "text", "TTFT"), "absent": ("a", "b", "TTFT")}
    )
    (row,) = table.to_dict("records")
    assert (row["difference"], row["pairs"]) == (30.0, 19)
    assert row["prompt_tokens_first"] == 100
    assert requests_of(pd.DataFrame(rows)).empty


def test_a_client_that_is_in_the_way_is_named() -> None:
    good = pd.DataFrame(_rows(4))
    assert client_in_the_way(good, [{"cpu_s": 1.0, "wall_s": 10.0}]) == []
    assert "busy 90 %" in client_in_the_way(good, [{"cpu_s": 9.0, "wall_s": 10.0}])[0]
    late = good.assign(T_late=20.0)
    assert "left up to 20.0 ms late" in client_in_the_way(late, [])[0]
    assert "out of one read" in client_in_the_way(good.assign(coalesced_share=0.2), [])[0]


def test_a_server_that_cannot_keep_up_is_named() -> None:
    rows = _rows(1)
    assert saturated(pd.DataFrame(rows), rows[0]["point_id"]) is None
    for i, row in enumerate(rows):
        row["in_flight_at_start"] = i // 4
    assert "cannot keep up" in str(saturated(pd.DataFrame(rows), rows[0]["point_id"]))


def test_doubtful_loads_are_rings_and_the_caption_says_why() -> None:
    table = serving_table(pd.DataFrame([*_rows(1), *_rows(4, gap_s=0.03, tpot=15)]), closed=False)
    why = "the client may be the bottleneck"
    for figure in (pareto_figure, ttft_figure):
        plain, doubtful = (figure(t, {}) for t in (table, table.assign(doubt=["", why])))
        rings = [line for line in doubtful.axes[0].lines if line.get_markerfacecolor() == "white"]
        assert sum(len(line.get_xdata()) for line in rings) == 1
        assert f"Rings are doubtful: {why}." in " ".join(caption_of(doubtful).split())
        assert "Rings" not in caption_of(plain)


def test_figures_need_two_loads() -> None:
    one = serving_table(pd.DataFrame(_rows(1)), closed=False)
    assert pareto_figure(one, {}) is None
    assert ttft_figure(one, {}) is None
    two = serving_table(pd.DataFrame([*_rows(1), *_rows(4, gap_s=0.03, tpot=15)]), closed=False)
    assert two["axis_load.concurrency"].tolist() == [1, 4]
    for figure in (pareto_figure(two, {}), ttft_figure(two, {})):
        assert figure is not None
        assert len(figure.axes) == 1
        assert {text.get_text() for text in figure.axes[0].texts} == {"1 user", "4 users"}
    many = serving_table(pd.DataFrame([*_rows(1), *_rows(4, gap_s=0.0004, tpot=0.4)]), closed=False)
    figure = pareto_figure(many, {})
    assert figure is not None
    figure.draw_without_rendering()
    ticks = [
        label.get_text() for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis) for label in axis.get_ticklabels()
    ]
    assert any("," in tick for tick in ticks), "thousands have a comma, as everywhere"
    assert point_label({"axis_load.rate_per_s": 2.5, "axis_images": 2}) == "2.5 a second, images=2"

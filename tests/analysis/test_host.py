"""Whose tail it is: planted parts of a latency get their shares of the variance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from vlmbench.analysis.tail import slow_requests
from vlmbench.analysis.variance import variance_parts, variance_sources
from vlmbench.report.narrative.tail import source_sentences


def frame(n: int = 400, **columns: Any) -> pd.DataFrame:
    base = {
        "point_id": "dataset",
        "sample_id": [f"s{i}" for i in range(n)],
        "repeat": 0,
        "mode": "instrumented",
        "status": "ok",
        "flags": "",
        "num_vision_tokens": 576.0,
        "num_prompt_tokens": 20.0,
        "num_output_tokens": 32.0,
    }
    return pd.DataFrame(base | columns)


def shares(table: pd.DataFrame) -> dict[str, float]:
    return dict(zip(table["source"], table["share"], strict=True))


@pytest.fixture
def noise() -> Any:
    random = np.random.default_rng(5)
    return lambda sd, n=400: sd * random.standard_normal(n)


def test_processor_time_and_absence_get_what_they_add(noise: Any) -> None:
    cpu, away = 600 + noise(30), 5 + noise(10)
    table = variance_sources(frame(T_total=cpu + away, thread_cpu_ms=cpu))
    found = shares(table)
    assert sum(found.values()) == pytest.approx(1)
    assert found["workload"] == found["device"] == 0
    assert found["host_speed"] == pytest.approx(0.9, abs=0.02)
    assert found["host_absence"] == pytest.approx(0.1, abs=0.02)
    assert (table["low"] <= table["share"]).all()
    assert (table["high"] >= table["share"]).all()
    (sentence,) = source_sentences(table.to_dict("records"))
    assert sentence.startswith("The tail is the host's, 100 %")


def test_the_workload_is_taken_out_first(noise: Any) -> None:
    tokens = 32 + 8 * noise(1)
    cpu = 20 * tokens + noise(20)
    away = noise(5)
    table = variance_sources(frame(T_total=cpu + away, thread_cpu_ms=cpu, num_output_tokens=tokens))
    found = shares(table)
    assert found["workload"] == pytest.approx(160**2 / (160**2 + 20**2 + 5**2), abs=0.01)
    rest = dict(zip(table["source"], table["of_rest"], strict=True))
    assert rest["host_speed"] == pytest.approx(400 / 425, abs=0.02)


def test_on_a_gpu_clocks_are_the_devices_and_the_host_is_named_only_where_the_device_is_idle(noise: Any) -> None:
    clock = 1980 + noise(40)
    cpu = 600 - 0.5 * (clock - 1980) + noise(10)
    columns = {"T_total": cpu + 1, "thread_cpu_ms": cpu, "sm_clock_after_mhz": clock, "gpu_uuid": "GPU-1"}
    found = shares(variance_sources(frame(**columns)))
    assert found["device"] == pytest.approx(400 / 500, abs=0.04)
    assert found["host_or_device"] == pytest.approx(100 / 500, abs=0.04)
    assert "host_speed" not in found
    traced = frame(1, mode="trace", launch_bound_total=0.65, gpu_uuid="GPU-1", T_total=700.0)
    assert "host_speed" in shares(variance_sources(pd.concat([frame(**columns), traced])))


def test_predictors_without_effect_get_nothing(noise: Any) -> None:
    cpu = 600 + noise(30)
    columns = {"T_total": cpu, "thread_cpu_ms": cpu, "gpu_uuid": "GPU-1"}
    many = [shares(variance_sources(frame(**columns, sm_clock_after_mhz=1980 + noise(40))))["device"] for _ in range(5)]
    assert max(many) < 0.02
    assert min(many) == 0


def test_each_shape_of_a_request_has_its_own_mean(noise: Any) -> None:
    """A prompt of an odd number of tokens takes longer: no line through token counts sees that."""
    prompt = np.tile([20.0, 21.0, 22.0, 23.0], 100)
    cpu = 600 + 20 * (prompt % 2) + noise(5)
    table = variance_sources(frame(T_total=cpu + 1, thread_cpu_ms=cpu, num_prompt_tokens=prompt))
    assert shares(table)["workload"] == pytest.approx(100 / 125, abs=0.03)
    (sentence,) = source_sentences(table.to_dict("records"))
    assert "The shape of the request (its token counts) explains" in sentence
    nothing = variance_sources(frame(T_total=600 + noise(5), thread_cpu_ms=600 + noise(5), num_prompt_tokens=prompt))
    assert shares(nothing)["workload"] == pytest.approx(0, abs=0.02)


def test_with_traces_each_stage_is_the_devices_or_the_hosts(noise: Any) -> None:
    setup, prefill = 20 + noise(3), 40 + noise(4)
    stages = {"T_setup": setup, "T_LLM_prefill": prefill, "T_residual": np.zeros(400)}
    rows = frame(T_total=setup + prefill, thread_cpu_ms=setup + prefill, gpu_uuid="GPU-1", **stages)
    traced = frame(
        3, mode="trace", gpu_uuid="GPU-1", T_total=60.0, T_setup=20.0, T_LLM_prefill=40.0, busy_setup=0.5,
        busy_LLM_prefill=39.0, busy_total=39.5,
    )  # fmt: skip
    table = variance_sources(pd.concat([rows, traced]))
    found = shares(table)
    assert set(found) == {"workload", "device", "host", "host_or_device"}
    assert sum(found.values()) == pytest.approx(1)
    assert found["host"] == pytest.approx(9 / 25, abs=0.05)
    assert found["device"] == pytest.approx(16 / 25, abs=0.05)
    (sentence,) = source_sentences(table.to_dict("records"))
    assert "where the device waits for the host (Setup)" in sentence


def test_parts_share_the_variance_of_their_sum(noise: Any) -> None:
    host, model = 10 + noise(9), 70 + noise(3)
    table = variance_parts(frame(T_request=host + model, T_preprocess=host, T_total=model), "T_request",
                           ("T_total", "T_preprocess", "T_transfer"))  # fmt: skip
    assert table["part"].tolist() == ["T_preprocess", "T_total"]
    assert table["share"].sum() == pytest.approx(1)
    assert table["share"][0] == pytest.approx(0.9, abs=0.03)
    assert table["low"][0] < 0.9 < table["high"][0]


def test_the_interval_of_a_share_holds_it() -> None:
    """Runs that depend on each other: the planted share lies within its interval about as often as said."""
    random, held, trials = np.random.default_rng(11), 0, 60
    for _ in range(trials):
        steps = random.standard_normal((400, 2)) @ np.diag([3.0, 4.0])
        for i in range(1, 400):
            steps[i] = 0.5 * steps[i - 1] + 0.866 * steps[i]
        one, two = steps.T
        table = variance_parts(frame(T_total=one + two + 90, T_setup=one, T_LLM_decode=two), "T_total",
                               ("T_setup", "T_LLM_decode")).set_index("part")  # fmt: skip
        held += table["low"]["T_setup"] <= 9 / 25 <= table["high"]["T_setup"]
    assert held >= 0.85 * trials


def test_a_slow_run_is_placed_in_the_stage_that_took_longer(noise: Any) -> None:
    setup, decode = 2 + noise(0.01), 60 + noise(0.01)
    decode[17] += 30
    rows = frame(T_total=setup + decode, T_setup=setup, T_LLM_decode=decode)
    slow = slow_requests(rows, q=0.999)
    assert slow[["sample_id", "cause", "place"]].values.tolist() == [["s17", "unknown", "T_LLM_decode"]]
    assert slow.attrs["places"] == {"T_LLM_decode": 1}


def test_rows_without_processor_time_say_nothing(noise: Any) -> None:
    table = variance_sources(frame(T_total=600 + noise(3)))
    assert table.empty
    assert source_sentences(table.to_dict("records")) == []


def test_a_slow_run_whose_thread_was_away_is_named_so(noise: Any) -> None:
    cpu = 600 + noise(1)
    away = np.full(400, 1.0)
    away[[17, 230]] = 300
    slow = slow_requests(frame(T_total=cpu + away, thread_cpu_ms=cpu), q=0.995)
    assert slow.set_index("sample_id")["cause"].to_dict() == {"s17": "host_absence", "s230": "host_absence"}


def test_a_slow_run_within_what_the_repeated_request_shows_is_the_processors(noise: Any) -> None:
    cpu = 600 + noise(30)
    of_dataset = frame(T_total=cpu, thread_cpu_ms=cpu)
    again = 600 + 1.5 * noise(30)
    repeated = frame(point_id="reference", T_total=again, thread_cpu_ms=again)
    assert set(slow_requests(pd.concat([of_dataset, repeated]), q=0.98)["cause"]) == {"host_speed"}

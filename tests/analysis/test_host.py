"""Whose tail it is: planted parts of a latency get their shares of the variance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from vlmbench.analysis.host import variance_sources
from vlmbench.analysis.tail import slow_requests
from vlmbench.report.narrative.host import source_sentences


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

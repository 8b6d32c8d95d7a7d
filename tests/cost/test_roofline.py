"""Peaks and rooflines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbench.cost.bytes import StageBytes
from vlmbench.cost.roofline import UNTOLD, rooflines, stage_roofline
from vlmbench.cost.stage_costs import StageFlops
from vlmbench.machine.peaks import DevicePeaks, known_devices, measure_peaks, table_peaks

PEAKS = DevicePeaks(device="d", dtype="bfloat16", flops_per_s=1e12, bytes_per_s=1e9, source="test")


@pytest.mark.parametrize(
    ("name", "tflops", "gb"),
    [
        ("NVIDIA H200", 989, 4800),
        ("NVIDIA A100-SXM4-80GB", 312, 2039),
        ("NVIDIA A100-SXM4-40GB", 312, 1555),
        ("NVIDIA H100 80GB HBM3", 989, 3350),
        ("NVIDIA GeForce RTX 4090", 165.2, 1008),
        ("L40S", 362, 864),
    ],
)
def test_table(name, tflops, gb):
    peaks = table_peaks(name, "bfloat16").peaks
    assert peaks is not None
    assert (peaks.flops_per_s, peaks.bytes_per_s) == (tflops * 1e12, gb * 1e9)


def test_recalled_figures_say_so():
    source = table_peaks("NVIDIA H100 PCIe", "bfloat16").peaks.source
    assert "bandwidth: recalled from the datasheet, not checked" in source
    assert "torchtitan" in source
    assert "recalled" not in table_peaks("NVIDIA A100-SXM4-80GB", "bfloat16").peaks.source


@pytest.mark.parametrize("name", ["cpu", "NVIDIA H200 NVL", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA H20", ""])
def test_unknown_device_is_not_guessed(name):
    answer = table_peaks(name, "bfloat16")
    assert answer.peaks is None
    assert "measure" in answer.reason
    assert "H200-SXM" in answer.reason


def test_unknown_dtype_is_not_guessed():
    assert "no float32 peak" in table_peaks("NVIDIA H200", "float32").reason
    assert "no bfloat16 peak" in table_peaks("Tesla V100-SXM2-16GB", "bfloat16").reason


def test_every_entry_has_peaks():
    for device in known_devices():
        assert any(table_peaks(device, dtype).peaks for dtype in ("bfloat16", "float16"))


def test_measured_on_the_spot():
    peaks = measure_peaks("cpu", "float32", repeats=3)
    assert peaks.source.startswith("measured")
    # Any processor of this century does more than 0.1 GFLOP/s and less than 1 PFLOP/s.
    assert 1e8 < peaks.flops_per_s < 1e15
    assert 1e7 < peaks.bytes_per_s < 1e13


def test_peaks_must_be_positive():
    with pytest.raises(ValueError, match="'bytes_per_s' must be above 0"):
        DevicePeaks(device="d", dtype="x", flops_per_s=1.0, bytes_per_s=0.0, source="")


def test_floor_by_hand():
    line = stage_roofline("llm_prefill", 2_000_000_000, 1_000_000, PEAKS)  # 2 ms of compute, 1 ms of traffic
    assert (line.floor_ms, line.floor_by, line.intensity) == (2.0, "compute-bound", 2000.0)
    assert (line.mfu, line.measured_ms, line.verdict) == (None, None, "compute-bound")


@pytest.mark.parametrize(
    ("measured", "busy", "verdict"),
    [
        (1.5, None, "memory-bound"),
        (1.5, 0.1, "memory-bound"),
        (6.0, 0.3, "launch-bound"),
        (6.0, 0.9, "memory-bound, by kernels far from the floor"),
        (6.0, None, UNTOLD),
        (0.0, None, "no time measured"),
    ],
)
def test_verdicts(measured, busy, verdict):
    line = stage_roofline("llm_decode", 1_000_000, 1_000_000, PEAKS, measured_ms=measured, busy_share=busy)
    assert line.floor_by == "memory-bound"
    assert line.verdict == verdict


@given(flops=st.integers(1, 10**15), moved=st.integers(1, 10**12), slower=st.floats(1, 1000))
def test_shares_never_exceed_one_above_the_floor(flops, moved, slower):
    floor = stage_roofline("s", flops, moved, PEAKS).floor_ms
    line = stage_roofline("s", flops, moved, PEAKS, measured_ms=floor * slower)
    assert max(line.mfu, line.mbu) <= 1 + 1e-9
    assert line.over_floor == pytest.approx(slower)


def test_stages_without_work_are_left_out():
    flops = StageFlops(vision_encoder=0, projector=0, llm_prefill=10, llm_decode=0)
    moved = StageBytes(vision_encoder=0, projector=0, llm_prefill=10, llm_decode=0)
    lines = rooflines(flops, moved, PEAKS, measured_ms={"llm_prefill": 3.0, "llm_decode": 1.0})
    assert set(lines) == {"llm_prefill"}
    assert lines["llm_prefill"].verdict == UNTOLD

"""Figures of a run's rows in time, of one request over the device, and of what of the device the stages use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from tests.analysis.made import PROVENANCE, row, write
from tests.figures.seen import caption_of, outside, overlaps, smallest, texts
from tests.figures.test_launch_bound_figure import trace
from vlmbench.analysis.frames import load_runs
from vlmbench.figures.request_timeline import busy_shares, median_request, request_timeline
from vlmbench.figures.roofline import device_use, device_use_figure
from vlmbench.figures.run_lane import lane_rows, run_lane_figure
from vlmbench.figures.style import SMALLEST_PT, FigureStyle, drawn_as
from vlmbench.machine.peaks import DevicePeaks
from vlmbench.schema import Mode, Status

PEAKS = DevicePeaks(device="Made GPU", dtype="bfloat16", flops_per_s=1e15, bytes_per_s=1e12, source="measured here")


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    rows = [row(sample=f"s{i}", started=10.0 + i, prefill=20.0 + i) for i in range(9)]
    for made in rows:
        made |= {"flops_vision_encoder": 4e12, "flops_llm_prefill": 5e12 * made["T_LLM_prefill"] / 20, "bytes_llm_decode": 6e9,
                 "flops_llm_decode": 1e9, "bytes_vision_encoder": 1e9, "bytes_llm_prefill": 1e9}  # fmt: skip
    rows[3]["flags"] = ["gc_pause"]
    rows += [
        row("reference", "r", started=20.0), row(sample="b", mode=Mode.BARE, started=21.0),
        row(sample="w", status=Status.WARMUP, started=9.0),
        row(sample="x", status=Status.ERROR, reason="no image", started=22.0) | {"started_unix_s": 22.0},
        trace("s4", busy=0.25) | {"started_unix_s": 23.0},
    ]  # fmt: skip
    return load_runs(write(tmp_path, rows))


def test_every_row_stands_in_its_lane_at_its_moment(frame: pd.DataFrame) -> None:
    table = lane_rows(frame)
    assert len(table) == len(frame)
    assert table["at"].min() == 0
    assert table.groupby("lane")["at"].apply(list).to_dict() == {
        "workload": [1.0 + i for i in range(9)], "one request repeated": [11.0], "bare": [12.0],
        "cold, warm-up": [0.0], "failed": [13.0], "traced": [14.0],
    }  # fmt: skip
    assert list(table.loc[table["flag"] == "gc_pause", "at"]) == [4.0]


def test_the_lane_draws_a_stroke_a_row_and_flags_in_colour(frame: pd.DataFrame) -> None:
    figure = run_lane_figure(frame, PROVENANCE)
    assert figure is not None
    (axes,) = figure.axes
    strokes = {round(s[0][0], 6): to_hex(c.get_color()[0]) for c in axes.collections for s in c.get_segments()}
    assert sorted(strokes) == [float(i) for i in range(15) if i != 10]
    assert [at for at, colour in strokes.items() if colour != "#9a9a9a"] == [4.0]
    assert "gc pause (1)" in texts(figure)
    assert "workload (9)" in texts(figure)
    assert "n = 14 rows" in caption_of(figure)


def test_no_lane_without_times_of_day(frame: pd.DataFrame) -> None:
    assert run_lane_figure(frame.drop(columns="started_unix_s"), PROVENANCE) is None


def test_stages_use_their_share_of_the_peak(frame: pd.DataFrame) -> None:
    found = device_use(frame, PEAKS)
    # 4 TFLOP in 8 ms of a device that does 1,000 in a second; 5 in 20 ms; 6 GB in 30 ms at 1,000 GB/s.
    assert {stage: (kind, pytest.approx(share.value)) for stage, (kind, share) in found.items()} == {
        "T_vision_encoder": ("MFU", 0.5), "T_LLM_prefill": ("MFU", 0.25), "T_LLM_decode": ("MBU", 0.2),
    }  # fmt: skip
    figure = device_use_figure(frame, PROVENANCE, PEAKS)
    assert figure is not None
    bars = [p.get_width() for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    assert bars == pytest.approx([0.5, 0.25, 0.2])
    assert figure.axes[0].get_xlim() == (0, 1)
    assert "Vision encoder: MFU 50.0 %" in texts(figure)
    assert "LLM decode: MBU 20.0 %" in texts(figure)
    assert "measured here" in caption_of(figure)
    assert device_use_figure(frame, PROVENANCE, None) is None


def test_the_timeline_is_the_median_request_over_the_device(frame: pd.DataFrame) -> None:
    request = median_request(frame)
    assert request is not None
    assert request["sample_id"] == "s4"
    slow = frame.assign(T_request=frame["T_total"].where(frame["sample_id"] != "s4", 1e9))
    assert (other := median_request(slow)) is not None
    assert other["sample_id"] != "s4", "what is drawn is the whole request"
    # busy for a quarter of 20 ms of prefill; the nine untraced runs of its shape take 24 ms at the median
    assert list(busy_shares(frame).values()) == pytest.approx([0.25, 0.25, 0.25, 5 / 24, 0.25])
    figure = request_timeline(frame, PROVENANCE)
    assert figure is not None
    (axes,) = figure.axes
    bars = [p for p in axes.patches if isinstance(p, Rectangle)]
    stages = [bar for bar in bars if bar.get_height() == pytest.approx(0.6) and bar.get_y() == pytest.approx(-0.3)]
    assert sum(bar.get_width() for bar in stages) == pytest.approx(5 + 0.5 + 1 + 8 + 1 + 24 + 30 + 0.25)
    dark = [bar for bar in bars if to_hex(bar.get_facecolor()) == "#3c4249"]
    assert {round(bar.get_height() / 0.36, 6) for bar in dark} == {0.0, round(5 / 24, 6), 0.25}, (
        "the device does not work for the host"
    )
    assert "request s4" in caption_of(figure).lower()
    assert "device works 25 %" in texts(figure)


def test_no_timeline_without_a_trace(frame: pd.DataFrame) -> None:
    assert request_timeline(frame[frame["mode"] != "trace"], PROVENANCE) is None


@pytest.mark.parametrize("name", ["page", "paper", "talk"])
def test_their_words_can_be_read(frame: pd.DataFrame, name: str) -> None:
    with drawn_as(FigureStyle(name=name)):
        figures = (
            run_lane_figure(frame, PROVENANCE), device_use_figure(frame, PROVENANCE, PEAKS),
            request_timeline(frame, PROVENANCE),
        )  # fmt: skip
        for figure in figures:
            assert figure is not None
            assert not overlaps(figure)
            assert not outside(figure)
            assert smallest(figure) >= SMALLEST_PT - 1e-9
            assert np.isfinite(figure.axes[0].get_xlim()).all()

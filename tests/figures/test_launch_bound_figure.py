from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from tests.analysis.made import PROVENANCE, row, write
from tests.figures.seen import caption_of, outside, overlaps
from vlmbench.analysis.frames import load_runs
from vlmbench.analysis.launch_bound import COLUMNS
from vlmbench.figures.launch_bound import launch_bound_figure
from vlmbench.schema import Mode

STAGES = ("setup", "vision_encoder", "projector", "LLM_prefill", "LLM_decode")


def trace(sample: str = "s0", *, gaps: int = 3, busy: float = 0.5) -> dict[str, Any]:
    made = row(sample=sample, mode=Mode.TRACE, gaps=[10.0] * gaps)
    times = {"setup": 1.0, "vision_encoder": 8.0, "projector": 1.0, "LLM_prefill": 20.0, "LLM_decode": 10.0 * gaps}
    return (
        made
        | {f"T_{stage}": ms for stage, ms in times.items()}
        | {"T_total": sum(times.values()), "num_output_tokens": gaps + 1}
        | {f"busy_{stage}": busy * ms for stage, ms in times.items()}
        | {"busy_total": busy * sum(times.values())}
        | {f"{kind}_{stage}": 5 for kind in ("kernels", "launches") for stage in (*STAGES, "total")}
    )


def frame(directory: Path, rows: list[dict[str, Any]]) -> pd.DataFrame:
    return load_runs(write(directory, rows), [*COLUMNS, "started_unix_s"])


def test_the_caption_counts_traces_and_untraced_runs(tmp_path: Path) -> None:
    runs = [row(sample=f"s{i}", repeat=r) for i in range(3) for r in range(4)]
    words = caption_of(launch_bound_figure(frame(tmp_path / "a", [*runs, trace("s0"), trace("s1")]), PROVENANCE))
    assert "n = 2 traces" in words
    assert "kernels and copies of 2 traces." in words
    assert "12 untraced runs of the same shapes, medians" in words
    assert "4 output tokens a request." in words
    assert "scaled" not in words
    one = caption_of(launch_bound_figure(frame(tmp_path / "b", [row(), trace()]), PROVENANCE))
    assert "kernels and copies of 1 trace." in one
    assert "1 untraced run of the same shape (tracing alone: 1.000×)" in one
    assert "runs" not in one


def test_the_caption_says_that_a_short_trace_was_scaled(tmp_path: Path) -> None:
    runs = [row(sample=f"s{i}", gaps=[10.0] * 31) for i in range(3)]
    one = frame(tmp_path / "one", [*runs, trace("s0", gaps=15)])
    words = caption_of(launch_bound_figure(one, PROVENANCE))
    assert "decode traced for 15 of 31 steps and scaled to all" in words
    assert "32 output tokens a request." in words
    some = frame(tmp_path / "some", [*runs, trace("s0", gaps=15), trace("s1", gaps=31)])
    assert "traced for 23 of 31 steps on average and scaled" in caption_of(launch_bound_figure(some, PROVENANCE))


@pytest.mark.parametrize("busy", [0.02, 0.5, 0.9, 0.999, 1.2])
def test_the_share_of_waiting_covers_no_bar(tmp_path: Path, busy: float) -> None:
    runs = [row(sample="s0", repeat=r) for r in range(20)]
    figure = launch_bound_figure(frame(tmp_path, [*runs, trace(busy=busy)]), PROVENANCE)
    assert figure is not None
    assert not overlaps(figure)
    assert not outside(figure)
    shares = figure.axes[1]
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    right = shares.bbox.x1
    assert len(shares.texts) == 6
    for text in shares.texts:
        assert text.get_window_extent(renderer).x0 > right
    assert max(bar.get_x() + bar.get_width() for bar in shares.patches) <= shares.get_xlim()[1] + 1e-9


def test_the_legend_shows_the_colours_of_the_bars(tmp_path: Path) -> None:
    figure = launch_bound_figure(frame(tmp_path, [row(), trace()]), PROVENANCE)
    assert figure is not None
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["device busy", "device waits"]
    bars = {bar.get_facecolor() for bar in figure.axes[0].patches[1::2]}
    assert bars <= {patch.get_facecolor() for patch in legend.findobj(Rectangle)}

from __future__ import annotations

import gc
import re
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch, Wedge

from tests.analysis.made import PROVENANCE, row, usual, write
from tests.figures.seen import caption_of, outside, overlaps, smallest, texts
from vlmbench.analysis.frames import load_runs, load_token_gaps
from vlmbench.figures import components, latency, stage_bars, workload
from vlmbench.figures.style import SMALLEST_PT, FigureStyle, drawn_as
from vlmbench.figures.theme import COMPONENT_COLOURS, save
from vlmbench.report.narrative.tail import share_of_variance
from vlmbench.schema import Status
from vlmbench.text import percent


def drawn(directory: Path, provenance=PROVENANCE) -> dict[str, Figure | None]:
    frame, gaps = load_runs(directory), load_token_gaps(directory, point_ids=["dataset"])
    return {
        "latency": latency.latency_distribution(frame, provenance),
        "request": latency.latency_distribution(frame, provenance, metric="T_request"),
        "ttft": latency.ttft_and_itl(frame, gaps, provenance),
        "tokens": workload.latency_vs_tokens(frame, provenance),
        "variance": workload.variance_bars(frame, provenance),
        "time": workload.over_time(frame, provenance),
        "pies": components.component_pies(frame, provenance),
        "bars": stage_bars.component_bars(frame, provenance),
        "stages": components.stage_distributions(frame, provenance),
    }


@pytest.fixture(scope="module")
def usual_figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure | None]:
    return drawn(write(tmp_path_factory.mktemp("run"), usual(400, 100)))


def test_every_figure_names_model_device_runtime_dtype_and_n(usual_figures: dict[str, Figure | None]) -> None:
    for name, figure in usual_figures.items():
        words = texts(figure).replace("\n", " ")
        for part in (
            "planted-vlm (random weights)",
            "Planted GPU",
            "bfloat16",
            "eager",
            "planted_vqa",
            "n = 500 runs" if name == "time" else "n = 400 runs",
        ):
            assert part in words, (name, part)


def test_drift_shows_in_the_running_median(tmp_path: Path) -> None:
    rows = [row("reference", "r", repeat=i, started=float(i), prefill=20.0 + (5 if i >= 60 else 0)) for i in range(120)]
    figure = workload.over_time(load_runs(write(tmp_path, rows)), PROVENANCE)
    assert figure is not None
    line = figure.axes[0].lines[1]
    middle = np.asarray(line.get_ydata())
    assert (middle[:40] == 60).all()
    assert (middle[80:] == 65).all()
    assert figure.axes[0].get_xlabel() == "Time since the first run (s)"


def test_a_night_between_two_sessions_is_cut_out(tmp_path: Path) -> None:
    rows = [row("reference", "r", repeat=i, started=float(i)) | {"session": 0} for i in range(20)]
    rows += [row("reference", "r", repeat=20 + i, started=40_000.0 + i) | {"session": 1} for i in range(20)]
    figure = workload.over_time(load_runs(write(tmp_path, rows)), PROVENANCE)
    assert figure is not None
    _, first, second, border = figure.axes[0].lines
    assert np.asarray(first.get_xdata()) == pytest.approx(np.arange(20))
    assert np.asarray(second.get_xdata()) == pytest.approx(19 + np.arange(20))
    assert np.asarray(border.get_xdata()) == pytest.approx([19, 19])
    assert "cut out" in texts(figure)


@pytest.mark.parametrize(
    ("high", "said"), [(-0.001, "not measurable"), (0.013, "not measurable, at most 1.30 %"), (2.01, "not measurable")]
)
def test_an_end_outside_of_a_whole_bounds_no_share(high: float, said: str) -> None:
    """Neither ``at most 0.00 %`` nor ``at most 201 %`` says anything."""
    row = {"source": "num_prompt_tokens", "share": -0.002, "low": -0.01, "high": high}
    assert share_of_variance(row) == said
    axes = Figure().subplots()
    workload._variance_row(axes, 0, row, None)
    assert [text.get_text() for text in axes.texts] == [f"Prompt tokens: {said}"]


def test_variance_bars_are_the_split_and_hold_the_repeated_request(usual_figures: dict[str, Figure | None]) -> None:
    figure = usual_figures["variance"]
    assert figure is not None
    words = texts(figure)
    for part in (
        "Prompt tokens: not measurable",
        "Output tokens",
        "Not explained by tokens",
        "one request repeated: ",
        "Shapley",
    ):
        assert part in words
    (axes,) = figure.axes
    assert axes.get_xlim() == (0, 1)
    bars = axes.findobj(lambda a: isinstance(a, Rectangle) and a.get_height() == pytest.approx(0.42))
    shares = [bar.get_width() for bar in bars if not bar.get_hatch()]
    assert all(0 <= share <= 1 for share in shares)
    assert sum(shares) == pytest.approx(1, abs=0.02)
    (hatched,) = [bar.get_width() for bar in bars if bar.get_hatch()]
    assert f"one request repeated: {percent(hatched)}" in words
    for line in axes.lines:
        assert min(line.get_xdata()) >= 0
        assert max(line.get_xdata()) <= 1


def test_counts_that_are_the_same_in_every_request_have_no_row(tmp_path: Path) -> None:
    rows = [row(sample=f"s{i}", gaps=[10.0] * (1 + i % 7), prefill=20 + 0.01 * (i % 5)) for i in range(60)]
    figure = drawn(write(tmp_path, rows))["variance"]
    assert "The same in every request: vision tokens, prompt tokens." in caption_of(figure)
    assert "Vision tokens" not in texts(figure)
    assert "Output tokens: 100 %" in texts(figure)


def test_every_axis_with_numbers_names_its_unit(usual_figures: dict[str, Figure | None]) -> None:
    for name in ("latency", "request", "ttft", "stages", "bars"):
        figure = usual_figures[name]
        assert figure is not None
        assert "ms" in figure.axes[-1].get_xlabel(), name
    tokens = usual_figures["tokens"]
    assert tokens is not None
    assert "(ms)" in tokens.axes[0].get_ylabel()


def test_the_line_is_the_share_that_takes_longer(tmp_path: Path) -> None:
    rows = [row(sample=f"s{i}", prefill=20.0 + i) for i in range(100)]
    figure = drawn(write(tmp_path, rows))["latency"]
    assert figure is not None
    shares, longer = figure.axes
    assert shares.get_xlim() == longer.get_xlim()
    line = max(longer.lines, key=lambda line: len(line.get_xdata()))
    x, y = line.get_xdata(), line.get_ydata()
    assert len(x) == 100
    assert y[0] == 1
    assert y[50] == pytest.approx(0.5)
    assert y[-1] == pytest.approx(0.01), "the slowest of 100 runs is seen"
    assert x[-1] - x[0] == pytest.approx(99)


def test_the_histogram_holds_every_run(usual_figures: dict[str, Figure | None]) -> None:
    figure = usual_figures["latency"]
    assert figure is not None
    steps = [patch.get_data() for patch in figure.axes[0].patches if isinstance(patch, StepPatch)]
    assert len(steps) == 2, "workload and repeated request in one panel, on one axis"
    for step in steps:
        assert step.values.sum() == pytest.approx(100)
    assert list(steps[0].edges) == list(steps[1].edges)


def test_upper_quantiles_are_drawn_where_n_allows_and_nowhere_else(usual_figures: dict[str, Figure | None]) -> None:
    figure = usual_figures["latency"]
    assert figure is not None
    longer = figure.axes[1]
    assert [t.get_text().split()[0] for t in longer.texts] == ["P50", "P90", "P95", "P99"]
    marks = {mark: [1 - line.get_ydata()[0] for line in longer.lines if line.get_marker() == mark] for mark in "os"}
    assert marks["o"] == pytest.approx([0.5, 0.9, 0.95, 0.99])
    assert marks["s"] == pytest.approx([0.5, 0.9, 0.95]), "100 runs give no P99"
    assert re.search(r"One request, repeated: P50 \S+ ms \([^)]*\), P90", caption_of(figure))


def test_first_tokens_and_gaps_share_an_axis_with_their_numbers(usual_figures: dict[str, Figure | None]) -> None:
    figure = usual_figures["ttft"]
    assert figure is not None
    (axes,) = figure.axes
    legend = axes.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert [name.partition(":")[0] for name in names] == [
        "First token from the request", "First token from generate()", "Between tokens",
    ]  # fmt: skip
    assert re.fullmatch(r"First token from generate\(\): P50 30\.0, P95 \S+ ms", names[1])
    assert names[2].startswith("Between tokens: P50 10.0")
    assert "P99" in caption_of(figure)


def fits(name: str, figure: Figure | None) -> None:
    """No text lies on another, none is cut by the edge, none is too small to be read in print."""
    assert figure is not None, name
    assert not overlaps(figure), name
    assert not outside(figure), name
    assert smallest(figure) >= SMALLEST_PT - 1e-9, name


def test_no_text_lies_on_another(usual_figures: dict[str, Figure | None]) -> None:
    for name, figure in usual_figures.items():
        fits(name, figure)


@pytest.mark.parametrize(
    "chosen",
    [
        FigureStyle(name="paper"),
        FigureStyle(name="paper", width_in=3.3),
        FigureStyle(name="paper", width_in=7.0),
        FigureStyle(name="talk"),
    ],
    ids=["as they come", "one column", "two columns", "talk"],
)
def test_figures_for_papers_and_talks_can_be_read(tmp_path: Path, chosen: FigureStyle) -> None:
    directory = write(tmp_path, usual(80, 40))
    with drawn_as(chosen):
        for name, figure in drawn(directory).items():
            fits(name, figure)


def test_words_on_each_other_would_be_found() -> None:
    figure = Figure()
    figure.text(0.5, 0.5, "67.4 ms")
    figure.text(0.5, 0.51, "57.4 ms")
    figure.text(0.99, 0.1, "beyond the edge")
    assert overlaps(figure) == [("67.4 ms", "57.4 ms")]
    assert outside(figure) == ["beyond the edge"]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 3e3])
def test_first_tokens_at_nearly_the_same_time_keep_their_numbers_apart(tmp_path: Path, scale: float) -> None:
    noise = np.random.default_rng(0).lognormal(0, 0.3, (80, 2)) * scale
    rows = [row(sample=f"s{i}", prefill=20 * a, gaps=[10 * b] * 3, host=0.01) for i, (a, b) in enumerate(noise)]
    figure = drawn(write(tmp_path, rows))["ttft"]
    assert figure is not None
    assert not overlaps(figure)
    assert not outside(figure)


@pytest.mark.parametrize(
    ("runs", "words", "whiskers"),
    [
        (400, "Whiskers: P1 and P99", (0.01, 0.99)),
        (200, "Whiskers: P5 and P95", (0.05, 0.95)),
        (46, "Whiskers: P10 and P90", (0.10, 0.90)),
        (20, "Points: all runs (20 requests: too few for P10 and P90)", None),
        (8, "Points: all runs (8 requests: too few for quartiles)", None),
    ],
)
def test_whiskers_go_no_further_than_n_allows(tmp_path: Path, runs: int, words: str, whiskers: tuple | None) -> None:
    time = np.random.default_rng(1).lognormal(3, 0.3, runs)
    rows = [row(sample=f"s{i}", prefill=float(t)) for i, t in enumerate(time)]
    figure = drawn(write(tmp_path, rows))["stages"]
    assert words in caption_of(figure)
    assert figure is not None
    (axes,) = figure.axes
    place = [label.get_text().split("  ")[0] for label in axes.get_yticklabels()].index("LLM prefill")
    lines = [np.asarray(line.get_xdata()) for line in axes.lines if set(line.get_ydata()) == {place}]
    if whiskers is None:
        dots = [line for line in axes.lines if set(line.get_ydata()) == {place + 0.36}]
        assert sorted(dots[0].get_xdata()) == pytest.approx(sorted(time))
        assert not axes.collections
    else:
        assert lines[0] == pytest.approx(np.quantile(time, whiskers))


def test_repeats_of_few_requests_do_not_count_as_requests(tmp_path: Path) -> None:
    rows = [row(sample=f"s{i}", repeat=r, prefill=20.0 + i + r) for i in range(10) for r in range(40)]
    assert "(10 requests: too few for quartiles)" in caption_of(drawn(write(tmp_path, rows))["stages"])


def test_captions_speak_of_what_is_drawn(tmp_path: Path) -> None:
    rows = [row(sample=f"s{i}", started=float(i), prefill=20.0 + i % 5, tokens=(576, 9 + i % 3)) for i in range(20)]
    alone = drawn(write(tmp_path / "alone", rows))
    time = caption_of(alone["time"])
    assert "running medians of 5 runs" in time
    assert "No single request was repeated" in time
    assert "repeated" not in caption_of(alone["variance"])
    again = [row("reference", "r", repeat=i, started=i + 0.5, prefill=20.0 + i % 2) for i in range(100)]
    both = drawn(write(tmp_path / "both", rows + again))
    assert "A slope or step of the repeated request is drift" in caption_of(both["time"])
    assert "running medians of 25 runs" in caption_of(both["time"])
    assert "Hatched: variance of one request repeated" in caption_of(both["variance"])
    few = drawn(write(tmp_path / "few", rows[:2]))
    assert "medians" not in caption_of(few["time"])


def test_captions_name_output_tokens(tmp_path: Path) -> None:
    fixed = drawn(write(tmp_path / "fixed", [row(sample=f"s{i}") for i in range(30)]))
    natural = drawn(write(tmp_path / "natural", [row(sample=f"s{i}", gaps=[1.0] * (i + 1)) for i in range(30)]))
    for name in ("pies", "bars", "stages", "ttft"):
        assert "4 output tokens a request." in caption_of(fixed[name]), name
        assert "2 to 31 output tokens a request (median 16.5)." in caption_of(natural[name]), name


def test_pie_wedges_are_the_planted_shares_in_the_fixed_colours(tmp_path: Path) -> None:
    figure = drawn(write(tmp_path, [row(sample=f"s{i}") for i in range(30)]))["pies"]
    assert figure is not None
    time, parameters = figure.axes
    angles = {to_hex(w.get_facecolor()).upper(): (w.theta2 - w.theta1) / 360 for w in time.findobj(Wedge)}
    for name, share in (("T_vision_encoder", 8 / 60), ("T_LLM_prefill", 20 / 60), ("T_LLM_decode", 0.5)):
        assert angles[COMPONENT_COLOURS[name]] == pytest.approx(share, abs=1e-4)
    assert len(parameters.findobj(Wedge)) >= 4
    assert "6.95 B" in texts(figure)


def test_bars_add_up_and_the_enlarged_one_shows_what_is_before_the_first_token(tmp_path: Path) -> None:
    figure = drawn(write(tmp_path, [row(sample=f"s{i}") for i in range(30)]))["bars"]
    assert figure is not None
    (axes,) = figure.axes
    bars: dict[float, list[Rectangle]] = {}
    for bar in axes.findobj(lambda a: isinstance(a, Rectangle) and a.get_height() == pytest.approx(stage_bars.BAR)):
        bars.setdefault(round(bar.get_y(), 3), []).append(bar)
    whole, enlarged, *others = (bars[place] for place in sorted(bars))
    assert sum(bar.get_width() for bar in whole) == pytest.approx(65.75, rel=1e-3)
    for group in others:
        assert sum(bar.get_width() for bar in group) == pytest.approx(65.75, rel=1e-3)
    # Before the first token: 35.65 ms; each part has its share of the whole axis, in its colour.
    longest = axes.get_xlim()[1]
    width = {to_hex(bar.get_facecolor()).upper(): bar.get_width() / longest for bar in enlarged}
    before = (
        sum(bar.get_width() for bar in whole)
        - 30.0
        - 0.1
        - sum(
            bar.get_width() for bar in whole if to_hex(bar.get_facecolor()).upper() == COMPONENT_COLOURS["T_residual"]
        )
    )
    assert sum(width.values()) == pytest.approx(1)
    assert width[COMPONENT_COLOURS["T_LLM_prefill"]] == pytest.approx(20 / before, rel=0.02)
    for words in ("LLM decode, 30.0 ms (45.6 %)", "LLM\nprefill\n20.0 ms", "Vision\nencoder\n8.00 ms", "65.8 ms"):
        assert words in texts(figure), words
    assert not figure.legends, "parts are named where they are drawn"


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_moved_as_little_as_it_needs(seed: int) -> None:
    random = np.random.default_rng(seed)
    widths = random.uniform(5, 15, 6)
    centres = np.sort(random.uniform(0, 100, 6))
    at = stage_bars.spread(centres, widths, 0, 100)
    assert at[0] - widths[0] / 2 >= -1e-9
    assert at[-1] + widths[-1] / 2 <= 100 + 1e-9
    assert all(b - a >= (v + w) / 2 - 1e-9 for (a, b), (v, w) in zip(pairwise(at), pairwise(widths), strict=True))
    assert stage_bars.spread([10, 50, 90], [5, 5, 5], 0, 100) == [10, 50, 90]
    assert stage_bars.spread([50, 50], [10, 10], 0, 100) == [45, 55]


def test_figures_do_not_pile_up(tmp_path: Path) -> None:
    frame = load_runs(write(tmp_path, usual(30, 10)))
    ghosts = []
    for _ in range(4):
        made = [latency.latency_distribution(frame, PROVENANCE), stage_bars.component_bars(frame, PROVENANCE)]
        ghosts += [weakref.ref(figure) for figure in made if figure is not None]
    del made
    for _ in range(3):  # matplotlib's callbacks need more than one pass
        gc.collect()
    assert len(ghosts) == 8
    assert sum(ghost() is not None for ghost in ghosts) == 0


DEGENERATE = {
    "one row": [row()],
    "one token": [row(sample=f"s{i}", gaps=[]) for i in range(5)],
    "no vision": [row(sample=f"s{i}", vision=None, projector=None, tokens=(0, 5 + i)) for i in range(5)],
    "all equal": [row(sample=f"s{i}") for i in range(50)],
    "no reference": [row(sample=f"s{i}", gaps=[1.0] * (i % 5)) for i in range(50)],
    "only a reference": [row("reference", "r", repeat=i) for i in range(5)],
    "negative residual and stage": [row(sample=f"s{i}", residual=-0.2, setup=-0.1) for i in range(5)],
    "repeats": [row(sample=f"s{i}", repeat=r, prefill=i + r) for i in range(10) for r in range(1, 4)],
    "a pause of a minute": [row(sample=f"s{i}", prefill=60_000.0 if i == 3 else 20.0) for i in range(50)],
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_runs_draw_without_a_warning(tmp_path: Path, case: str) -> None:
    for name, figure in drawn(write(tmp_path, DEGENERATE[case]), provenance={}).items():
        if figure is not None:
            figure.draw_without_rendering()  # lays out and draws all, into nothing
            assert figure.axes, name


def test_nothing_measured_draws_nothing(tmp_path: Path) -> None:
    assert set(drawn(write(tmp_path, [row(status=Status.ERROR, reason="x")])).values()) == {None}


def test_many_points_become_shade(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [row(sample=f"s{i}", gaps=[10.0] * int(g), flags=("gc_pause",) if i % 500 == 0 else ())
            for i, g in enumerate(random.integers(1, 9, 4000))]  # fmt: skip
    frame = load_runs(write(tmp_path, rows))
    figure = workload.latency_vs_tokens(frame, PROVENANCE)
    assert figure is not None
    assert "Shade" in texts(figure)
    png, pdf = save(figure, tmp_path, "tokens", dpi=60)
    assert pdf.stat().st_size < 500_000
    assert png.is_file()


def test_the_slowest_of_few_are_no_twentieth(tmp_path: Path) -> None:
    rows = [row(sample=f"s{i}", prefill=20.0 + i) for i in range(80)]
    assert "Slowest (3)" in texts(drawn(write(tmp_path / "few", rows[:46]))["bars"])
    assert "Slowest 5 % (4)" in texts(drawn(write(tmp_path / "many", rows))["bars"])

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, Wedge

from tests.analysis.made import PROVENANCE, row, usual, write
from tests.figures.seen import caption_of, outside, overlaps, texts
from vlmbench.analysis.frames import load_runs, load_token_gaps
from vlmbench.figures import components, latency, workload
from vlmbench.figures.theme import COMPONENT_COLOURS, save
from vlmbench.schema import Status


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
        "bars": components.component_bars(frame, provenance),
        "stages": components.stage_distributions(frame, provenance),
    }


@pytest.fixture(scope="module")
def usual_figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure | None]:
    return drawn(write(tmp_path_factory.mktemp("run"), usual(400, 100)))


def test_every_figure_names_model_device_runtime_dtype_and_n(usual_figures: dict[str, Figure | None]) -> None:
    for name, figure in usual_figures.items():
        words = texts(figure)
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


def test_variance_bars_show_the_split(usual_figures: dict[str, Figure | None]) -> None:
    words = texts(usual_figures["variance"])
    for part in ("Vision tokens", "Output tokens", "Not explained", "One request, repeated", "Shapley"):
        assert part in words


def test_every_axis_with_numbers_names_its_unit(usual_figures: dict[str, Figure | None]) -> None:
    for name in ("latency", "request", "ttft", "stages"):
        figure = usual_figures[name]
        assert figure is not None
        assert all("ms" in axes.get_xlabel() for axes in figure.axes if axes.axison), name
    tokens = usual_figures["tokens"]
    assert tokens is not None
    assert "(ms)" in tokens.axes[0].get_ylabel()


def test_upper_quantiles_are_drawn_where_n_allows_and_nowhere_else(usual_figures: dict[str, Figure | None]) -> None:
    figure = usual_figures["latency"]
    assert figure is not None
    workload, repeated, _ = figure.axes
    of_workload = [t.get_text() for t in workload.texts]
    of_repeated = [t.get_text() for t in repeated.texts]
    assert [t.split()[0] for t in of_workload] == ["P50", "P90", "P95", "P99"]
    assert [t.split()[0] for t in of_repeated] == ["P50", "P90", "P95"], "100 runs give no P99"


def test_quantiles_of_first_tokens_stand_in_a_table(usual_figures: dict[str, Figure | None]) -> None:
    figure = usual_figures["ttft"]
    assert figure is not None
    (table,) = figure.axes[2].tables
    cells = {place: cell.get_text().get_text() for place, cell in table.get_celld().items()}
    assert [cells[0, column] for column in range(5)][1:] == ["P50", "P90", "P95", "P99"]
    assert [cells[line, 0] for line in (1, 2, 3)] == [
        "From the request's start", "From generate()'s start", "Between tokens",
    ]  # fmt: skip
    assert cells[2, 1].startswith("30.0\n(")


def test_no_text_lies_on_another(usual_figures: dict[str, Figure | None]) -> None:
    for name, figure in usual_figures.items():
        assert figure is not None
        assert not overlaps(figure), name
        assert not outside(figure), name


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
    variance = caption_of(both["variance"])
    assert "The repeated request's variance" in variance
    few = drawn(write(tmp_path / "few", rows[:2]))
    assert "medians" not in caption_of(few["time"])


def test_the_repeated_requests_bar_has_its_interval_or_the_caption_says_that_it_has_none(
    usual_figures: dict[str, Figure | None],
) -> None:
    figure = usual_figures["variance"]
    assert figure is not None
    (axes,) = figure.axes
    place = [label.get_text() for label in axes.get_yticklabels()].index("One request, repeated")
    has_interval = any(set(line.get_ydata()) == {place} for line in axes.lines)
    assert has_interval != ("(no interval)" in caption_of(figure))


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


def test_bars_add_up(tmp_path: Path) -> None:
    figure = drawn(write(tmp_path, [row(sample=f"s{i}") for i in range(30)]))["bars"]
    assert figure is not None
    shares, absolute = figure.axes
    for axes, whole in ((shares, 1.0), (absolute, 65.75)):
        widths: dict[float, float] = {}
        for bar in axes.findobj(lambda a: isinstance(a, Rectangle) and a.get_height() == pytest.approx(0.62)):
            widths[round(bar.get_y(), 3)] = widths.get(round(bar.get_y(), 3), 0) + bar.get_width()
        assert len(widths) >= 2
        for width in widths.values():
            assert width == pytest.approx(whole, rel=1e-3)


def test_figures_do_not_pile_up(tmp_path: Path) -> None:
    frame = load_runs(write(tmp_path, usual(30, 10)))
    ghosts = []
    for _ in range(4):
        made = [latency.latency_distribution(frame, PROVENANCE), components.component_bars(frame, PROVENANCE)]
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

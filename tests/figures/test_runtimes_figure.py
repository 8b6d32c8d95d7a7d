"""Runtimes side by side, and a method's arms: what is drawn and what is said, at every size."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from tests.figures.seen import caption_of, outside, overlaps, texts
from tests.page import published
from vlmbench.analysis.estimate import Estimate
from vlmbench.analysis.interventions import ArmResult, Saving
from vlmbench.figures.interventions import interventions_figure
from vlmbench.figures.runtimes import Runtime, models_figure, stages_figure, tail_figure, tokens_figure
from vlmbench.figures.style import STYLES, FigureStyle, drawn_as
from vlmbench.report.runtimes import _name, draw_side_by_side, measured_together

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def runtime(label: str, decode: float, *, p95: float | None = None, cost: float = 20.0) -> Runtime:
    stages = {"T_preprocess": 10.0, "T_vision_encoder": 7.0, "T_LLM_prefill": 20.0, "T_LLM_decode": decode}
    whole = sum(stages.values())
    tail = pd.DataFrame(
        [
            {"quantile": "p90", "workload": 1.1, "workload_low": 1.05, "workload_high": 1.2},
            {"quantile": "p95", "workload": p95, "workload_low": p95 and 1.1, "workload_high": p95 and 1.4},
        ]
    )
    return Runtime(
        label=label,
        summary={
            "components": [{"component": name, "median": ms} for name, ms in stages.items()],
            "distribution": {
                "T_request": {
                    "workload": {
                        "p50": {"value": whole, "low": whole - 2, "high": whole + 2},
                        "p95": {"value": None if p95 is None else p95 * whole, "low": None, "high": None},
                    }
                }
            },
        },
        tails={"T_request": tail, "T_total": tail},
        costs={"output": (cost, cost * 0.9, cost * 1.1), "vision": (0.024, 0.016, 0.033)},
    )


FOUR = [
    runtime("eager", 600, p95=1.3),
    runtime("compiled", 190, cost=6.0),
    runtime("cudagraph", 48),
    runtime("vllm", 35),
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("draw", [stages_figure, tail_figure, tokens_figure, models_figure])
def test_four_runtimes_can_be_read_at_every_size(style: str, draw: Any) -> None:
    with drawn_as(FigureStyle(name=style)):
        figure = draw(FOUR, "a caption")
        assert figure is not None
        assert overlaps(figure) == []
        assert outside(figure) == []
    assert all(one.label in texts(figure) for one in FOUR)


@pytest.mark.parametrize("draw", [tail_figure, tokens_figure])
def test_kinds_are_told_apart_without_colour(draw: Any) -> None:
    """Blue and green are one grey in print: the marks differ, in the legend as in the rows."""
    (axes,) = draw(FOUR, "a caption").axes
    looks = {handle.get_color(): handle.get_marker() for handle in axes.get_legend().get_lines()}
    assert len(set(looks.values())) == len(looks) == 2
    drawn = {(line.get_color(), line.get_marker()) for line in axes.lines if line.get_marker() in "os"}
    assert drawn == set(looks.items())


def test_a_diamond_is_explained_where_one_is_drawn() -> None:
    assert "diamond: its P95" in caption_of(stages_figure(FOUR, ""))
    assert "diamond" not in caption_of(stages_figure(FOUR[1:], ""))


def test_models_stand_in_the_order_of_their_medians() -> None:
    lines = [line for line in texts(models_figure(FOUR, "")).splitlines() if " ms" in line]
    assert lines[:4] == [
        "vllm: 72.0 ms (70.0–74.0 ms)", "cudagraph: 85.0 ms (83.0–87.0 ms)", "compiled: 227 ms (225–229 ms)",
        "eager: 637 ms (635–639 ms)",
    ]  # fmt: skip


def test_the_numbers_of_each_runtime_stand_above_its_bar() -> None:
    words = texts(stages_figure(FOUR, ""))
    assert "eager: 637 ms (635–639 ms); P95 828 ms" in words
    assert "compiled: 227 ms (225–229 ms)\n" in words, "a percentile that n does not carry is not said"
    assert "94 %" in words, "decode's share of the eager request"
    assert "output 6.00 (5.40–6.60), vision 0.0240 (0.0160–0.0330)" in texts(tokens_figure(FOUR, ""))


@pytest.mark.parametrize("draw", [stages_figure, models_figure])
def test_a_median_without_an_interval_says_why(draw: Any) -> None:
    one = runtime("few", 300)
    middle = one.summary["distribution"]["T_request"]["workload"]["p50"]
    middle |= {"low": None, "high": None}
    assert "few: 337 ms\n" in f"{texts(draw([*FOUR, one], ''))}\n"
    why = "no interval: the requests are worth too few independent ones"
    assert why in caption_of(draw([*FOUR, one], ""))
    assert why not in caption_of(draw(FOUR, ""))


def test_a_cost_without_a_place_on_the_axis_is_named() -> None:
    costs = {"output": (6.0, 5.4, 6.6), "prompt": (1.0, None, None)}
    without = [Runtime(label="unbounded", costs={**costs, "vision": (0.02, None, None)}),
               Runtime(label="below", costs={**costs, "vision": (-0.05, -0.06, -0.04)})]  # fmt: skip
    said = caption_of(tokens_figure([*FOUR, *without], ""))
    assert said.endswith("not drawn, without an interval or not above 0: vision of unbounded, vision of below")
    assert "not drawn" not in caption_of(tokens_figure(FOUR, ""))


def test_a_cost_that_may_be_nothing_is_shown_by_its_upper_end() -> None:
    """Whichever side of 0 its middle lies on; one that is below 0 for sure has no place on the axis."""
    output = (6.0, 5.4, 6.6)
    costs = [(0.001, -0.06, 0.0955), (-0.001, -0.0631, 0.0619), (-0.05, -0.06, -0.04)]
    found = [Runtime(label=f"r{n}", costs={"output": output, "vision": vision}) for n, vision in enumerate(costs)]
    words = texts(tokens_figure(found, ""))
    assert "r0: output 6.00 (5.40–6.60), vision at most 0.0955" in words
    assert "r1: output 6.00 (5.40–6.60), vision at most 0.0619" in words
    assert "r2: output 6.00 (5.40–6.60)\n" in f"{words}\n"


def test_one_runtime_is_no_comparison() -> None:
    for draw in (stages_figure, tail_figure, tokens_figure, models_figure):
        assert draw(FOUR[:1], "") is None
        assert draw([Runtime(label="a"), Runtime(label="b")], "") is None


def test_the_runtimes_of_a_model_are_drawn_from_runs(tmp_path: Path) -> None:
    for source, name in (("archive/h200_llava_eager", "h200_llava_eager"), ("h200_llava_cudagraph",) * 2):
        for part in ("", "phase1", "phase2", "phase3"):
            published.unpack(f"{source}/{part}", tmp_path / name / part)
    runs = [tmp_path / "h200_llava_eager", tmp_path / "h200_llava_cudagraph"]
    with drawn_as(FigureStyle(name="paper", formats=("png",))):
        files = draw_side_by_side(tmp_path / "out", runs, {})
        assert {path.name for path in files if path.suffix == ".png"} == {
            "runtimes.png", "runtimes_tail.png", "runtimes_tokens.png"
        }  # fmt: skip
        said = (tmp_path / "out" / "figures" / "runtimes_tokens.txt").read_text()
        assert "llava_1_5_7b (random weights) · NVIDIA H200" in said
        assert "2 cards of one kind" in said
        assert draw_side_by_side(tmp_path / "alone", runs[:1], {}) == ()


def test_the_models_of_a_runtime_are_drawn_from_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("h200_gemma3_eager", "h200_paligemma2_eager", "h200_gemma3_cudagraph")
    for name in names:
        published.unpack(f"{name}/phase1", tmp_path / name)
    first, second, other = (tmp_path / name for name in names)
    with drawn_as(FigureStyle(name="paper", formats=("png",))):
        files = draw_side_by_side(tmp_path / "out", [first, second], {})
        assert {path.name for path in files if path.suffix == ".png"} == {"models_eager.png"}
        said = " ".join((tmp_path / "out" / "figures" / "models_eager.txt").read_text().split())
        assert "eager · NVIDIA H200 · bfloat16 · random weights · n = 72 requests a model" in said
        assert draw_side_by_side(tmp_path / "two", [second, other], {}) == (), "neither a model nor a runtime in common"
        published.unpack("h200_gemma3_eager/phase1", tmp_path / "again")
        assert draw_side_by_side(tmp_path / "three", [first, second, tmp_path / "again"], {}) == ()
    assert "models under eager are not drawn side by side: of one there are several runs" in capsys.readouterr().err


def test_how_runs_belong_together() -> None:
    def run(card: str, host: str, at: float) -> dict[str, Any]:
        return {"device": {"uuid": card}, "host": {"host": host}, "sessions": [{"started_unix_s": at}]}

    assert measured_together([run("a", "h", 0.5e9), run("a", "h", 0.5e9 + 3000)]) == (
        "one card and host; measured within the hour"
    )
    assert measured_together([run("a", "h", 0.5e9), run("b", "h", 0.5e9 + 86400)]) == (
        "2 cards of one kind; measured 24 hours apart"
    )
    assert measured_together([run("a", "h", 0.5e9), run("b", "i", 0.5e9)]) == (
        "2 cards of one kind, 2 hosts; measured within the hour"
    )
    again = run("a", "h", 0.5e9)
    again["sessions"].append({"started_unix_s": 0.5e9 + 60, "device": {"uuid": "b"}, "host": {"host": "h"}})
    assert measured_together([again]) == "2 cards of one kind", "continued on another card"
    assert measured_together([{}]) == ""
    took = [{"sessions": [{"turns": {"id": name}}]} for name in ("t", "t", "u", "u")]
    assert measured_together(took[:2]) == "measured in turns"
    assert measured_together(took) == "measured in turns in 2 groups"
    assert measured_together(took[1:3]) == ""
    assert measured_together([{"sessions": ["not", {"turns": "read"}]}, {"sessions": 1}]) == "", "a damaged file"
    pair = [run("a", "h", 0.5e9) for _ in "ab"]
    for one in pair:
        one["sessions"][0]["turns"] = {"id": "t"}
    assert measured_together([*pair, run("b", "h", 0.5e9 + 7200)], ["eager", "captured", "compiled"]) == (
        "one card and host; measured in turns; compiled apart from these, on another card of the kind, 2 hours later"
    )
    assert measured_together([run("a", "h", 0.5e9 - 60), *pair], ["compiled", "eager", "captured"]).endswith(
        "compiled apart from these, on the same card, 60 seconds earlier"
    )


def arm(role: str, keep: float, saved: float, **more: Any) -> ArmResult:
    saving = Saving(metric="T_total", saved=Estimate(value=saved, low=saved - 1, high=saved + 1, n=40), baseline_ms=100)
    about: dict[str, Any] = {
        "point": "", "name": "keep_in_layer", "arguments": f"keep={keep},layer=2,selector=last_token_attention",
        "role": role, "keep": keep, "pairs": 40, "savings": {"T_total": saving}, "method_ms": {},
        "promised_ms": {"T_LLM_prefill": 12.0}, "vision_tokens": 576.0, "kept": 300.0, "kept_by_layer": "",
        "kernels_seen": True, "unlike_kernels": (), "kernel_ms": None, "tokens_equal": None, "tokens_compared": 0,
        "controls": None, "drowned_after": None, "even_after": None,
    }  # fmt: skip
    return ArmResult(**{**about, **more})


@pytest.mark.parametrize("style", STYLES)
def test_arms_stand_below_each_other_with_what_they_save(style: str) -> None:
    few = Saving(metric="T_total", saved=Estimate(value=5.0, low=None, high=None, n=3), baseline_ms=100)
    arms = [
        arm("method", 0.25, 5.0, savings={"T_total": few}),
        arm("method", 0.5, 8.0),
        arm("control", 0.5, 9.0, arguments="keep=0.5,layer=2,selector=random,seed=0"),
        arm("control", 0.5, 30.0, name="downsample", arguments="keep=0.5"),
        arm("method", 0.11, 14.0, unlike_kernels=("LLM_prefill",)),
    ]
    provenance = json.loads((RESULTS / "h200_llava_eager" / "phase1" / "provenance.json").read_text())
    with drawn_as(FigureStyle(name=style)):
        figure = interventions_figure(arms, provenance)
        assert figure is not None
        assert overlaps(figure) == []
        assert outside(figure) == []
    words = texts(figure)
    assert "keep=0.5: saves 8.00 ms, 8.00 % (7.00–9.00 ms)" in words
    assert "keep=0.25: saves 5.00 ms, 5.00 % (too few pairs to tell)" in words
    assert "keep=0.5 selector=random: saves 9.00 ms" in words
    assert "downsample keep=0.5: saves 30.0 ms" in words
    assert "keep=0.11: saves 14.0 ms, 14.0 % (13.0–15.0 ms); kernel + tokens" in words
    if style == "page":
        assert "method=keep_in_layer, layer=2, selector=last_token_attention" in caption_of(figure)
    assert interventions_figure([], provenance) is None
    legends = [texts(interventions_figure(found, provenance)).count("control") for found in (arms, arms[:2])]
    assert legends == [1, 0], "where there are controls"


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({}, "cudagraph"),
        ({"decode_compile": True}, "cudagraph, step compiled"),
        ({"prefill_compile": True}, "cudagraph, prefill compiled"),
        ({"decode_compile": True, "prefill_compile": True}, "cudagraph, step and prefill compiled"),
    ],
)
def test_a_runtime_is_named_with_what_was_compiled(settings: dict[str, bool], label: str) -> None:
    part = SimpleNamespace(provenance={"runtime": settings})
    assert _name(SimpleNamespace(parts=[part], facts={"runtime": "cudagraph, bfloat16"})) == label  # type: ignore[arg-type]

"""Arms of a comparison: which there are, how requests carry them, what their rows and costs say."""

from __future__ import annotations

import pandas as pd
import pytest

from vlmbench.analysis import frames
from vlmbench.cost.kept_tokens import layer_counts, under_method
from vlmbench.errors import ConfigError
from vlmbench.interventions.downsample import Downsample
from vlmbench.interventions.early_exit import EarlyExit
from vlmbench.interventions.keep_after_projector import KeepAfterProjector
from vlmbench.interventions.keep_in_layer import KeepInLayer
from vlmbench.interventions.none import NoIntervention
from vlmbench.interventions.observed import in_words
from vlmbench.interventions.protocol import Intervention, KeepsTokens
from vlmbench.interventions.quantized import Quantized
from vlmbench.probes.stages import Kind, method_times
from vlmbench.request import Output, Request, Sample, TokenCounts
from vlmbench.runner.arms import Arm, ArmOf, arms
from vlmbench.sweep import Sweep

REQUEST = Request(sample=Sample(sample_id="a", question="?", images=()), output=Output(max_new_tokens=4, forced=True))


def made(sweep: dict[str, object], method: Intervention, *, controls: bool = True) -> list[Arm]:
    found = arms(Sweep(name="s", axes=sweep).points(), method, controls=controls)
    assert all(isinstance(arm, Arm) for arm in found)
    return found  # type: ignore[return-value]


def test_none_leaves_the_points_of_a_sweep_as_they_are() -> None:
    points = list(Sweep(name="s", axes={"output_tokens": [1, 2]}).points())
    assert arms(points, NoIntervention(), controls=True) == points
    assert points[0].apply(REQUEST).intervention is None


def test_every_share_has_its_baseline_and_controls_once() -> None:
    found = made({"intervention": {"keep": [1, 0.5, 0.25]}}, KeepAfterProjector(keep=0.1))
    assert [(arm.role, arm.intervention.name, dict(arm.intervention.arguments)) for arm in found] == [
        ("baseline", "none", {}),
        ("method", "keep_after_projector", {"keep": 1, "selector": "norm"}),
        ("method", "keep_after_projector", {"keep": 0.5, "selector": "norm"}),
        ("control", "keep_after_projector", {"keep": 0.5, "selector": "random", "seed": 0}),
        ("control", "downsample", {"keep": 0.5}),
        ("method", "keep_after_projector", {"keep": 0.25, "selector": "norm"}),
        ("control", "keep_after_projector", {"keep": 0.25, "selector": "random", "seed": 0}),
        ("control", "downsample", {"keep": 0.25}),
    ]
    assert len({arm.id for arm in found}) == len(found)
    assert found[2].id == "intervention=keep_after_projector,intervention.keep=0.5,intervention.selector=norm"


def test_arms_stand_at_every_other_point_of_the_sweep() -> None:
    found = made({"output_tokens": [8, 32], "intervention": {"keep": [0.5]}}, KeepInLayer(keep=0.5), controls=False)
    assert [(arm.point.target, arm.role) for arm in found] == [
        ({"output_tokens": 8}, "baseline"),
        ({"output_tokens": 8}, "method"),
        ({"output_tokens": 32}, "baseline"),
        ({"output_tokens": 32}, "method"),
    ]
    request = found[1].apply(REQUEST)
    assert request.output.max_new_tokens == 8
    assert request.intervention.method == KeepInLayer(keep=0.5)


def test_lists_of_layers_are_an_axis() -> None:
    found = made({"intervention.layer": [[1, 3], 2]}, KeepInLayer(keep=0.5), controls=False)
    assert [arm.target["intervention.layer"] for arm in found[1:]] == ["1+3", 2]


@pytest.mark.parametrize(
    ("axes", "method", "message"),
    [
        ({"intervention.kep": [1]}, KeepInLayer(keep=0.5), "has the arguments keep, layer, seed, selector"),
        ({"intervention.keep": [1]}, NoIntervention(), "intervention=none has no arguments; choose a method"),
        ({"intervention.keep": [1.5]}, KeepInLayer(keep=0.5), "'keep' must be above 0 and at most 1"),
        ({"intervention.selector": ["best"]}, KeepInLayer(keep=0.5), "'selector' of keep_in_layer must be one of"),
    ],
)
def test_axes_that_a_method_does_not_have(axes: dict[str, object], method: Intervention, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(axes, method)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (KeepAfterProjector, {"keep": 0}, "above 0"),
        (KeepAfterProjector, {"keep": True}, "above 0"),
        (KeepAfterProjector, {"keep": 0.5, "selector": "last_token_attention"}, "must be one of"),
        (KeepInLayer, {"keep": 0.5, "layer": -1}, "from 0 on"),
        (KeepInLayer, {"keep": 0.5, "layer": [3, 1]}, "ascending"),
        (KeepInLayer, {"keep": 0.5, "layer": "2"}, "from 0 on"),
        (KeepInLayer, {"keep": 0.5, "layer": 0}, "1 or more with selector last_token_attention"),
        (Downsample, {"keep": 2}, "above 0"),
        (EarlyExit, {"depth": 0}, "above 0"),
        (Quantized, {"kind": "int3"}, "'kind' must be one of"),
        (Quantized, {"towers": ["eye"]}, "'towers' must be some of"),
    ],
)
def test_arguments_are_checked(kind: type, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_which_methods_keep_tokens() -> None:
    assert isinstance(KeepAfterProjector(keep=0.5), KeepsTokens)
    assert isinstance(KeepInLayer(keep=0.5), KeepsTokens)
    assert not isinstance(Downsample(keep=0.5), KeepsTokens)
    assert not isinstance(NoIntervention(), KeepsTokens)


def test_columns_of_an_arms_rows() -> None:
    columns = ArmOf(method=KeepInLayer(keep=0.5, layer=[1, 3]), role="method").columns
    assert columns == {
        "intervention": "keep_in_layer",
        "intervention_arguments": "keep=0.5,layer=1+3,selector=last_token_attention",
        "intervention_role": "method",
        "intervention_keep": 0.5,
    }


def test_ordinary_reports_see_the_baseline_only() -> None:
    frame = pd.DataFrame(
        {
            "point_id": ["a", "b", "c"],
            "status": "ok",
            "mode": "instrumented",
            "intervention": ["none", "keep_in_layer", "downsample"],
        }
    )
    assert list(frames.measured(frame)["point_id"]) == ["a"]
    assert len(frames.arms(frame)) == 3
    assert len(frames.measured(frame.drop(columns="intervention"))) == 3
    assert len(frames.arms(frame.drop(columns="intervention"))) == 0


def test_a_methods_own_time_by_the_stage_that_holds_it() -> None:
    marks = [
        (Kind.START, 0.0),
        (Kind.ENTER_FORWARD, 1.0),
        (Kind.ENTER_VISION, 2.0),
        (Kind.ENTER_METHOD, 3.0),
        (Kind.EXIT_METHOD, 3.5),
        (Kind.EXIT_VISION, 4.0),
        (Kind.ENTER_PROJECTOR, 4.0),
        (Kind.EXIT_PROJECTOR, 5.0),
        (Kind.ENTER_LANGUAGE, 5.5),
        (Kind.ENTER_METHOD, 6.0),
        (Kind.EXIT_METHOD, 8.0),
        (Kind.TOKEN, 9.0),
        (Kind.ENTER_METHOD, 10.0),
        (Kind.EXIT_METHOD, 10.25),
        (Kind.TOKEN, 11.0),
        (Kind.END, 11.5),
    ]
    assert method_times(marks) == {"vision_encoder": 0.5, "LLM_prefill": 2.0, "LLM_decode": 0.25}
    assert method_times([(Kind.START, 0.0), (Kind.END, 1.0)]) == {}


def test_kept_counts_in_words_and_back() -> None:
    assert in_words([576, 576, 288, 288, 288]) == "576x2,288x3"
    assert layer_counts("576x2,288x3") == [(576, 2), (288, 3)]


def test_flops_under_a_method_are_the_mean_over_layers() -> None:
    class Closed:
        """Squares of the prompt length: any curve shows that layers are averaged, not lengths."""

        def flops(self, counts: TokenCounts, output_tokens: int, *, batch_size: int) -> Closed:
            self.length = counts.num_input_tokens
            return type("F", (), {"by_stage": lambda _, n=self.length: {"llm_prefill": n * n, "llm_decode": n}})()

    counts = TokenCounts(num_input_tokens=100, num_prompt_tokens=20, num_vision_tokens=80)
    row = {
        "flops_vision_encoder": 7,
        "flops_projector": 3,
        "flops_llm_prefill": 1000,
        "flops_llm_decode": 500,
        "flops_total": 1510,
        "floor_ms_llm_prefill": 1.0,
        "floor_ms_total": 2.0,
        "floor_ms_vision_encoder": 1.0,
        "flops_note": "counted",
    }
    observed = {"kept_by_layer": "80x1,40x3"}
    found = under_method(row, Closed(), counts, observed, output_tokens=2, batch_size=1)  # type: ignore[arg-type]
    assert found["flops_llm_prefill"] == round(1000 * (0.25 * 1.0 + 0.75 * 0.36))
    assert found["flops_llm_decode"] == round(500 * (0.25 * 1.0 + 0.75 * 0.6))
    assert found["flops_total"] == 10 + found["flops_llm_prefill"] + found["flops_llm_decode"]
    assert "floor_ms_llm_prefill" not in found
    assert "floor_ms_total" not in found
    assert found["floor_ms_vision_encoder"] == 1.0
    assert under_method(row, None, counts, {}, output_tokens=2, batch_size=1) == row
    assert under_method(row, None, counts, observed, output_tokens=2, batch_size=1)["flops_llm_prefill"] is None

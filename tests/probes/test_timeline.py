"""The timeline probe on a model with planted stage times."""

from __future__ import annotations

import pytest

from tests.planted import PlantedModel, Times, request
from vlmbench.execution import complete, in_memory, prepare
from vlmbench.probes.memory import MemoryProbe
from vlmbench.probes.timeline import TimelineProbe


def run(model: PlantedModel, tokens: int = 4, repeats: int = 15) -> list[dict]:
    rows = []
    for _ in range(repeats):
        prepared = prepare(model, in_memory(request(tokens)))
        outcome = complete(model, prepared, [TimelineProbe(), MemoryProbe()], [])
        rows.append(outcome.values | {"flags": outcome.flags})
    return rows


def least(rows: list[dict], name: str) -> float:
    """The planted waits are lower bounds: a busy machine can only lengthen a run, so the shortest is the truest."""
    return min(row[name] for row in rows)


@pytest.mark.parametrize("inside", [False, True])
def test_planted_times_are_found(inside: bool) -> None:
    times = Times()
    rows = run(PlantedModel(times, inside=inside))
    for name, planted in {
        "T_setup": times.setup,
        "T_vision_encoder": times.vision,
        "T_projector": times.projector,
        "T_LLM_prefill": times.prefill,
        "T_LLM_decode": 3 * (times.decode + times.loop),
        "T_decode_forward": 3 * times.decode,
        "T_decode_loop": 3 * times.loop,
        "T_preprocess": times.preprocess,
        "T_residual": times.tail,
    }.items():
        assert planted - 0.001 <= least(rows, name) <= planted * 1.1 + 0.3, name


def test_every_row_adds_up_and_counts_its_tokens() -> None:
    for row in run(PlantedModel(), tokens=6):
        named = sum(row[n] for n in ("T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode"))
        assert named + row["T_residual"] == pytest.approx(row["T_total"])
        assert row["T_decode_forward"] + row["T_decode_loop"] == pytest.approx(row["T_LLM_decode"])
        assert len(row["ITL"]) == row["num_output_tokens"] - 1 == 5
        assert row["TTFT"] == pytest.approx(row["T_preprocess"] + row["T_transfer"] + row["TTFT_model"])
        assert row["T_request"] == pytest.approx(
            row["T_preprocess"] + row["T_transfer"] + row["T_total"] + row["T_detokenize"]
        )
        assert row["peak_rss_bytes"] > 0


def test_a_second_generation_does_not_see_marks_of_the_first() -> None:
    """The peer's mistake: events that are never cleared between generations."""
    model = PlantedModel(Times(decode=1.0))
    first, second = run(model, repeats=2)
    assert len(first["ITL"]) == len(second["ITL"]) == 3
    assert max(second["ITL"]) < 5 * model.times.decode + 5


def test_no_vision_stage_is_absent() -> None:
    (row,) = run(PlantedModel(vision=False), repeats=1)
    assert "T_vision_encoder" not in row
    assert "T_projector" not in row


def test_no_hook_stays_on_the_model() -> None:
    model = PlantedModel()
    run(model, repeats=1)
    for module in model.module.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_large_residual_is_flagged_not_repaired() -> None:
    (row,) = run(PlantedModel(Times(tail=20)), repeats=1)
    assert "residual_above_goal" in row["flags"]
    assert row["T_residual"] == pytest.approx(20, abs=2)


def test_residual_goal_is_checked() -> None:
    with pytest.raises(ValueError, match="'residual_goal' must be between 0 and 1"):
        TimelineProbe(residual_goal=2)

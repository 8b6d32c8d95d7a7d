"""The timeline probe on a model with planted stage times."""

from __future__ import annotations

import pytest

from vlmbench.probes.memory import MemoryProbe
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.runner.execution import complete, in_memory, prepare
from vlmbench.testing.planted import PlantedModel, SimulatedTime, Times, request


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> SimulatedTime:
    simulated = SimulatedTime()
    simulated.install(monkeypatch)
    return simulated


def run(model: PlantedModel, tokens: int = 4, repeats: int = 1) -> list[dict]:
    rows = []
    for _ in range(repeats):
        prepared = prepare(model, in_memory(request(tokens)))
        outcome = complete(model, prepared, [TimelineProbe(), MemoryProbe()], [])
        rows.append(outcome.values | {"flags": outcome.flags})
    return rows


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("tiles", [1, 3])
def test_planted_times_are_found(simulated: SimulatedTime, inside: bool, tiles: int) -> None:
    times = Times()
    (row,) = run(PlantedModel(times, inside=inside, tiles=tiles))
    for name, planted in {
        "T_setup": times.setup,
        "T_vision_encoder": tiles * times.vision,
        "T_projector": tiles * times.projector,
        "T_LLM_prefill": times.prefill,
        "T_LLM_decode": 3 * (times.decode + times.loop),
        "T_decode_forward": 3 * times.decode,
        "T_decode_loop": 3 * times.loop,
        "T_preprocess": times.preprocess,
        "T_residual": times.tail,
    }.items():
        assert row[name] == pytest.approx(planted, abs=1e-6), name
    assert row["ITL"] == pytest.approx([times.decode + times.loop] * 3)


def test_planted_times_are_found_in_real_time() -> None:
    """The same on the machine's own clock: waits are lower bounds there, a busy machine can only lengthen a run."""
    times = Times()
    rows = run(PlantedModel(times), repeats=9)
    for name, planted in {
        "T_vision_encoder": times.vision,
        "T_LLM_prefill": times.prefill,
        "T_setup": times.setup,
    }.items():
        assert all(row[name] >= planted - 1e-3 for row in rows), name


def test_every_row_adds_up_and_counts_its_tokens() -> None:
    for row in run(PlantedModel(), tokens=6, repeats=5):
        named = sum(row[n] for n in ("T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode"))
        assert named + row["T_residual"] == pytest.approx(row["T_total"])
        assert row["T_decode_forward"] + row["T_decode_loop"] == pytest.approx(row["T_LLM_decode"])
        assert len(row["ITL"]) == row["num_output_tokens"] - 1 == 5
        assert row["TTFT"] == pytest.approx(row["T_preprocess"] + row["T_transfer"] + row["TTFT_model"])
        assert row["T_request"] == pytest.approx(
            row["T_preprocess"] + row["T_transfer"] + row["T_total"] + row["T_detokenize"]
        )
        assert row["peak_rss_bytes"] > 0


def test_a_second_generation_does_not_see_marks_of_the_first(simulated: SimulatedTime) -> None:
    """The peer's mistake: events that are never cleared between generations."""
    model = PlantedModel(Times(decode=1.0))
    first, second = run(model, repeats=2)
    assert len(first["ITL"]) == len(second["ITL"]) == 3
    assert second["ITL"] == pytest.approx(first["ITL"])
    assert second["TTFT_model"] == pytest.approx(first["TTFT_model"])


def test_no_vision_stage_is_absent() -> None:
    (row,) = run(PlantedModel(vision=False), repeats=1)
    assert "T_vision_encoder" not in row
    assert "T_projector" not in row


def test_a_compiled_decode_is_not_hooked(simulated: SimulatedTime) -> None:
    model = PlantedModel()
    model.compiles = True
    with TimelineProbe().watch(model):
        assert not model.module._forward_pre_hooks
        assert not model.module.language._forward_pre_hooks
    (row,) = run(model)
    assert "T_decode_forward" not in row
    assert row["T_LLM_prefill"] == pytest.approx(model.times.prefill)
    assert row["T_LLM_decode"] == pytest.approx(3 * (model.times.decode + model.times.loop))


def test_no_hook_stays_on_the_model() -> None:
    model = PlantedModel()
    run(model, repeats=1)
    for module in model.module.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_large_residual_is_flagged_not_repaired(simulated: SimulatedTime) -> None:
    (row,) = run(PlantedModel(Times(tail=20)), repeats=1)
    assert "residual_above_goal" in row["flags"]
    assert row["T_residual"] == pytest.approx(20)


def test_residual_goal_is_checked() -> None:
    with pytest.raises(ValueError, match="'residual_goal' must be between 0 and 1"):
        TimelineProbe(residual_goal=2)


def test_the_token_criterion_stops_nothing_and_makes_no_tensor() -> None:
    """It must join transformers' own criteria: theirs decide."""
    import torch
    from transformers import MaxLengthCriteria, StoppingCriteriaList

    model = PlantedModel()
    with TimelineProbe().watch(model) as watch:
        watch.start()
        criteria = StoppingCriteriaList([*watch.stopping_criteria, MaxLengthCriteria(max_length=3)])
        assert not criteria(torch.zeros(2, 2, dtype=torch.long), None).any()
        assert criteria(torch.zeros(2, 3, dtype=torch.long), None).all()
        answer = watch.stopping_criteria[0](torch.zeros(2, 3, dtype=torch.long), None)
        done = torch.tensor([True, False])
        assert (done | answer) is done


def test_a_finished_watch_is_freed_without_the_collector(simulated: SimulatedTime) -> None:
    """The collector is off while measuring: a cycle per run would be a leak per run."""
    import gc
    import weakref

    gc.disable()
    try:
        with TimelineProbe().watch(PlantedModel()) as watch:
            seen = weakref.ref(watch)
        del watch
        assert seen() is None
    finally:
        gc.enable()

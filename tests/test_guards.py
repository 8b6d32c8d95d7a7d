"""What is refused or flagged: settings of a checkpoint, answers cut short, undone steps, failing probes, blind runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from tests.models.shipped import loaded, spec
from tests.models.shipped import request as one_request
from tests.test_runner import dataset, measure, sweep
from vlmbench.errors import DeviceError
from vlmbench.models.building import set_generation
from vlmbench.models.protocol import Prepared
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.probes.protocol import RunFacts, Watch
from vlmbench.probes.stages import Kind, cut
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.request import Output, Request, TokenCounts
from vlmbench.runner.execution import complete, in_memory, prepare
from vlmbench.runner.guards import much_larger
from vlmbench.testing.planted import PlantedModel, Times, request

QUICK = Times(*[0.0] * 9)


@pytest.fixture(scope="module")
def tiny() -> TransformersModel:
    return loaded(spec("tiny"), device="cpu")


def natural(tokens: int) -> Request:
    return replace(one_request(), output=Output(max_new_tokens=tokens, forced=False))


class TestSettings:
    def test_only_ids_of_a_checkpoint_stay_and_what_it_held_is_told(self, tiny: TransformersModel) -> None:
        module = tiny.module
        ours = module.generation_config
        module.generation_config = GenerationConfig(
            eos_token_id=[7, 9], pad_token_id=3, cache_implementation="static", no_repeat_ngram_size=2, use_cache=False,
            max_time=0.001, suppress_tokens=[5], temperature=0.7, do_sample=True, num_beams=4,
        )  # fmt: skip
        try:
            held = set_generation(module, tiny.processor.tokenizer, keep_ids=True)
            now = module.generation_config
            assert (now.eos_token_id, now.pad_token_id) == ([7, 9], 3)
            for name in ("cache_implementation", "no_repeat_ngram_size", "max_time", "suppress_tokens", "temperature"):
                assert getattr(now, name, None) is None, name
                assert name in held
            assert now.use_cache is not False
            assert held["use_cache"] is False
            assert now.do_sample is False
            assert now.num_beams == 1
            model = replace(tiny)
            outcome = complete(
                model,
                prepare(model, replace(natural(6), output=Output(max_new_tokens=6, forced=True))),
                [TimelineProbe()],
                [],
            )
            assert outcome.values["num_output_tokens"] == 6
            assert "short_output" not in outcome.flags
        finally:
            module.generation_config = ours

    def test_a_forced_length_that_came_out_short_is_flagged(self) -> None:
        class Short(PlantedModel):
            def generate(self, prepared: Prepared, stopping_criteria: list[Any] | None = None) -> torch.Tensor:
                return super().generate(
                    replace(prepared, output=Output(max_new_tokens=1, forced=True)), stopping_criteria
                )

        model = Short(QUICK)
        outcome = complete(model, prepare(model, in_memory(request(4))), [TimelineProbe()], [])
        assert outcome.values["num_output_tokens"] == 1
        assert "short_output" in outcome.flags


class TestUndoneStep:
    MARKS = (
        (Kind.START, 0.0), (Kind.ENTER_FORWARD, 1.0), (Kind.EXIT_FORWARD, 5.0), (Kind.TOKEN, 6.0),
        (Kind.ENTER_FORWARD, 6.5), (Kind.EXIT_FORWARD, 9.5), (Kind.TOKEN, 10.0),
        (Kind.ENTER_FORWARD, 10.5), (Kind.EXIT_FORWARD, 13.5), (Kind.TOKEN, 14.0), (Kind.END, 14.25),
    )  # fmt: skip

    def test_its_time_has_a_name_and_is_no_residual(self) -> None:
        """transformers#47975: the stop flag is read one step late, and the step is undone."""
        stages = cut(self.MARKS, num_output_tokens=2)
        assert stages.undone == 4.0
        assert stages.tail == 0.25
        assert stages.ITL == (4.0,)
        assert stages.T_LLM_decode == 4.0
        assert stages.T_decode_forward == 3.0

    def test_without_one_nothing_changes(self) -> None:
        stages = cut((*self.MARKS[:7], (Kind.END, 10.25)), num_output_tokens=2)
        assert stages.undone is None
        assert stages.tail == 0.25

    def test_in_earnest(self, tiny: TransformersModel, monkeypatch: pytest.MonkeyPatch) -> None:
        utils = pytest.importorskip("transformers.generation.utils")
        if not hasattr(utils, "DeferredStopCheck"):
            pytest.skip("this transformers reads the stop flag at once")
        model = tiny
        forced = replace(natural(9), output=Output(max_new_tokens=9, forced=True))
        ids = model.generate(model.prepare(forced))[0].tolist()
        position = next(i for i in range(2, 9) if ids[i] not in ids[:i])
        no_event = SimpleNamespace(
            record=lambda: None, synchronize=lambda: None
        )  # a CPU has none, and nothing to wait for
        monkeypatch.setattr(torch, "Event", lambda **_: no_event)
        monkeypatch.setattr(utils.DeferredStopCheck, "is_supported", staticmethod(lambda *_, **__: True))
        monkeypatch.setattr(model.module.generation_config, "eos_token_id", ids[position])
        outcome = complete(model, prepare(model, natural(9)), [TimelineProbe()], [])
        values = outcome.values
        assert values["num_output_tokens"] == position + 1
        assert len(values["ITL"]) == position
        assert "undone_step" in outcome.flags
        assert values["T_undone_step"] > 0
        parts = (
            "T_setup",
            "T_vision_encoder",
            "T_projector",
            "T_LLM_prefill",
            "T_LLM_decode",
            "T_undone_step",
            "T_residual",
        )
        assert sum(values[name] for name in parts) == pytest.approx(values["T_total"])
        outcome = complete(model, prepare(model, forced), [TimelineProbe()], [])
        assert "undone_step" not in outcome.flags, "a forced length stops where it should"


@dataclass(frozen=True, kw_only=True)
class Failing:
    """A probe that fails at one place."""

    place: str
    error: Exception | None = None
    name = "failing"
    own_run = False
    max_output_tokens = None

    def applies(self, model: Any) -> bool:
        return True

    @contextmanager
    def watch(self, model: Any) -> Iterator[Watch]:
        self.at("enter")
        yield _Watch(self)
        self.at("exit")

    def at(self, place: str) -> None:
        if place == self.place:
            raise self.error or TypeError("unsupported operand: NoneType")


class _Watch(Watch):
    def __init__(self, probe: Failing) -> None:
        self.probe = probe

    def start(self) -> None:
        self.probe.at("start")

    def stop(self) -> None:
        self.probe.at("stop")

    def values(self, run: RunFacts) -> dict[str, Any]:
        self.probe.at("values")
        return {"of_probe": 1}


class TestProbes:
    @pytest.mark.parametrize("place", ["enter", "start", "stop", "exit", "values"])
    def test_a_probe_that_fails_costs_its_values_never_the_row(self, place: str) -> None:
        """codecarbon#1316: an energy counter that fails in mid-run."""
        model = PlantedModel(QUICK)
        outcome = complete(model, prepare(model, in_memory(request(3))), [Failing(place=place), TimelineProbe()], [])
        assert "of_probe" not in outcome.values
        assert "probe_failed:failing" in outcome.flags
        assert len(outcome.values["ITL"]) == 2, "the other probes go on"

    def test_one_that_works_is_not_flagged(self) -> None:
        model = PlantedModel(QUICK)
        outcome = complete(model, prepare(model, in_memory(request(3))), [Failing(place="nowhere")], [])
        assert outcome.values["of_probe"] == 1
        assert "probe_failed:failing" not in outcome.flags

    def test_one_that_cannot_work_here_is_refused(self) -> None:
        model = PlantedModel(QUICK)
        with pytest.raises(DeviceError, match="no such"):
            complete(
                model, prepare(model, in_memory(request(3))), [Failing(place="enter", error=DeviceError("no such"))], []
            )

    def test_a_failed_run_leaves_no_hook(self) -> None:
        class Broken(PlantedModel):
            def generate(self, prepared: Any, stopping_criteria: list[Any] | None = None) -> torch.Tensor:
                raise RuntimeError("planted")

        model = Broken(QUICK)
        with pytest.raises(RuntimeError, match="planted"):
            complete(model, prepare(model, in_memory(request(3))), [Failing(place="nowhere"), TimelineProbe()], [])
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())


class TestInputs:
    def test_images_that_the_model_does_not_see_are_no_plain_row(self, tmp_path: Path) -> None:
        class Blind(PlantedModel):
            def prepare(self, request: Request) -> Prepared:
                counts = TokenCounts(num_input_tokens=4, num_prompt_tokens=4, num_vision_tokens=0, num_images=1)
                return replace(super().prepare(request), count=lambda: counts)

        _, rows = measure(tmp_path, Blind(QUICK), dataset(2))
        assert {row["status"] for row in rows} == {"error"}
        assert all("sees no vision token" in row["reason"] for row in rows)

    def test_longer_than_the_positions_flags_a_request_and_skips_a_point(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("vlmbench.runner.guards.positions_of", lambda _: 20)
        _, rows = measure(tmp_path / "dataset", PlantedModel(QUICK), dataset(2))  # 20 input and 3 output tokens
        measured = [row for row in rows if row["status"] == "ok" and row["mode"] == "instrumented"]
        assert measured
        assert all("beyond_positions" in row["flags"] for row in measured)
        states, rows = measure(tmp_path / "sweep", PlantedModel(QUICK), sweep({"vision_tokens": [8, 40]}))
        by_point = {state.series.point_id: state for state in states}
        assert by_point["vision_tokens=40"].ended == "skipped"
        assert "more than the 20 positions" in str(by_point["vision_tokens=40"].reason)
        assert by_point["vision_tokens=8"].measured

    def test_a_point_far_larger_than_the_rest_is_warned_of(self) -> None:
        model = PlantedModel(QUICK)
        points = sweep({"vision_tokens": [4, 8, 16, 100_000]})
        assert "vision_tokens=100000 will take about" in str(much_larger(model, points))
        assert much_larger(model, points[:3]) is None

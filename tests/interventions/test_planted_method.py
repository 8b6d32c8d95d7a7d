"""A method whose effect is known to the nanosecond is measured by the real loop, and the report finds it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.test_runner import Silent
from vlmbench.analysis.frames import load_runs
from vlmbench.analysis.interventions import ArmResult, Verdict, arm_results, skipped_arms
from vlmbench.errors import UnreachablePointError, UnrestoredModelError
from vlmbench.interventions.marks import marks_of
from vlmbench.interventions.protocol import Intervention, Untouched
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.records.store import RecordStore
from vlmbench.report.interventions import summarise
from vlmbench.report.narrative.interventions import as_text
from vlmbench.report.table_cells import grids
from vlmbench.request import Output, Request
from vlmbench.runner.arms import Arms, arms
from vlmbench.runner.loop import Runner
from vlmbench.runner.plan import Knobs, sweep_series
from vlmbench.runner.warmup import Warmup
from vlmbench.stopping import Stopping
from vlmbench.sweep import Sweep
from vlmbench.testing import planted
from vlmbench.testing.planted import PlantedModel, Samples, SimulatedTime, Times

TIMES = Times(setup=1.0, vision=8.0, projector=2.0, prefill=20.0, decode=2.0, loop=0.5, tail=0.01, preprocess=0.5)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """Works for ``own_ms`` before the prefill, which it then makes ``share`` times as long."""

    own_ms: float = 3.0
    share: float = 0.5
    refused: bool = False
    leaves: str = ""

    name = "planted"

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {"own_ms": self.own_ms, "share": self.share}

    def request(self, request: Request, model: Any) -> Request:
        return request

    def attach(self, model: Any) -> Any:
        if self.leaves == "half":
            model.module.language.register_forward_hook(lambda *_: None)
        if self.refused or self.leaves == "half":
            raise UnreachablePointError("planted: this model has no such layer")
        return Working(model, self)


class Working(Untouched):
    def __init__(self, model: Any, spec: Planted) -> None:
        self.language, self.spec, self.marks = model.module.language, spec, marks_of(model.module)
        self.whole, self.was = model.module, self.language.prefill_ms
        self.language.prefill_ms = self.was * spec.share
        self.handle = self.language.register_forward_pre_hook(self.before)

    def before(self, *_: Any) -> None:
        if not self.language.calls and self.spec.own_ms:
            with self.marks.own_time():
                planted.wait(self.spec.own_ms)

    def detach(self) -> None:
        if self.spec.leaves == "hook":
            return
        self.handle.remove()
        self.language.prefill_ms = self.was
        if self.spec.leaves == "forward":
            self.language.forward = type(self.language).forward.__get__(self.language)
        if self.spec.leaves in ("module", "nothing"):
            self.whole.tower = planted.Waiting(8.0) if self.spec.leaves == "module" else None


def measure(directory: Path, method: Intervention, monkeypatch: pytest.MonkeyPatch, runs: int = 60) -> Any:
    """Rows of a comparison on a model whose runs wander as one process does: each like the one before it."""
    clock, wander = SimulatedTime(), random.Random(5)
    clock.install(monkeypatch)
    level = [3.0]

    def jitter(_: int) -> float:
        level[0] = max(0.1, 3.0 + 0.6 * (level[0] - 3.0) + wander.gauss(0, 0.3))
        return level[0]

    TIMES.jitter = jitter
    sweep = Sweep(name="none")
    rule = Stopping(min_samples=runs, max_samples=runs, min_time_s=0, max_time_s=600)
    knobs = Knobs(output=Output(max_new_tokens=8, forced=True))
    points = arms(sweep.points(), method, controls=True)
    series = sweep_series(Samples(1), 0, knobs, sweep, stopping=rule, bare_every=0, points=points)
    assert [one.beside for one in series] == [point.role != "method" for point in points]
    with RecordStore(directory) as store:
        runner = Runner(
            model=PlantedModel(TIMES),
            probes=[TimelineProbe()],
            store=store,
            warmup=Warmup(max_runs=1),
            seed=0,
            progress=Silent(),
        )
        runner.run(series)
    return load_runs(directory)


def only(frame: Any) -> ArmResult:
    (arm,) = arm_results(frame)
    return arm


def inside(saving: Any, truth: float) -> bool:
    return bool(saving.saved.low <= truth <= saving.saved.high)


def test_a_method_that_works_3_ms_and_halves_the_prefill_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = measure(tmp_path, Planted(), monkeypatch)
    arm = only(frame)
    assert arm.pairs == 60
    assert arm.controls is None, "none was run, so none can be slower"
    assert arm.method_ms == pytest.approx({"total": 3.0, "LLM_prefill": 3.0}, abs=1e-3)
    for metric in ("T_total", "T_LLM_prefill", "TTFT"):
        assert inside(arm.savings[metric], 20.0 / 2 - 3.0), metric
        assert arm.savings[metric].verdict is Verdict.FASTER
    for metric in ("T_vision_encoder", "T_projector", "T_LLM_decode"):
        assert arm.savings[metric].saved.value == pytest.approx(0.0, abs=1e-3), metric
    summary = summarise(frame, [arm], {}, {})
    text = as_text(summary)
    assert "planted (own_ms=3.0, share=0.5): generate() is" in text
    assert "faster" in text
    assert "Its own work takes 3.00 ms of that (3.00 ms in LLM_prefill)" in text
    assert "less than 5 % of generate()" in text
    names = [grid.name for grid in grids(summary)]
    assert names == ["interventions", "latency_scope"]


def test_a_method_that_does_nothing_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = measure(tmp_path, Planted(own_ms=0.0, share=1.0), monkeypatch)
    arm = only(frame)
    assert arm.savings["T_total"].verdict is Verdict.NO_DIFFERENCE
    assert arm.savings["T_total"].beyond is not None
    assert 0 < arm.savings["T_total"].beyond < 0.02
    assert arm.method_ms == {}
    assert "generate() shows no difference beyond 0." in as_text(summarise(frame, [arm], {}, {}))


def test_a_method_that_only_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = only(measure(tmp_path, Planted(own_ms=2.0, share=1.0), monkeypatch))
    assert arm.savings["T_total"].verdict is Verdict.SLOWER
    assert inside(arm.savings["T_total"], -2.0)
    assert arm.drowned_after is None


def test_how_long_an_answer_drowns_the_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = only(measure(tmp_path, Planted(own_ms=0.0, share=0.5), monkeypatch))
    # 10 ms saved of first + 2.5 (n - 1): 5 % where the baseline takes 200 ms; first is 34 ms with 3 ms of jitter
    assert arm.drowned_after is not None
    assert arm.drowned_after[0] == pytest.approx((200 - 34) / 2.5 + 1, abs=2)


def test_a_refused_method_is_a_skipped_arm_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = measure(tmp_path, Planted(refused=True), monkeypatch, runs=5)
    assert arm_results(frame) == []
    (arm,) = skipped_arms(frame)
    assert arm["reason"] == "planted: this model has no such layer"
    assert arm["arm"].startswith("intervention=planted")
    assert "could not be run" in as_text(summarise(frame, [], {}, {}))


def test_the_model_is_as_it_was_between_the_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = measure(tmp_path, Planted(own_ms=30.0), monkeypatch, runs=6)
    baseline = frame[(frame["intervention"] == "none") & (frame["status"] == "ok")]
    assert baseline["T_LLM_prefill"].max() < 27  # 20 and jitter: nothing of the method's 30 ms
    assert "T_method" not in baseline or baseline["T_method"].isna().all()


@pytest.mark.parametrize(
    ("leaves", "what"),
    [
        ("hook", "a hook before the forward of 'language'"),
        ("forward", "'forward' of 'language'"),
        ("half", "a hook after the forward of 'language'"),  # refused when half of it was attached
        ("module", "'tower' is another module"),
        ("nothing", "a Waiting is missing"),
    ],
)
def test_a_method_that_leaves_something_on_the_model_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: str, what: str
) -> None:
    told = f"method 'planted' left the model changed: {what}\nIts detach\\(\\) must undo"
    with pytest.raises(UnrestoredModelError, match=told):
        measure(tmp_path, Planted(leaves=leaves), monkeypatch, runs=6)
    frame = load_runs(tmp_path)
    assert set(frame.loc[frame["status"] == "ok", "intervention"]) <= {"none"}, (
        "nothing of the method was measured, and nothing after it"
    )
    assert not (frame["status"] == "error").any()


def test_a_method_that_leaves_something_in_its_proof_is_found_there() -> None:
    class Proving(Planted):
        def prove(self, model: Any, prepared: Any) -> Mapping[str, Any]:
            model.module.tower.register_forward_hook(lambda *_: None)
            return {"words": "holds"}

    model = PlantedModel(TIMES)
    (arm,) = [arm for arm in arms(Sweep(name="none").points(), Proving(), controls=False) if arm.role == "method"]
    asked = arm.apply(planted.request())
    with pytest.raises(UnrestoredModelError, match="a hook after the forward of 'tower'"):
        Arms(model=model).ready("p", asked, model.prepare(asked))

"""Rules of one run: what may happen around generate(), and what must not happen inside it."""

from __future__ import annotations

import ast
import gc
from pathlib import Path
from typing import Any

import pytest
import torch

import vlmbench
from tests.probes.fake_cuda import FakeCuda, OnFakeCuda
from tests.test_runner import dataset, measure
from vlmbench.probes.clocks import ClocksProbe
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.runner.execution import collector_at_rest, complete, in_memory, prepare
from vlmbench.testing.planted import PlantedModel, Times, request

QUICK = Times(*[0.0] * 9)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    monkeypatch.setattr("vlmbench.probes.clocks.gpus_of", lambda *_: [])
    return fake


class Logging(OnFakeCuda):
    """Writes into the log where ``generate()`` begins and ends."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__(QUICK)
        self.cuda = cuda

    def generate(self, prepared: Any, stopping_criteria: list[Any] | None = None) -> torch.Tensor:
        self.cuda.log.append(("enter", 0))
        tokens = super().generate(prepared, stopping_criteria)
        self.cuda.log.append(("leave", 0))
        return tokens


@pytest.mark.parametrize("probes", [[TimelineProbe(), ClocksProbe()], []], ids=["instrumented", "bare"])
@pytest.mark.parametrize("devices", [1, 2])
def test_the_device_is_idle_at_both_ends_and_never_waited_for_inside(
    cuda: FakeCuda, probes: list[Any], devices: int
) -> None:
    model = Logging(cuda)
    model.count = devices
    complete(model, prepare(model, in_memory(request(8))), probes, [])
    names = [name for name, _ in cuda.log]
    enter, leave = names.index("enter"), names.index("leave")
    inside = names[enter + 1 : leave]
    assert set(inside) <= {"record"}
    # Both ends of tower and projector, the decoder's first, then both ends of each step and its token.
    assert len(inside) == (2 * 2 + 1 + 8 * 3 if probes else 0)
    before = names[:enter]
    began = len(before) - before[::-1].index("synchronize")
    assert before[began - devices : began] == ["synchronize"] * devices
    first_marks = [*["current_stream", "record"] * devices, "record"]
    assert before[began:] == (first_marks if probes else []), "events were made before the device was waited for"
    after = names[leave + 1 :]
    assert after.count("synchronize") == devices
    closing = after.index("synchronize")
    assert after[:closing] == (["record"] if probes else []), "the last mark, then the device is waited for"
    assert "elapsed_time" not in names[: leave + 1 + closing], "marks are read after the run"


def test_memory_is_not_given_back_inside_a_measurement(cuda: FakeCuda) -> None:
    model = Logging(cuda)
    for _ in range(3):
        complete(model, prepare(model, in_memory(request(2))), [TimelineProbe()], [])
    assert cuda.count("empty_cache") == 0


def test_memory_is_given_back_only_after_an_out_of_memory_error() -> None:
    """The only call of ``empty_cache`` in the package is the one that follows a failed run."""
    callers = set()
    for path in Path(vlmbench.__file__).parent.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and any(
                isinstance(node, ast.Attribute) and node.attr == "empty_cache" for node in ast.walk(function)
            ):
                callers.add((path.name, function.name))
    assert callers == {("transformers_model.py", "release")}


class TestCollector:
    @pytest.mark.usefixtures("freezing")
    def test_it_is_frozen_and_off_inside_and_as_before_afterwards(self) -> None:
        assert gc.isenabled()
        with collector_at_rest() as collected:
            assert not gc.isenabled()
            assert gc.get_freeze_count() > 1000, "what lives already is looked at no more"
            for _ in range(100_000):  # hundreds of collections otherwise
                cycle: list[Any] = []
                cycle.append(cycle)
            assert collected == []
        assert gc.isenabled()
        assert gc.get_freeze_count() == 0

    def test_one_that_was_off_stays_off(self) -> None:
        gc.disable()
        try:
            with collector_at_rest():
                pass
            assert not gc.isenabled()
        finally:
            gc.enable()

    def test_it_is_as_before_after_a_failure(self) -> None:
        with pytest.raises(RuntimeError, match="planted"), collector_at_rest():
            raise RuntimeError("planted")
        assert gc.isenabled()
        assert not [c for c in gc.callbacks if "collector_at_rest" in getattr(c, "__qualname__", "")]

    def test_a_collection_within_a_run_is_flagged_on_that_run_only(self) -> None:
        collects = iter([False, True, False])

        class Collecting(PlantedModel):
            def generate(self, prepared: Any, stopping_criteria: list[Any] | None = None) -> torch.Tensor:
                if next(collects):
                    gc.collect()
                return super().generate(prepared, stopping_criteria)

        model = Collecting(QUICK)
        with collector_at_rest() as collected:
            paused = []
            for _ in range(3):
                run = prepare(model, in_memory(request(2)))
                gc.collect(0)  # between runs: nobody's pause
                paused.append("gc_pause" in complete(model, run, [], collected).flags)
        assert paused == [False, True, False]

    def test_the_measurement_loop_keeps_it_at_rest(self, tmp_path: Path) -> None:
        seen: list[bool] = []

        class Looking(PlantedModel):
            def generate(self, prepared: Any, stopping_criteria: list[Any] | None = None) -> torch.Tensor:
                seen.append(gc.isenabled())
                return super().generate(prepared, stopping_criteria)

        _, rows = measure(tmp_path, Looking(QUICK), dataset(4))
        assert len(seen) == len(rows) > 16
        assert set(seen) == {False}
        assert not any("gc_pause" in row["flags"] for row in rows)
        assert gc.isenabled()

    def test_rows_say_how_the_collector_was(self) -> None:
        model = PlantedModel(QUICK)
        assert complete(model, prepare(model, in_memory(request(2))), [], []).values["gc"] == "frozen"


class Inside(PlantedModel):
    """Moves inputs and makes text within ``generate()``, as engines do."""

    def own_columns(self) -> dict[str, Any]:
        return {"T_transfer": None, "T_detokenize": None}


def test_what_an_engine_does_inside_is_no_part_around_it() -> None:
    model = Inside(QUICK)
    values = complete(model, prepare(model, in_memory(request(4))), [TimelineProbe()], []).values
    assert values["T_request"] == values["T_preprocess"] + values["T_total"]
    assert values["TTFT"] == values["T_preprocess"] + values["TTFT_model"]
    assert values["T_transfer"] is None

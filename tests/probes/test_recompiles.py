"""A run that compiles something is flagged, with a real torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.probes.test_kernels import tiny_request
from vlmbench.probes.recompiles import RecompilesProbe, frames_taken_up
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.runner.execution import complete, in_memory, prepare
from vlmbench.testing.planted import PlantedModel, Times, request

QUICK = Times(*[0.0] * 9)


class Compiling(PlantedModel):
    """Its decode calls a compiled function on a tensor of the given size."""

    def __init__(self) -> None:
        super().__init__(QUICK)
        self.compiles = True
        self.size = 3
        self.double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)

    def generate(self, prepared: Any, stopping_criteria: list[Any] | None = None) -> torch.Tensor:
        self.double(torch.ones(self.size))
        return super().generate(prepared, stopping_criteria)


def run(model: PlantedModel) -> tuple[int, bool]:
    outcome = complete(model, prepare(model, in_memory(request(2))), [TimelineProbe(), RecompilesProbe()], [])
    return outcome.values["compiled_frames"], "recompiled" in outcome.flags


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_run_that_compiles_is_flagged_and_a_warm_one_is_not() -> None:
    model = Compiling()
    assert RecompilesProbe().applies(model)
    assert run(model) == (1, True)  # the first time
    assert [run(model) for _ in range(3)] == [(0, False)] * 3
    model.size = 4
    assert run(model) == (1, True)  # a guard failed
    assert run(model) == (0, False)
    model.size = 3
    assert run(model) == (0, False)  # both are kept


def test_what_compiles_between_runs_is_not_the_runs() -> None:
    model = Compiling()
    run(model)
    before = frames_taken_up()
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    assert frames_taken_up() == before + 1
    assert run(model) == (0, False)


def test_it_is_left_out_where_nothing_is_compiled() -> None:
    assert not RecompilesProbe().applies(PlantedModel(QUICK))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning")  # advice of torch's compiler (TF32, an empty graph), as errors
def test_the_compiled_decode_of_a_real_model() -> None:
    """Where transformers compiles: the first answer compiles, the same request then does not."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from tests.models.shipped import loaded, spec

    model = loaded(spec("tiny"), device="cuda", cache_implementation="static", compile=True, seed=0)
    flags = []
    for _ in range(4):
        outcome = complete(model, prepare(model, in_memory(tiny_request(8))), [RecompilesProbe()], [])
        flags.append("recompiled" in outcome.flags)
    assert flags[0] is True
    assert flags[-1] is False

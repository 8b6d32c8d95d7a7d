"""What is constant in a stage's code, and towers that are captured for what their grid holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.engines.replaying import Replaying
from tests.engines.test_cudagraph import loaded, loop_of, prepared
from tests.models.shipped import request
from vlmbench.engines.constants import Constants
from vlmbench.engines.cudagraph import GraphLoop, GraphSettings
from vlmbench.engines.stage_graphs import Stage, StageGraphs
from vlmbench.errors import ModelError
from vlmbench.models.anatomy.find import find_anatomy
from vlmbench.models.protocol import Prepared
from vlmbench.request import Output
from vlmbench.testing.tiny_models import generate, tiny_inputs, tiny_model

# ------------------------------------------------------------------------------------------- what is constant, and what
# is not


class Worked:
    """Work on pixels and a grid, recorded as a graph would be."""

    def __init__(self, work: Callable[[torch.Tensor, torch.Tensor], Any], grid: tuple[int, ...] = (2, 3)) -> None:
        self.pixels, self.grid = torch.arange(6.0), torch.tensor(grid)
        self.eager = lambda: work(self.pixels, self.grid)
        self.constants = Constants(roots=[self.grid])
        with torch.no_grad():
            self.constants.learn(self.eager)
            recorder, handed = Replaying(), self.constants.handed_out(self.eager)
            why_not = recorder.obstacle(handed)
            assert why_not is None, why_not
            self.play = recorder.record(handed)

    def agrees(self) -> bool:
        """Whether replays answer as the work does, for pixels that it has not seen."""
        found = []
        for seed in (0, 1):
            self.pixels.copy_(torch.rand(6, generator=torch.Generator().manual_seed(seed)))
            found.append(torch.equal(self.play(), self.eager()))
            found.append(torch.equal(self.play(), self.eager()))  # nothing that one replay wrote is read by the next
        return all(found)


def by_the_grid(pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """As towers do: lengths and an order from the grid, on the host."""
    lengths = torch.repeat_interleave(grid, 1).tolist()
    index = torch.tensor([at for at in reversed(range(sum(lengths))) if at != 1], device=grid.device)
    order = torch.cat([index, index.new_tensor([1])])
    ends = torch.unique_consecutive(torch.tensor([0, *lengths]).cumsum(0)).tolist()
    parts = [pixels[order][begin:end].cumsum(0) for begin, end in zip(ends, ends[1:], strict=False)]
    return torch.cat([*parts, pixels[sum(lengths) :]])


def written_before_it_is_read(pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    weights = torch.zeros(6)
    for at, length in enumerate(grid.tolist()):
        weights[at : at + length] += length
    return pixels * weights


def written_after_it_was_read(pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    weights = torch.ones(6) * grid[0]
    first = pixels * weights
    weights += 1
    return first + weights


def pixels_are_added_up_in_it(pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(int(grid[0]), 6)
    views = out.view(-1)
    out[0] += pixels
    views[6:] += 2 * pixels[: out.numel() - 6]
    return out.sum(0) + torch.zeros(6).add_(pixels)


def a_mask_of_the_grid(pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    mask = torch.arange(6) < grid[1]
    out = pixels.clone()
    out[mask] = pixels[mask] * 3
    out.view(2, 3)[mask.view(2, 3)] += 1
    return out


WORKS = (
    by_the_grid,
    written_before_it_is_read,
    written_after_it_was_read,
    pixels_are_added_up_in_it,
    a_mask_of_the_grid,
)


@pytest.mark.parametrize("work", WORKS, ids=[work.__name__ for work in WORKS])
def test_replays_answer_as_the_code_does(work: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    assert Worked(work).agrees()


def test_what_is_random_is_no_constant() -> None:
    worked = Worked(lambda pixels, grid: pixels + torch.rand(int(grid[0]), 6).sum(0))
    assert not torch.equal(worked.play().clone(), worked.play())


def test_an_answer_that_is_a_constant_is_made_anew() -> None:
    worked = Worked(lambda _, grid: grid * 2)
    worked.play().zero_()
    assert worked.play().tolist() == [4, 6]


def test_work_that_writes_to_its_inputs_is_refused() -> None:
    with pytest.raises(RuntimeError, match="writes to its inputs"):
        Worked(lambda pixels, grid: pixels * grid.add_(1)[0])


def test_another_path_than_the_one_that_was_learned_is_refused() -> None:
    pixels, grid, offset = torch.ones(2), torch.tensor([2, 3]), [1]
    work = lambda: pixels[: int(grid[0])] + torch.tensor([*offset, 5])  # noqa: E731
    constants = Constants(roots=[grid])
    constants.learn(work)
    handed = constants.handed_out(work)
    assert handed().tolist() == [2, 6]
    offset[0] = 2
    with pytest.raises(RuntimeError, match="another path"):
        handed()
    longer = constants.handed_out(lambda: work() * 2)
    offset[0] = 1
    with pytest.raises(RuntimeError, match="operators, and"):
        longer()


def test_constants_of_the_host_lie_on_the_device_where_work_reads_them() -> None:
    grid, pixels = torch.tensor([2, 0, 1]), torch.empty(3, 4, device="meta")
    seen: list[torch.Tensor] = []

    def work() -> torch.Tensor:
        host = torch.arange(3)[grid]
        seen.append(torch.tensor([1.0, 2.0], device="meta"))
        pixels.copy_(torch.ones(3, 4) * grid[0])
        return pixels[host]

    constants = Constants(roots=[grid])
    constants.learn(work)
    assert constants.handed_out(work)().shape == (3, 4)
    moved = [tensor.device.type for found in constants.instead.values() for new in found.values() for tensor in new]
    assert moved == ["meta", "meta"]  # the index, and what is copied
    made = [kept.func.overloadpacket for kept in constants.kept.values()]
    assert torch.ops.aten.lift_fresh in made
    assert torch.ops.aten._to_copy in made  # the copy of Python's values is an operator


# --------------------------------------------------------------------------------------------- towers that read a grid


@pytest.fixture
def as_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> Callable[[Replaying], None]:
    """Let transformers see that a stream is captured, where one would be: some of its code then goes another way."""

    def tell(recorder: Replaying) -> None:
        monkeypatch.setattr(
            "transformers.utils.import_utils.is_cuda_stream_capturing", lambda: recorder.recording, raising=True
        )

    return tell


GRIDS = {"qwen2_5_vl_7b": ((112, 84), (84, 112)), "internvl3_8b": ()}


def test_a_tower_is_captured_for_what_its_grid_holds(as_in_a_capture: Callable[[Replaying], None]) -> None:
    model = loaded("qwen2_5_vl_7b")
    loop = loop_of(model, Replaying)
    as_in_a_capture(loop.recorder)
    wide, high = (prepared(model, size=size, new_tokens=6) for size in ((112, 84), (84, 112)))
    assert wide.inputs["pixel_values"].shape == high.inputs["pixel_values"].shape
    assert wide.inputs["image_grid_thw"].tolist() != high.inputs["image_grid_thw"].tolist()
    for asked, graphs in ((wide, 1), (high, 2), (wide, 2), (high, 2)):
        asked.inputs["pixel_values"] = torch.randn_like(asked.inputs["pixel_values"])
        assert loop.generate(asked).tolist() == model.generate(asked).tolist()
        stage = loop.facts["stages"]["vision_encoder"]
        assert (stage["graphs"], stage["of_contents"], stage["eager"]) == (graphs, graphs, [])
    assert loop.missed == 0

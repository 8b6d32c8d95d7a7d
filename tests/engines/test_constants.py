"""What is constant in a stage's code, and towers that are captured for what their grid holds."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten

from tests.engines.replaying import Replaying
from tests.engines.test_cudagraph import loaded, loop_of, prepared, talkative
from vlmbench.engines.capture import _where
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
    parts = [pixels[order][begin:end].cumsum(0) for begin, end in itertools.pairwise(ends)]
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


def test_the_line_that_waits_is_the_models_wherever_it_is_installed() -> None:
    code = "def forward(x):\n    return [x for x in x.expand(2, -1, -1, 0)]\n"
    made: dict[str, Any] = {}
    exec(compile(code, "/opt/torch/lib/site-packages/transformers/modeling_x.py", "exec"), made)
    pixels = torch.ones(1)
    handed = Constants(roots=[pixels]).handed_out(lambda: made["forward"](pixels))
    with pytest.raises(RuntimeError) as caught, torch.no_grad():
        handed()
    assert _where(caught.value) == "forward (line 2) makes the host wait for the device"


# ------------------------------------------------------------------------------------------------ towers that read a grid


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Replaying:
    """A recorder whose captures can be asked for, as those of a device can: some code then goes another way."""
    made = Replaying()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: made.recording)
    return made


def drawn(asked: Prepared) -> Prepared:
    """The request with pixels that were not seen yet."""
    asked.inputs["pixel_values"] = torch.randn_like(asked.inputs["pixel_values"])
    return asked


def test_a_tower_is_captured_for_what_its_grid_holds(recorder: Replaying) -> None:
    model = loaded("qwen2_5_vl_7b")
    loop = loop_of(model, lambda: recorder)
    wide, high = (prepared(model, size=size, new_tokens=6) for size in ((112, 84), (84, 112)))
    assert wide.inputs["pixel_values"].shape == high.inputs["pixel_values"].shape
    assert wide.inputs["image_grid_thw"].tolist() != high.inputs["image_grid_thw"].tolist()
    graphs = 0
    for asked, new in ((wide, True), (high, True), (wide, False), (high, False)):
        graphs += new
        want = model.generate(drawn(asked))
        assert (loop.ready(asked, lambda asked=asked: asked.inputs) > 0) == new
        assert loop.generate(asked).tolist() == want.tolist()
        stage = loop.facts["stages"]["vision_encoder"]
        assert (stage["graphs"], stage["of_contents"], stage["eager"]) == (graphs, graphs, [])
    assert loop.missed == 0


class Elsewhere(Prepared):
    """Inputs on a device, whose contents are not looked at before they are needed."""

    cut = property(lambda _: {})  # type: ignore[assignment]


def test_what_was_made_ready_on_the_host_is_ready_on_the_device(recorder: Replaying) -> None:
    model = loaded("qwen2_5_vl_7b")
    loop = loop_of(model, lambda: recorder)
    for size in ((168, 168), (112, 84), (84, 112), (140, 112)):  # the longest first: no cache grows
        asked = prepared(model, size=size, new_tokens=4)
        moved = Elsewhere(inputs=asked.inputs, count=asked.count, output=asked.output)
        assert loop.ready(asked, lambda asked=asked: asked.inputs) > 0
        captures = loop.facts["shapes"]
        assert loop.generate(moved).tolist() == model.generate(asked).tolist()
        assert (loop.facts["shapes"], loop.missed) == (captures, 0)


def test_contents_that_are_not_captured_run_as_python(recorder: Replaying) -> None:
    model = loaded("qwen2_5_vl_7b")
    tower = model.module.get_submodule(model.anatomy.vision_encoder[0])
    wide, high = (prepared(model, size=size).inputs for size in ((112, 84), (84, 112)))
    graphs = StageGraphs(recorder=recorder, stages=[Stage(name="vision_encoder", module=tower)])
    grid = wide["image_grid_thw"].clone()

    def answer() -> torch.Tensor:
        return tower(wide["pixel_values"], grid_thw=grid).pooler_output.clone()

    with torch.no_grad():
        of_wide = answer()
        with graphs.learn():
            answer()
        with graphs.installed():
            assert torch.equal(answer(), of_wide)
            replays = recorder.replays
            assert graphs.missed == 0
            grid.copy_(high["image_grid_thw"])  # the same tensor, with other contents
            of_high = answer()
            assert (graphs.missed, recorder.replays) == (1, replays)
            grid.copy_(wide["image_grid_thw"])
            assert torch.equal(answer(), of_wide)
            assert (graphs.missed, recorder.replays) == (1, replays + 1)
        grid.copy_(high["image_grid_thw"])
        assert torch.equal(answer(), of_high)
        assert not torch.equal(of_high, of_wide)


class Watched:
    """A tiny model's loop, with what its stages give and which modules inside its towers run."""

    def __init__(self, name: str, recorder: Replaying) -> None:
        self.module = tiny_model(name)
        self.module.generation_config.eos_token_id = None
        talkative(self.module, 0.1, 2.0)
        anatomy = find_anatomy(self.module)
        self.loop = GraphLoop(
            module=self.module,
            anatomy=anatomy,
            device=torch.device("cpu"),
            settings=GraphSettings(cache_step=8),
            recorder=recorder,
        )
        inputs = tiny_inputs(name, self.module)
        self.asked = Prepared(inputs=inputs, count=lambda: None, output=Output(max_new_tokens=6, forced=True))
        self.given: list[tuple[str, list[torch.Tensor]]] = []
        self.inside: list[str] = []
        stages = {path: stage for stage, paths in anatomy.stages() for path in paths if stage in STAGES}
        inside = tuple(f"{path}." for path, stage in stages.items() if stage == "vision_encoder")
        for path, module in self.module.named_modules():
            if path in stages:
                module.register_forward_hook(self._give(stages[path]))
            elif path.startswith(inside):
                module.register_forward_hook(lambda *_, path=path: self.inside.append(path))

    def _give(self, stage: str) -> Callable[..., None]:
        def give(_module: Any, _inputs: Any, out: Any) -> None:
            self.given.append((stage, [leaf.clone() for leaf in tree_flatten(out)[0] if torch.is_tensor(leaf)]))

        return give

    def run(self, *, eager: bool) -> tuple[list[list[int]], list[tuple[str, list[torch.Tensor]]]]:
        """Tokens, and what each stage of the prefill gave."""
        self.given.clear()
        self.inside.clear()
        tokens = generate(self.module, self.asked.inputs, 6)[:, -6:] if eager else self.loop.generate(self.asked)
        return tokens.tolist(), [(stage, list(out)) for stage, out in self.given]


STAGES = ("vision_encoder", "projector")


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen2_vl", "glm4v", "smolvlm", "mistral3", "paddleocr_vl"])
def test_replays_give_what_the_tower_gives_bit_for_bit(name: str, recorder: Replaying) -> None:
    watched = Watched(name, recorder)
    watched.run(eager=False)
    for _ in range(2):
        drawn(watched.asked)
        want, of_code = watched.run(eager=True)
        assert watched.inside
        got, of_replays = watched.run(eager=False)
        assert got == want
        assert [stage for stage, _ in of_replays] == [stage for stage, _ in of_code]  # a mark for each, in order
        for (_, one), (_, other) in zip(of_replays, of_code, strict=True):
            assert all(map(torch.equal, one, other))
        assert watched.inside == [], "Python of the tower ran in a replay"
    facts = watched.loop.facts["stages"]
    assert facts["vision_encoder"]["of_contents"] == 1
    assert watched.loop.missed == 0


def test_a_decoder_that_a_method_changes_is_not_compiled(recorder: Replaying) -> None:
    stage = Stage(name="language_model", module=torch.nn.Linear(2, 2), variant="method", compiler=lambda work: work)
    graphs = StageGraphs(recorder=recorder, stages=[stage])
    with graphs.learn(), pytest.raises(ModelError, match="Linear cannot be compiled and captured: a method changes"):
        stage.module(torch.ones(1, 2))


def hooked(name: str, recorder: Replaying, hook: Callable[[torch.Tensor], torch.Tensor]) -> Watched:
    """A loop whose tower does something more with the first thing that it makes of pixels."""
    watched = Watched(name, recorder)
    first = next(m for path, m in watched.module.named_modules() if path.endswith("patch_embed"))
    first.register_forward_hook(lambda _module, _inputs, out: hook(out))
    return watched


def test_a_tower_that_reads_pixels_on_the_host_runs_as_python(recorder: Replaying) -> None:
    watched = hooked("qwen2_5_vl", recorder, lambda out: out * (1 + out.sum().item()))
    watched.run(eager=False)
    drawn(watched.asked)
    assert watched.run(eager=False)[0] == watched.run(eager=True)[0]
    facts = watched.loop.facts["stages"]["vision_encoder"]
    assert (facts["graphs"], facts["of_contents"]) == (0, 0)
    assert facts["eager"] == ["called a synchronizing operation: _local_scalar_dense"]


def test_code_that_fails_while_it_is_followed_runs_as_python(
    recorder: Replaying, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise TypeError("no such argument")

    monkeypatch.setattr(Constants, "learn", fails)
    watched = Watched("qwen2_5_vl", recorder)
    assert watched.run(eager=False)[0] == watched.run(eager=True)[0]
    assert watched.loop.facts["stages"]["vision_encoder"]["eager"] == ["its capture failed: no such argument"]


def test_what_does_not_fit_is_no_reason_to_run_as_python(recorder: Replaying, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    monkeypatch.setattr(Constants, "learn", fails)
    with pytest.raises(torch.OutOfMemoryError, match="3 GiB"):
        Watched("qwen2_5_vl", recorder).run(eager=False)


def test_what_was_wrongly_taken_for_a_constant_is_seen(recorder: Replaying) -> None:
    # A way past every mode: on a device it would be an error, as reading from one always is.
    watched = hooked("qwen2_5_vl", recorder, lambda out: out + torch.tensor(float(out.numpy().sum())))
    watched.run(eager=False)
    drawn(watched.asked)
    assert watched.run(eager=False)[0] == watched.run(eager=True)[0]
    facts = watched.loop.facts["stages"]["vision_encoder"]
    assert (facts["graphs"], facts["of_contents"]) == (0, 0)
    assert "off from its code's answer" in facts["eager"][0]

"""Real CUDA graphs: tokens of eager ``generate()``, marks outside the graphs, refusals that leave the device usable."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.engines.test_cudagraph import narrow_molmo, small, talkative
from tests.interventions.test_captured import Asked, compare_arms
from tests.interventions.tiny import redraw
from tests.models.shipped import loaded as loaded_spec
from tests.models.shipped import request, shrunken
from vlmbench.engines.attention import grouped
from vlmbench.engines.capture import CudaGraphs
from vlmbench.engines.cudagraph import GraphLoop, GraphSettings
from vlmbench.errors import ModelError
from vlmbench.interventions.keep_after_projector import KeepAfterProjector
from vlmbench.models.anatomy.find import find_anatomy
from vlmbench.models.protocol import Prepared
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.request import Output
from vlmbench.runner.arms import METHOD, ArmOf
from vlmbench.runner.execution import complete, prepare
from vlmbench.testing.tiny_models import generate, tiny_inputs, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NAMES = ("llava_1_5_7b", "qwen2_5_vl_7b", "molmo_7b_d")


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_gpu(name: str, **settings: Any) -> TransformersModel:
    made = narrow_molmo(name) if name.startswith("molmo") else shrunken(name)
    model = loaded_spec(made, device="cuda", dtype="float32", attn_implementation="sdpa")
    talkative(model.module)
    model.loop = GraphLoop(
        module=model.module,
        anatomy=model.anatomy,
        device=model.device,
        settings=GraphSettings(**{"cache_step": 8, **settings}),
    )
    return model


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_eager_generate(name: str) -> None:
    model = on_gpu(name)
    loop, model.loop = model.loop, None
    assert loop is not None
    for question, tokens in (("What color is the cat?", 10), ("Where is it?", 6), ("What color is the cat?", 10)):
        inputs = model.transfer(model.prepare(request(size=small(name), question=question, new_tokens=tokens)))
        assert loop.generate(inputs).tolist() == model.generate(inputs).tolist()
    assert loop.facts["captured"] is True


def test_a_tower_is_captured_for_what_its_grid_holds() -> None:
    model = on_gpu("qwen2_5_vl_7b")
    loop, model.loop = model.loop, None
    assert loop is not None
    for size in ((112, 84), (84, 112), (112, 84)):  # of equal shape
        asked = model.prepare(request(size=size, new_tokens=8))
        inputs = model.transfer(asked)
        loop.ready(asked, lambda inputs=inputs: inputs.inputs)
        inputs.inputs["pixel_values"] = torch.randn_like(inputs.inputs["pixel_values"])
        assert loop.generate(inputs).tolist() == model.generate(inputs).tolist()
    stage = loop.facts["stages"]["vision_encoder"]
    assert (stage["graphs"], stage["of_contents"], stage["eager"]) == (2, 2, [])
    assert loop.missed == 0


@pytest.mark.parametrize("name", ["qwen3_vl", "glm4v", "mistral3", "internvl", "smolvlm", "gemma3", "paligemma"])
def test_tokens_of_other_architectures(name: str) -> None:
    module = tiny_model(name)
    talkative(module, 0.1, 2.0)
    module = module.cuda()
    module.generation_config.eos_token_id = None
    inputs = {n: v.cuda() if hasattr(v, "cuda") else v for n, v in tiny_inputs(name, tiny_model(name)).items()}
    loop = GraphLoop(module=module, anatomy=find_anatomy(module), device=torch.device("cuda"))
    for last in (5, 77, 5):
        inputs["input_ids"][:, -1] = last
        asked = Prepared(inputs=inputs, count=lambda: None, output=Output(max_new_tokens=12, forced=True))
        assert loop.generate(asked).tolist() == generate(module, inputs, 12)[:, -12:].tolist()
    assert [stage["eager"] for stage in loop.facts["stages"].values()] == [[], [], []]


def test_stages_are_seen_around_replays_and_nothing_is_captured_in_a_measured_run() -> None:
    model = on_gpu("internvl3_8b")
    run = prepare(model, request(size=(448, 448), new_tokens=6))
    first = complete(model, run, [TimelineProbe()], [])
    assert first.values["T_capture"] > 0
    values = complete(model, run, [TimelineProbe()], []).values
    assert "T_capture" not in values
    parts = ("T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode")
    assert all(values[name] > 0 for name in parts)
    assert values["T_decode_forward"] > 0
    assert len(values["ITL"]) == 5
    assert sum(values[name] for name in parts) + values["T_residual"] == pytest.approx(values["T_total"])


@pytest.mark.parametrize("name", NAMES)
def test_arms_give_the_answers_of_the_same_arms_run_as_python(name: str) -> None:
    model = on_gpu(name)
    redraw(model.module.cpu())
    model.module.to(model.device)
    asked = Asked(name, lambda: CudaGraphs(model.device), tokens=12, model=model)
    compare_arms(asked, encoder=name != "molmo_7b_d")
    assert asked.loop.facts["captured"] is True


def test_a_methods_own_time_is_told_around_replays() -> None:
    model = on_gpu("llava_1_5_7b")
    arm = ArmOf(method=KeepAfterProjector(keep=0.5, selector="encoder_attention"), role=METHOD)
    run = prepare(model, replace(request(size=(336, 336), new_tokens=6), intervention=arm))
    assert complete(model, run, [TimelineProbe()], []).values["T_capture"] > 0
    values = complete(model, run, [TimelineProbe()], []).values
    assert "T_capture" not in values
    assert values["T_method_vision_encoder"] > 0
    assert values["T_method_LLM_prefill"] > 0
    assert values["num_vision_tokens_kept"] == 288


def test_a_natural_answer_ends_where_generate_ends() -> None:
    model = on_gpu("llava_1_5_7b")
    loop, model.loop = model.loop, None
    assert loop is not None
    free = model.generate(model.transfer(model.prepare(request(size=(336, 336), new_tokens=12))))
    config = model.module.generation_config
    config.eos_token_id = int(free[0, 6])
    again = GraphLoop(module=model.module, anatomy=model.anatomy, device=model.device)
    natural = model.transfer(model.prepare(request(size=(336, 336), new_tokens=12, forced=False)))
    assert again.generate(natural).tolist() == model.generate(natural).tolist()


def test_a_step_that_waits_is_refused_and_the_device_goes_on() -> None:
    model = on_gpu("llava_1_5_7b")
    head = model.module.get_submodule(model.anatomy.head[0])
    inputs = model.transfer(model.prepare(request(size=(336, 336), new_tokens=4)))

    def look(_module: Any, _inputs: Any, out: torch.Tensor) -> None:
        assert out.sum().item() is not None

    handle = head.register_forward_hook(look)
    try:
        with pytest.raises(ModelError, match=r"its decode step cannot be captured: .*look.* makes the host wait"):
            model.generate(inputs)
    finally:
        handle.remove()
    model.loop = None
    assert model.generate(inputs).shape == (1, 4)


def test_parts_of_a_capture_are_replayed_with_what_stands_between() -> None:
    recorder = CudaGraphs(torch.device("cuda"))
    x = torch.ones(4, device="cuda")
    between: list[str] = []

    def again(play: Any) -> None:
        between.append("before")
        play()
        between.append("after")

    def work() -> torch.Tensor:
        doubled = x * 2
        shifted = recorder.nested(lambda: doubled + 1, again) if recorder.recording else doubled + 1
        return shifted * 10

    assert recorder.obstacle(work) is None
    play = recorder.record(work)
    x.fill_(3.0)
    assert play().tolist() == [70.0] * 4
    assert between == ["before", "after"]


def test_groups_of_heads_are_handed_to_a_kernel_that_takes_them() -> None:
    model = loaded_spec(shrunken("qwen2_5_vl_7b"), device="cuda", dtype="bfloat16", attn_implementation="sdpa")
    loop = GraphLoop(module=model.module, anatomy=model.anatomy, device=model.device)
    inputs = model.transfer(model.prepare(request(size=(112, 84), new_tokens=4)))
    loop.generate(inputs)
    ((step, _),) = loop._steps.values()
    step.state.rewind(step.windows)
    logits = []
    for step._as_they_are in (True, False):
        with grouped(step.decoder_config, as_they_are=step._as_they_are):
            logits.append(step._run(step._mask()).detach().float())
    assert loop.facts["decode"]["attention"] == ["scaled_dot_product_cudnn_attention"]
    assert float((logits[0] - logits[1]).norm() / logits[1].norm()) < 0.02


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores", "ignore:TypedStorage is deprecated")  # inductor's
@pytest.mark.parametrize("part", ["prefill", "decode"])
def test_a_compiled_part_gives_the_same_tokens(part: str) -> None:
    model = on_gpu("llava_1_5_7b", cache_step=1024, **{f"{part}_compile": True})
    loop, model.loop = model.loop, None
    assert loop is not None
    inputs = model.transfer(model.prepare(request(size=(336, 336), new_tokens=8)))
    assert loop.generate(inputs).tolist() == model.generate(inputs).tolist()
    assert loop.facts[part]["compiled"] == "max-autotune-no-cudagraphs"

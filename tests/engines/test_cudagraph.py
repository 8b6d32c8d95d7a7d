"""The loop of our own against ``generate()``: the same tokens, whatever came before; uncaptured and in replays."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import masking_utils
from transformers.models.paligemma import modeling_paligemma

from tests.engines.replaying import Replaying
from tests.models.shipped import loaded as loaded_spec
from tests.models.shipped import request, shrunken, spec
from vlmbench.engines import attention, cudagraph
from vlmbench.engines.attention import grouped, grouped_attention, takes_groups
from vlmbench.engines.capture import Recorder, Uncaptured
from vlmbench.engines.compiling import MODE, compiled
from vlmbench.engines.cudagraph import GraphLoop, GraphSettings
from vlmbench.engines.decode import _equal_as_rounded
from vlmbench.errors import DeviceError, ModelError, UnfitModelError
from vlmbench.models.anatomy.find import find_anatomy
from vlmbench.models.protocol import Prepared
from vlmbench.models.spec import ModelSpec
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.request import Output
from vlmbench.testing.tiny_models import generate, tiny_inputs, tiny_model

SHIPPED = ("llava_1_5_7b", "qwen2_5_vl_7b", "molmo_7b_d", "molmoe_1b")  # with their processors
TINY = (
    "qwen3_vl",  # vision features added in several layers
    "internvl",
    "smolvlm",  # a mask of pixels
    "gemma3",  # layers with a window, image tokens that see each other
    "paligemma",  # the whole prompt sees itself
    "llava_onevision",
    "llava_next",
    "glm4v",
    "gemma4",
    "ovis2",
    "fuyu",
)
RECORDERS = {"uncaptured": Uncaptured, "replayed": Replaying}

recorders = pytest.mark.parametrize("recorder", RECORDERS.values(), ids=RECORDERS)


@cache
def loaded(name: str) -> TransformersModel:
    """A narrow model of a shipped configuration."""
    made = spec(name) if name == "tiny" else narrow_molmo(name) if name.startswith("molmo") else shrunken(name)
    model = loaded_spec(made, device="cpu", dtype="float32")
    talkative(model.module)
    return model


def talkative(module: Any, table_std: float = 0.7, gain: float = 0.5) -> None:
    """Weights with which answers vary: what comes next hangs on the last token, and a little on all others."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=gain * parameter.shape[-1] ** -0.5)
        module.get_input_embeddings().weight.normal_(std=table_std)


def narrow_molmo(name: str) -> ModelSpec:
    """Two narrow layers of Molmo's decoder, as many of its tower as its connector reads."""
    full = spec(name)
    config = copy.deepcopy(full.config)
    config["text_config"].update(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    config["vision_config"].update(
        hidden_size=64, intermediate_size=64, num_hidden_layers=10, num_attention_heads=4, projection_dim=64
    )
    return replace(full, config=config)


def loop_of(model: TransformersModel, recorder: Callable[[], Recorder] = Uncaptured, **settings: Any) -> GraphLoop:
    return GraphLoop(
        module=model.module,
        anatomy=model.anatomy,
        device=model.device,
        settings=GraphSettings(**{"cache_step": 8, **settings}),
        recorder=recorder(),
    )


def prepared(model: TransformersModel, **asked: Any) -> Prepared:
    return model.transfer(model.prepare(request(**asked)))


def small(name: str) -> tuple[int, int]:
    return (112, 84) if name.startswith(("qwen", "tiny")) else (336, 252)


@pytest.mark.parametrize(
    ("name", "recorder"),
    [*((name, Replaying) for name in SHIPPED), ("llava_1_5_7b", Uncaptured)],
)
def test_tokens_are_those_of_eager_generate(name: str, recorder: Callable[[], Recorder]) -> None:
    model = loaded(name)
    loop = loop_of(model, recorder)
    answers = []
    for question, tokens in (("What color is the cat?", 10), ("Where is it?", 6), ("What color is the cat?", 10)):
        inputs = prepared(model, size=small(name), question=question, new_tokens=tokens)
        answers.append(loop.generate(inputs))
        assert answers[-1].tolist() == model.generate(inputs).tolist()
    assert answers[0].tolist() == answers[2].tolist()
    assert len({*answers[0].flatten().tolist()}) > 2, "an answer of one token would hide a wrong position"
    assert loop.missed == 0


@pytest.mark.filterwarnings("ignore:__array(_wrap)?__ :DeprecationWarning")
@pytest.mark.parametrize("window", [64, 270, 4096], ids=["shorter", "reached", "longer"])  # than a prompt of 266 tokens
def test_a_class_that_makes_its_masks_itself_takes_those_of_each_kind_of_layer(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PaliGemma 2 on an H200: 20 rows «'dict' object has no attribute 'ndim'», and the same by generate().
    model, static = (paligemma2(window, monkeypatch, cache_implementation=cache) for cache in (None, "static"))
    for table_std, gain in itertools.product((0.7, 0.1, 0.02), (0.5, 2.0, 5.0)):
        for each in (model, static):
            talkative(each.module, table_std, gain)
        if len({*model.generate(prepared(model, size=(112, 84), new_tokens=12))[0].tolist()}) > 2:
            break
    else:
        pytest.fail("an answer of one token would hide a wrong mask")
    requests = [
        prepared(model, size=(112, 84), question=question, new_tokens=tokens)
        for question, tokens in (("What color is the cat?", 12), ("Where?", 6), ("What color is the cat?", 12))
    ]
    want = [model.generate(inputs).tolist() for inputs in requests]
    assert [static.generate(inputs).tolist() for inputs in requests] == want
    untouched(monkeypatch)
    loop = loop_of(model, Replaying)
    assert [loop.generate(inputs).tolist() for inputs in requests] == want
    assert loop.facts["stages"]["language_model"]["eager"] == []


def paligemma2(window: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> TransformersModel:
    """A narrow model with one layer of each kind, in a process that never loaded one."""
    untouched(monkeypatch)
    made = shrunken("paligemma2_3b_224")
    made.config["text_config"]["sliding_window"] = window
    return loaded_spec(made, device="cpu", dtype="float32", **options)


def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("create_causal_mask", "create_sliding_window_causal_mask"):
        monkeypatch.setattr(modeling_paligemma, name, getattr(masking_utils, name))


@recorders
def test_a_batch_of_unequal_prompts(recorder: Callable[[], Recorder]) -> None:
    model = loaded("llava_1_5_7b")
    inputs = prepared(model, size=(336, 336), new_tokens=10, batch_size=3)
    ids, mask = inputs.inputs["input_ids"], inputs.inputs["attention_mask"]
    inputs.inputs["input_ids"] = torch.cat(
        [torch.full_like(ids[:, :5], model.processor.tokenizer.pad_token_id), ids], 1
    )
    inputs.inputs["attention_mask"] = torch.cat([torch.zeros_like(mask[:, :5]), mask], 1)
    inputs.inputs["input_ids"][1, 3:5], inputs.inputs["attention_mask"][1, 3:5] = 450, 1  # the second is longer
    inputs.inputs["input_ids"][2, -3:] = torch.tensor([77, 911, 5])
    loop = loop_of(model, recorder)
    want = model.generate(inputs)
    assert loop.generate(inputs).tolist() == want.tolist()
    assert len({tuple(row) for row in want.tolist()}) == 3
    one = prepared(model, size=(336, 336), new_tokens=10)
    assert loop.generate(one).tolist() == model.generate(one).tolist()


@recorders
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_natural_answer_ends_where_generate_ends(
    batch_size: int, recorder: Callable[[], Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded("qwen2_5_vl_7b")
    inputs = prepared(model, size=(112, 84), new_tokens=12, batch_size=batch_size)
    inputs.inputs["input_ids"][-1, -2] = 77
    free = model.generate(inputs)
    ends = sorted({int(free[0, 4]), int(free[-1, 7])})
    monkeypatch.setattr(model.module.generation_config, "eos_token_id", ends)
    natural = prepared(model, size=(112, 84), new_tokens=12, batch_size=batch_size, forced=False)
    natural.inputs["input_ids"][-1, -2] = 77
    want = model.generate(natural)
    assert want.shape[1] < 12
    loop = loop_of(model, recorder)
    seen: list[int] = []
    got = loop.generate(natural, [lambda *_: seen.append(1)])
    assert got.tolist() == want.tolist()
    assert len(seen) == want.shape[1]
    forced = prepared(model, size=(112, 84), new_tokens=12, batch_size=batch_size)
    forced.inputs["input_ids"][-1, -2] = 77
    assert loop.generate(forced).tolist() == model.generate(forced).tolist()


def test_replays_run_no_python_of_the_decoder() -> None:
    model = loaded("llava_1_5_7b")
    loop = loop_of(model, Replaying)
    inputs = prepared(model, size=(336, 336), new_tokens=8)
    want = loop.generate(inputs)
    calls: list[str] = []
    layers = [m for path in model.anatomy.language_model for m in model.module.get_submodule(path).layers]
    handles = [layer.register_forward_hook(lambda *_: calls.append("layer")) for layer in layers]
    try:
        assert loop.generate(inputs).tolist() == want.tolist()
    finally:
        for handle in handles:
            handle.remove()
    assert calls == []


def test_hooks_fire_around_every_replay_also_inside_a_tower() -> None:
    model = loaded("llava_1_5_7b")
    loop = loop_of(model, Replaying)
    inputs = prepared(model, size=(336, 336), new_tokens=4)
    loop.generate(inputs)
    seen: list[str] = []
    top = model.module
    paths = {p: name for name, ps in model.anatomy.stages() if name != "head" for p in ps}
    handles = [top.register_forward_pre_hook(lambda *_: seen.append("forward"))]
    for path, name in paths.items():
        module = top.get_submodule(path)
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: seen.append(name)))
    try:
        loop.generate(inputs)
    finally:
        for handle in handles:
            handle.remove()
    assert seen == ["forward", "vision_encoder", "projector", "language_model", *["forward"] * 3]


def test_what_is_ready_is_not_captured_again_and_what_grows_is() -> None:
    model = loaded("tiny")
    loop = loop_of(model, Replaying)
    short = model.prepare(request(size=(112, 84), new_tokens=4))
    assert loop.ready(short, lambda: model.transfer(short).inputs) > 0
    assert loop.ready(short, lambda: pytest.fail("nothing to capture")) == 0.0
    shorter = model.prepare(request(size=(112, 84), new_tokens=2))
    assert loop.ready(shorter, lambda: pytest.fail("nothing to capture")) == 0.0
    longer = prepared(model, size=(112, 84), new_tokens=40)
    assert loop.ready(longer, lambda: longer.inputs) > 0
    assert loop.ready(short, lambda: pytest.fail("its prefill was captured with the longer answer")) == 0.0
    moved = prepared(model, size=(112, 84), new_tokens=4)
    assert loop.generate(moved).tolist() == model.generate(moved).tolist()
    assert loop.generate(longer).tolist() == model.generate(longer).tolist()


def test_facts_name_windows_kernels_and_reasons() -> None:
    model = loaded("qwen2_5_vl_7b")
    loop = loop_of(model, Replaying, cache_step=16)
    inputs = prepared(model, size=(112, 84), new_tokens=4)
    loop.generate(inputs)
    prompt = inputs.inputs["input_ids"].shape[1]
    facts = loop.facts
    assert facts["decode"]["windows"] == [[1, -(-(prompt + 1) // 16) * 16]]
    assert facts["decode"]["attention"] == ["scaled_dot_product_flash_attention_for_cpu"]
    assert facts["stages"]["language_model"]["graphs"] == 1
    tower = facts["stages"]["vision_encoder"]
    assert (tower["graphs"], tower["of_contents"], tower["eager"]) == (1, 1, [])
    assert facts["cache_bytes"] > 0
    assert facts["capture_s"] > 0


def test_only_the_stages_that_are_asked_for_are_captured() -> None:
    model = loaded("llava_1_5_7b")
    loop = loop_of(model, Replaying, capture=("language_model",))
    inputs = prepared(model, size=(336, 336), new_tokens=4)
    assert loop.generate(inputs).tolist() == model.generate(inputs).tolist()
    assert set(loop.facts["stages"]) == {"language_model"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mllama", "cross-attention"),
        ("florence2", "encoder-decoder"),
        ("blip-2", r"generate\(\) of its own"),
        ("qwen3_5", "LinearAttention"),
        ("git", "prefill fails"),
        ("idefics", "image_attention_mask"),
        ("kosmos-2.5", "synchronizing"),
    ],
)
def test_models_that_cannot_be_driven_are_refused_by_name(name: str, reason: str) -> None:
    module = tiny_model(name)
    asked = Prepared(inputs=tiny_inputs(name, module), count=lambda: None, output=Output(max_new_tokens=4, forced=True))

    def run() -> None:
        GraphLoop(
            module=module, anatomy=find_anatomy(module), device=torch.device("cpu"), recorder=Replaying()
        ).generate(asked)

    with pytest.raises(ModelError, match=f"cannot run {type(module).__name__}: .*{reason}"):
        run()


@pytest.mark.parametrize(("name", "recorder"), [*((name, Replaying) for name in TINY), ("gemma3", Uncaptured)])
def test_tokens_of_other_architectures(name: str, recorder: Callable[[], Recorder]) -> None:
    module = tiny_model(name)
    module.generation_config.eos_token_id = None
    inputs = tiny_inputs(name, module)
    for table_std, gain in itertools.product((0.7, 0.1, 0.02), (0.5, 2.0, 5.0)):
        talkative(module, table_std, gain)
        if len({*generate(module, inputs, 12)[0, -12:].tolist()}) > 2:
            break
    else:
        pytest.fail("an answer of one token would hide a wrong position")
    loop = GraphLoop(
        module=module,
        anatomy=find_anatomy(module),
        device=torch.device("cpu"),
        settings=GraphSettings(cache_step=8),
        recorder=recorder(),
    )
    ids = inputs["input_ids"]
    first: list[list[int]] = []
    for last, tokens in ((5, 12), (77, 6), (5, 12)):  # the third request is the first again
        inputs["input_ids"] = ids.clone()
        inputs["input_ids"][:, -1] = last
        want = generate(module, inputs, tokens)[:, -tokens:].tolist()
        asked = Prepared(inputs=inputs, count=lambda: None, output=Output(max_new_tokens=tokens, forced=True))
        assert loop.generate(asked).tolist() == want
        first = first or want
    assert want == first
    assert loop.facts["stages"]["language_model"]["eager"] == []


def test_a_step_that_waits_for_the_device_is_refused() -> None:
    model = loaded("tiny")
    head = model.module.get_submodule(model.anatomy.head[0])
    loop = loop_of(model, Replaying)
    inputs = prepared(model, size=(112, 84), new_tokens=4)

    def look(_module: Any, _inputs: Any, out: torch.Tensor) -> None:
        assert out.sum().item() is not None

    def refused(asked: Prepared) -> type[Exception]:
        handle = head.register_forward_hook(look)
        try:
            with pytest.raises(ModelError, match=r"its decode step cannot be captured: .*synchronizing") as caught:
                loop.generate(asked)
        finally:
            handle.remove()
        return caught.type

    assert refused(inputs) is UnfitModelError, "of the first request, so of the model"
    left = [inputs.inputs["input_ids"].shape[1]] * model.module.config.text_config.num_hidden_layers
    nothing: Any = SimpleNamespace(inside=dict, left=lambda: left, anew=lambda _: None, begin=lambda _: None)
    with loop.under(nothing):
        assert refused(inputs) is ModelError, "of the method, perhaps"
    loop.generate(inputs)
    assert refused(prepared(model, size=(112, 84), new_tokens=40)) is ModelError, "of this request alone"


@pytest.mark.parametrize("name", ["llava_1_5_7b", "qwen2_5_vl_7b", "molmo_7b_d"])
def test_the_decode_step_compiles_in_one_piece(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = compile_only(monkeypatch, "decode_compile")
    model = loaded(name)
    loop = loop_of(model, cache_step=32, decode_compile=True)
    inputs = prepared(model, size=small(name), new_tokens=8)
    assert loop.generate(inputs).tolist() == model.generate(inputs).tolist()
    products = [node for graph in made for node in graph.nodes if node.target is torch._C._nn.linear]
    assert products
    assert all(len(node.args) < 3 or node.args[2] is None for node in products), "a bias makes inductor's product slow"


def compile_only(monkeypatch: pytest.MonkeyPatch, setting: str) -> list[torch.fx.Graph]:
    """Compile without a device, by what traces and does not write kernels; the graphs that were compiled."""
    made: list[torch.fx.Graph] = []

    def traced(module: torch.fx.GraphModule, inputs: Any) -> Any:
        made.append(module.graph)
        return torch._dynamo.lookup_backend("aot_eager")(module, inputs)

    def compiler(work: Callable[..., Any]) -> Callable[..., Any]:
        return compiled(work, backend=traced)

    monkeypatch.setattr(
        cudagraph, "compiler_for", lambda wanted, device, *, name: compiler if wanted and name == setting else None
    )
    return made


@pytest.mark.parametrize("name", ["llava_1_5_7b", "qwen2_5_vl_7b", "molmo_7b_d"])
def test_the_prefill_compiles_in_one_piece_for_each_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = compile_only(monkeypatch, "prefill_compile")
    model = loaded(name)
    loop = loop_of(model, cache_step=32, prefill_compile=True)
    for compiled_so_far, question in ((1, "What is it?"), (2, "What is on the table over there?"), (2, "What is it?")):
        inputs = prepared(model, size=small(name), question=question, new_tokens=8)
        assert loop.generate(inputs).tolist() == model.generate(inputs).tolist()
        assert len(made) == compiled_so_far
    attention = [
        n for graph in made for n in graph.nodes if n.target is torch.nn.functional.scaled_dot_product_attention
    ]
    assert attention
    assert all(node.kwargs.get("attn_mask") is None for node in attention), (
        "a kernel for causal attention takes no mask"
    )
    assert loop.facts["prefill"]["compiled"] == MODE
    assert loop.facts["decode"]["compiled"] is None


def test_a_prefill_that_does_not_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_only(monkeypatch, "prefill_compile")
    model = loaded("llava_1_5_7b")
    decoder = model.module.get_submodule(model.anatomy.language_model[0])
    handle = decoder.layers[0].register_forward_hook(lambda *_: torch._dynamo.graph_break())
    try:
        with pytest.raises(
            ModelError, match=r"cannot be compiled and captured: .*\nTake runtime.prefill_compile=false"
        ):
            loop_of(model, prefill_compile=True).generate(prepared(model, size=(336, 336), new_tokens=4))
    finally:
        handle.remove()


def test_a_compiled_prefill_is_one_that_is_captured() -> None:
    with pytest.raises(ValueError, match=r"'prefill_compile' needs 'language_model'"):
        GraphSettings(prefill_compile=True, capture=("vision_encoder",))


def test_compiling_needs_cuda() -> None:
    for name in ("decode_compile", "prefill_compile"):
        with pytest.raises(DeviceError, match=f"'runtime.{name}' needs CUDA"):
            loop_of(loaded("tiny"), **{name: True})


def test_logits_that_differ_by_rounding_are_the_same_step() -> None:
    # One of 405 requests of Qwen2.5-VL-7B was refused on an H200: kernels added in another order when run again.
    logits = torch.linspace(-8, 8, 512, dtype=torch.bfloat16)
    rounded = logits.clone()
    rounded[100] += 2**-5  # the next number that bfloat16 has
    assert not torch.allclose(logits, rounded)
    assert _equal_as_rounded(logits, rounded)
    assert not _equal_as_rounded(logits, logits * 1.05)


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_groups_of_heads_attend_alike_side_by_side_and_as_they_are(heads: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 1, 8), torch.randn(2, heads, 9, 8), torch.randn(2, heads, 9, 8)
    mask = torch.zeros(2, 1, 1, 9)
    mask[1, ..., 6:] = torch.finfo(torch.float32).min
    config = SimpleNamespace(_attn_implementation="sdpa")
    answers = []
    for as_they_are in (False, True):
        with grouped(config, as_they_are=as_they_are):
            answers.append(grouped_attention(SimpleNamespace(layer_idx=0), query, key, value, mask)[0])
    assert answers[0].shape == (2, 1, 4, 8)
    assert torch.allclose(*answers, atol=1e-6)
    repeated = [kept.repeat_interleave(4 // heads, dim=1) for kept in (key, value)]
    scores = (query @ repeated[0].transpose(2, 3)) / 8**0.5 + mask
    assert torch.allclose(answers[1], (scores.softmax(-1) @ repeated[1]).transpose(1, 2), atol=1e-6)


def test_what_changes_the_scores_is_left_to_the_function_that_runs_without_capturing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # transformers 5.17 runs Gemma 2 by sdpa, which leaves its softcap out; 5.23 does not.
    query, key, value = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    layer, mask, bias = SimpleNamespace(layer_idx=0, num_key_value_groups=2), torch.zeros(1, 1, 1, 9), torch.randn(4, 9)
    got = grouped_attention(layer, query, key, value, mask, scaling=0.5, position_bias=bias[None, :, None])[0]
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.5 + bias[None, :, None]
    assert torch.allclose(got, (scores.softmax(-1) @ value.repeat_interleave(2, 1)).transpose(1, 2), atol=1e-6)
    seen: list[Any] = []
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *given, **named: seen.append((given, named)))
    shorter = torch.ones(1, 1, 1, 5)
    with grouped(SimpleNamespace(_attn_implementation="sdpa"), [(0, shorter)]):
        grouped_attention(layer, query, key, value, mask, scaling=0.5, softcap=50.0)
    assert seen == [((layer, query, key, value, shorter, 0.0, 0.5), {"softcap": 50.0})]


def test_only_a_kernel_that_takes_groups_is_handed_them() -> None:
    assert takes_groups({"scaled_dot_product_cudnn_attention": 32})
    assert not takes_groups({"scaled_dot_product_cudnn_attention": 4, "scaled_dot_product_efficient_attention": 28})
    assert not takes_groups({})  # products: no kernel took them

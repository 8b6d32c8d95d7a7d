from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText
from transformers.cache_utils import StaticCache

from vlmbench.models.molmo import MolmoConfig, MolmoForConditionalGeneration, MolmoModel, register

FAMILIES = ("olmoe", "olmo2", "qwen2")
Load = Callable[[str], Any]
Inputs = Callable[[str], dict[str, torch.Tensor]]

families = pytest.mark.parametrize("family", FAMILIES)


def case_of(oracles: dict[str, Any], family: str) -> dict[str, Any]:
    return next(case for case in oracles["cases"] if case["family"] == family)


def close(have: torch.Tensor, want: list[float]) -> bool:
    return bool(np.abs(have.detach().float().numpy() - np.array(want)).max() < 1e-4)


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@families
@torch.no_grad()
def test_features_and_logits_are_the_references(
    family: str, load: Load, case_inputs: Inputs, oracles: dict[str, Any]
) -> None:
    case, model = case_of(oracles, family), load(family)
    out = model(**case_inputs(family))
    features, logits = out.image_hidden_states[0], out.logits[0]
    assert features.shape == (case["n_crops"], 144, 64)
    assert close(features[0, 0, :8], case["image_features_crop0_token0_first8"])
    assert close(features[-1, 143, :8], case["image_features_last_crop_token143_first8"])
    assert abs(features.abs().mean().item() - case["image_features_abs_mean"]) < 1e-4
    assert logits.shape == (case["input_len"], case["dims"]["embedding_size"])
    assert close(logits[-1, :8], case["logits_last_first8"])
    assert close(logits[0, :4], case["logits_pos0_first4"])
    assert close(logits[100, :4], case["logits_pos100_first4"])
    top = logits[-1].topk(5)
    assert top.indices.tolist() == case["logits_last_top5_ids"]
    assert close(top.values, case["logits_last_top5"])
    assert abs(logits.std().item() - case["logits_std"]) < 1e-4


@families
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_greedy_tokens_are_the_references(
    family: str, options: dict[str, Any], load: Load, case_inputs: Inputs, oracles: dict[str, Any]
) -> None:
    case, inputs = case_of(oracles, family), case_inputs(family)
    produced = load(family).generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, **options)
    assert produced[0, case["input_len"] :].tolist() == case["greedy_6"]


@families
def test_left_padded_batch_gives_what_single_requests_give(family: str, load: Load, processors: dict[str, Any]) -> None:
    model, processor = load(family), processors[family]
    images, texts = [picture(500, 375), picture(60, 60), None], ["what is this", "a", "how many cats are there in it"]
    batch = processor(images=images, text=texts)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    length = batch["input_ids"].shape[1]
    together = model.generate(**batch, **options)[:, length:]
    with torch.no_grad():
        logits = model(**batch).logits[:, -1]
    for row, (image, text) in enumerate(zip(images, texts, strict=True)):
        alone = processor(images=image, text=text)
        assert together[row].tolist() == model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :].tolist()
        with torch.no_grad():
            assert torch.allclose(logits[row], model(**alone).logits[0, -1], atol=1e-5)


@torch.no_grad()
def test_right_padding_changes_nothing_either(load: Load, processors: dict[str, Any]) -> None:
    model, processor = load("qwen2"), processors["qwen2"]
    images, texts = [picture(336, 336), picture(60, 60)], ["what is this", "a"]
    batch = processor(images=images, text=texts, padding_side="right")
    logits = model(**batch).logits
    for row, (image, text) in enumerate(zip(images, texts, strict=True)):
        alone = processor(images=image, text=text)
        length = alone["input_ids"].shape[1]
        assert torch.allclose(logits[row, :length], model(**alone).logits[0], atol=1e-5)


def test_beams_and_several_answers(load: Load, case_inputs: Inputs) -> None:
    model, inputs = load("qwen2"), case_inputs("qwen2")
    options = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    one = model.generate(**inputs, **options)
    doubled = {name: torch.cat([value, value]) for name, value in inputs.items()}
    two = model.generate(**doubled, **options, num_return_sequences=2)
    assert two.shape[0] == 4
    assert torch.equal(two[0], one[0])
    assert torch.equal(two[2], one[0])


@torch.no_grad()
def test_encoded_images_in_place_of_pixels(load: Load, case_inputs: Inputs) -> None:
    model, inputs = load("olmo2"), case_inputs("olmo2")
    want = model(**inputs).logits
    encoded = model.get_image_features(inputs.pop("pixel_values"), inputs.pop("image_masks"))
    assert torch.equal(model(**inputs, mm_encoder_outputs={"image": encoded}).logits, want)
    embedded = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert torch.equal(model(**inputs, inputs_embeds=embedded, mm_encoder_outputs={"image": encoded}).logits, want)


@torch.no_grad()
def test_logits_to_keep_and_labels(load: Load, case_inputs: Inputs) -> None:
    model, inputs = load("olmoe"), case_inputs("olmoe")
    whole = model(**inputs)
    assert torch.allclose(model(**inputs, logits_to_keep=1).logits, whole.logits[:, -1:], atol=1e-5)
    at = torch.tensor([0, 7])
    assert torch.allclose(model(**inputs, logits_to_keep=at).logits, whole.logits[:, at], atol=1e-5)
    labels = inputs["input_ids"].clone()
    labels[labels >= 300] = -100  # image tokens
    loss = model(**inputs, labels=labels).loss
    want = torch.nn.functional.cross_entropy(whole.logits[0, :-1], labels[0, 1:], ignore_index=-100)
    assert torch.allclose(loss, want)
    assert isinstance(model(**inputs, return_dict=False), tuple)


@torch.no_grad()
def test_vectors_are_added_and_dropped_ones_are_not() -> None:
    embeds = torch.randn(2, 6, 3)
    vectors = torch.randn(2, 2, 2, 3)
    index = torch.tensor([[[4, -100], [1, 2]], [[0, 5], [-1, -1]]])
    made = MolmoModel.add_image_features(embeds, vectors, index)
    want = embeds.clone()
    for row, crop, at in np.argwhere(index.numpy() >= 0):
        want[row, index[row, crop, at]] += vectors[row, crop, at]
    assert torch.equal(made, want)
    with pytest.raises(ValueError, match="image_input_idx"):
        MolmoModel.add_image_features(embeds, vectors, index[:, :1])


def test_wrong_arguments_are_refused(load: Load, case_inputs: Inputs) -> None:
    model, inputs = load("qwen2"), case_inputs("qwen2")
    without = {k: v for k, v in inputs.items() if k != "image_input_idx"}
    with pytest.raises(ValueError, match="image_input_idx"):
        model(**without)
    with pytest.raises(ValueError, match="exactly one"):
        model(pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="only one"):
        model(**inputs, mm_encoder_outputs={"image": object()})
    with pytest.raises(ValueError, match="shape"):
        model.get_image_features(inputs["pixel_values"][0])
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=64)


# -------------------------------------------------------------------------------------- what it is made of


def test_stages_are_modules_that_hooks_see(load: Load, case_inputs: Inputs) -> None:
    model, seen = load("olmoe"), []

    def watch(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append((name, len(args), kwargs["inputs_embeds"].shape[1] if "inputs_embeds" in kwargs else None))

        return hook

    paths = ("model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head")
    handles = [model.get_submodule(p).register_forward_pre_hook(watch(p), with_kwargs=True) for p in paths]
    try:
        model.generate(**case_inputs("olmoe"), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    finally:
        for handle in handles:
            handle.remove()
    assert [name for name, _, _ in seen] == [*paths, *paths[2:], *paths[2:]]
    decoder = [(args, length) for name, args, length in seen if name == "model.language_model"]
    assert decoder == [(0, 322), (0, 1), (0, 1)]
    assert model.get_decoder() is model.model.language_model
    assert model.get_output_embeddings() is model.lm_head


def test_experts_are_grouped(load: Load, case_inputs: Inputs) -> None:
    """MolmoE runs transformers' fused experts through grouped_mm, not a loop over them."""
    model, inputs = load("olmoe"), case_inputs("olmoe")
    experts = model.model.language_model.layers[0].mlp.experts
    assert experts.gate_up_proj.shape == (8, 64, 64)
    assert experts.down_proj.shape == (8, 64, 32)
    assert experts.config._experts_implementation == "grouped_mm"
    before = model.get_experts_implementation()
    results = {}
    try:
        for kind in ("grouped_mm", "batched_mm", "eager"):
            model.set_experts_implementation(kind)
            assert experts.config._experts_implementation == kind
            with torch.no_grad():
                results[kind] = model(**inputs).logits
    finally:
        model.set_experts_implementation(before)
    assert torch.allclose(results["grouped_mm"], results["eager"], atol=1e-5)
    assert torch.allclose(results["batched_mm"], results["eager"], atol=1e-5)


def test_the_tower_is_clip_without_its_last_norm(load: Load) -> None:
    model = load("qwen2")
    tower = model.model.vision_tower
    assert len(tower.encoder.layers) == 23
    assert not any("post_layernorm" in name for name in model.state_dict())
    assert model.get_input_embeddings().num_embeddings == 384 + 128
    assert model.lm_head.out_features == 384


@families
@torch.no_grad()
def test_round_trip(family: str, load: Load, case_inputs: Inputs, converted: dict[str, Path], tmp_path: Path) -> None:
    model, inputs = load(family), case_inputs(family)
    model.save_pretrained(tmp_path)
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(again) is MolmoForConditionalGeneration
    assert again.config.to_dict() == {**model.config.to_dict(), "_name_or_path": str(tmp_path)} or (
        again.config.text_config.to_dict() == model.config.text_config.to_dict()
    )
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    body = AutoModel.from_pretrained(converted[family])
    assert type(body) is MolmoModel


@families
@torch.no_grad()
def test_bfloat16(family: str, load: Load, converted: dict[str, Path], case_inputs: Inputs) -> None:
    inputs = case_inputs(family)
    want = load(family)(**inputs).logits
    model = AutoModelForImageTextToText.from_pretrained(converted[family], dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    lowered = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in inputs.items()}
    have = model(**lowered).logits
    assert have.dtype == torch.bfloat16
    assert (have.float() - want).abs().mean() < 0.03  # the logits' spread is 0.8
    assert model.generate(**lowered, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def narrow(family: str, vision_layers: int = 2) -> Any:
    """Random weights of one narrow decoder layer and a shallow tower."""
    text = {"model_type": family, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 100}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    text |= {"num_experts": 4, "num_experts_per_tok": 2} if family == "olmoe" else {}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": vision_layers, "num_attention_heads": 2}
    torch.manual_seed(0)
    return MolmoForConditionalGeneration(
        MolmoConfig(text_config=text, vision_config=vision, vision_feature_layers=[-1, -2])
    ).eval()


@families
@torch.no_grad()
def test_one_graph_without_breaks(family: str) -> None:
    """Prefill with its image, and a decode step, compile as one graph each on a static cache."""
    model = narrow(family)
    ids = torch.randint(0, 100, (1, 20))
    index = torch.full((1, 1, 144), -100)
    index[0, 0, :10] = torch.arange(3, 13)
    pixels = {"pixel_values": torch.randn(1, 1, 576, 588), "image_masks": torch.ones(1, 1, 576)}
    image = {**pixels, "image_input_idx": index}
    longer = torch.cat([ids, torch.tensor([[7]])], dim=1)
    want = model(input_ids=longer, attention_mask=torch.ones_like(longer), **image).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=24)
    first = compiled(input_ids=ids, position_ids=torch.arange(20)[None], past_key_values=cache, **image).logits
    assert torch.allclose(first, want[:, :-1], atol=1e-5)
    step = compiled(input_ids=longer[:, -1:], position_ids=torch.tensor([[20]]), past_key_values=cache).logits
    assert torch.allclose(step, want[:, -1:], atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_attention_kernels(attention: str, load: Load, converted: dict[str, Path], case_inputs: Inputs) -> None:
    model = AutoModelForImageTextToText.from_pretrained(converted["qwen2"], attn_implementation=attention)
    assert model.model.vision_tower.config._attn_implementation == attention
    assert model.model.language_model.config._attn_implementation == attention
    inputs = case_inputs("qwen2")
    assert torch.allclose(model(**inputs).logits, load("qwen2")(**inputs).logits, atol=1e-5)


@families
def test_random_weights_are_finite_and_on_meta_there_are_none(family: str) -> None:
    model = narrow(family)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert model.model.multi_modal_projector.pad_embed.std() > 0
    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(model.config)
    assert {p.device.type for p in empty.parameters()} == {"meta"}


def test_registering_again_changes_nothing() -> None:
    register()
    register()
    assert type(AutoConfig.for_model("molmo")) is MolmoConfig


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"text_config": {"model_type": "llama"}}, "olmoe, olmo2, qwen2"),
        ({"pooling_size": [5, 2]}, "pooling_size"),
        ({"vision_feature_layers": [-2, -25]}, "vision_feature_layers"),
        ({"vision_feature_layers": []}, "vision_feature_layers"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"embedding_size": 152064, "hidden_size": 3584}, "molmo.convert SRC DST"),
    ],
)
def test_impossible_configurations_are_refused(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        MolmoConfig(**arguments)

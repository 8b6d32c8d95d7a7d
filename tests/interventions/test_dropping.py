"""Dropping vision tokens: proven against a reference that masks them, on every family of decoder that is shipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.interventions.tiny import TinyVLM, tiny_vlm
from vlmbench.errors import MeasurementError, UnreachablePointError
from vlmbench.interventions.keep_after_projector import KeepAfterProjector
from vlmbench.interventions.keep_in_layer import KeepInLayer
from vlmbench.interventions.kernels import unlike, watch_kernels
from vlmbench.interventions.proof import answer, check, prove
from vlmbench.models.protocol import Prepared

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "gemma3", "paligemma")
_MADE: dict[tuple[str, str | None], TinyVLM] = {}


def model_of(name: str, attention: str | None = None) -> TinyVLM:
    if (name, attention) not in _MADE:
        _MADE[name, attention] = tiny_vlm(name, attention)
    model = _MADE[name, attention]
    model.cache_implementation, model.compile = None, False
    return model


def hooks(module: torch.nn.Module) -> int:
    """Ours: transformers leaves some of its own to collect hidden states."""
    found = [
        hook for part in module.modules() for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
    ]
    return sum(1 for hook in found if getattr(hook, "func", hook).__module__.startswith("vlmbench"))


def attributes(module: torch.nn.Module) -> list[tuple[int, ...]]:
    return [(*sorted(map(hash, vars(part))), id(getattr(part, "config", None))) for part in module.modules()]


METHODS: dict[str, Any] = {
    "after the projector, spread": KeepAfterProjector(keep=0.5, selector="uniform"),
    "after the projector, by norm": KeepAfterProjector(keep=0.5, selector="norm"),
    "in layer 2, by attention (FastV)": KeepInLayer(keep=0.5, layer=2),
    "in layers 1 and 3, by norm (PyramidDrop)": KeepInLayer(keep=0.5, layer=[1, 3], selector="norm"),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_method_proves_itself_and_leaves_no_trace(family: str, method: Any) -> None:
    model = model_of(family)
    before = attributes(model.module)
    proof = prove(model, method, model.prepared())
    assert proof.keep_one_equal
    assert proof.tokens_equal == proof.tokens == 8
    assert proof.error < 1e-4
    assert not proof.weak
    assert proof.holds
    assert hooks(model.module) == 0
    assert attributes(model.module) == before


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen3_vl", "paligemma2"])
@pytest.mark.parametrize("setting", ["eager", "static"])
def test_masks_of_each_layer_in_the_decode(family: str, setting: str) -> None:
    """Where decode steps get a mask, it is sized by the longest layer; with a fixed cache that is wrong without a word."""
    name = "paligemma" if family == "paligemma2" else family
    model = model_of(name, "eager" if setting == "eager" else None)
    model.cache_implementation = "static" if setting == "static" else None
    for method in (KeepAfterProjector(keep=0.5), KeepInLayer(keep=0.5, layer=2), KeepInLayer(keep=0.5, layer=[1, 3])):
        proof = prove(model, method, model.prepared())
        assert proof.tokens_equal == 8
        assert proof.holds


def test_encoder_attention_by_class_token_and_by_all_rows() -> None:
    for family in ("llava", "qwen2_5_vl", "qwen3_vl", "paligemma"):
        model = model_of(family)
        proof = prove(model, KeepAfterProjector(keep=0.25, selector="encoder_attention"), model.prepared())
        assert proof.holds
        assert proof.kept_by_layer == f"{model.vision // 4}x6"


@pytest.mark.parametrize("family", ["internvl", "smolvlm", "gemma3", "llava_next"])
def test_an_order_of_patches_that_is_the_models_own_is_refused_by_name(family: str) -> None:
    model = model_of(family)
    with pytest.raises(UnreachablePointError, match=r"patches make \d+ vision tokens of \w+ in an order"):
        prove(model, KeepAfterProjector(keep=0.5, selector="encoder_attention"), model.prepared())
    assert hooks(model.module) == 0


def run(model: TinyVLM, method: Any, tokens: int = 4) -> tuple[torch.Tensor, dict[str, Any]]:
    attachment = method.attach(model)
    try:
        attachment.begin(model.prepared())
        given = answer(model, model.prepared(), tokens)
        return given.tokens, attachment.values(tokens)
    finally:
        attachment.detach()


def test_kept_tokens_are_read_from_every_layers_cache() -> None:
    model = model_of("llava")
    _, after = run(model, KeepAfterProjector(keep=0.11, selector="random"))
    assert after == {
        "kept_by_layer": "63x6",
        "num_vision_tokens_kept": 63,
        "num_vision_tokens_kept_mean": 63.0,
    }
    _, within = run(model, KeepInLayer(keep=0.5, layer=[2, 4], selector="random"))
    assert within["kept_by_layer"] == "576x2,288x2,144x2"
    assert within["num_vision_tokens_kept"] == 144
    assert within["num_vision_tokens_kept_mean"] == 336.0


def test_the_same_random_tokens_stay_in_every_run() -> None:
    model = model_of("llava")
    first, _ = run(model, KeepAfterProjector(keep=0.1, selector="random"), tokens=8)
    again, _ = run(model, KeepAfterProjector(keep=0.1, selector="random"), tokens=8)
    assert torch.equal(first, again)


def test_hooks_of_the_decode_are_taken_off_after_the_prefill() -> None:
    model = model_of("llava")
    for method in (KeepAfterProjector(keep=0.5), KeepInLayer(keep=0.5, layer=2)):
        attachment = method.attach(model)
        attachment.begin(model.prepared())
        assert hooks(model.module) > 0
        answer(model, model.prepared(), 3)
        assert hooks(model.module) == 0
        attachment.detach()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "paligemma"])
def test_kernels_stay_the_baselines(family: str) -> None:
    model = model_of(family)
    with watch_kernels(model) as baseline:
        answer(model, model.prepared(), 3)
    assert set(baseline[0].values()) >= {"attention_kernel_LLM_prefill", "attention_kernel_LLM_decode"}
    for method in (KeepAfterProjector(keep=0.5, selector="norm"), KeepInLayer(keep=0.5, layer=2)):
        attachment = method.attach(model)
        attachment.begin(model.prepared())
        with watch_kernels(model) as seen:
            answer(model, model.prepared(), 3)
        attachment.detach()
        assert unlike(baseline[0].values(), seen[0].values()) == []
    assert torch.nn.functional.scaled_dot_product_attention.__name__ == "scaled_dot_product_attention"


def test_a_mask_in_place_of_dropping_is_another_kernel() -> None:
    """What some published comparisons measure: zeros in the two-dimensional mask."""
    model = model_of("llava")
    with watch_kernels(model) as baseline:
        answer(model, model.prepared(), 3)
    masked = model.inputs["attention_mask"].clone()
    masked[0, 10:200] = 0
    with watch_kernels(model) as seen:
        answer(model, Prepared(**{**vars(model.prepared()), "inputs": {**model.inputs, "attention_mask": masked}}), 3)
    assert unlike(baseline[0].values(), seen[0].values()) == ["LLM_prefill", "LLM_decode"]
    assert "mask=none" in baseline[0].values()["attention_kernel_LLM_prefill"]
    assert "mask=bool" in seen[0].values()["attention_kernel_LLM_prefill"]


class TestRefusals:
    def test_no_image_in_the_prompt(self) -> None:
        model = model_of("llava")
        text = model.inputs["input_ids"][:, -6:]
        prepared = Prepared(**{**vars(model.prepared()), "inputs": {"input_ids": text}})
        with pytest.raises(UnreachablePointError, match="no image position stands in the prompt of Llava"):
            check(model, KeepAfterProjector(keep=0.5), prepared)

    def test_padding(self) -> None:
        model = model_of("llava")
        mask = model.inputs["attention_mask"].clone()
        mask[0, 0] = 0
        prepared = Prepared(**{**vars(model.prepared()), "inputs": {**model.inputs, "attention_mask": mask}})
        attachment = KeepAfterProjector(keep=0.5).attach(model)
        with pytest.raises(UnreachablePointError, match="without padding"):
            attachment.begin(prepared)
        attachment.detach()

    def test_a_layer_that_does_not_exist(self) -> None:
        with pytest.raises(UnreachablePointError, match=r"layer 6 of Llava.* does not exist; it has 6"):
            KeepInLayer(keep=0.5, layer=6).attach(model_of("llava"))

    def test_a_compiled_decode(self) -> None:
        model = model_of("llava")
        model.compile = True
        with pytest.raises(UnreachablePointError, match="compiled decode"):
            KeepInLayer(keep=0.5, layer=2).attach(model)
        assert hooks(model.module) == 0

    def test_no_cache(self) -> None:
        model = model_of("llava")
        for method in (KeepAfterProjector(keep=0.5), KeepInLayer(keep=0.5, layer=2)):
            attachment = method.attach(model)
            attachment.begin(model.prepared())
            with pytest.raises(UnreachablePointError, match="needs a key-value cache"), torch.no_grad():
                model.module.generate(**model.inputs, max_new_tokens=2, use_cache=False)
            attachment.detach()
            assert hooks(model.module) == 0

    def test_a_hook_that_never_ran(self) -> None:
        model = model_of("llava")
        for method in (KeepAfterProjector(keep=0.5), KeepInLayer(keep=0.5, layer=2)):
            attachment = method.attach(model)
            attachment.begin(model.prepared())
            with pytest.raises(MeasurementError, match="never ran"):
                attachment.values(4)
            attachment.detach()

    def test_a_window_that_the_prompt_reaches(self) -> None:
        model = model_of("gemma3")
        config = model.module.config.get_text_config()
        window, config.sliding_window = config.sliding_window, 20
        try:
            attachment = KeepAfterProjector(keep=0.5).attach(model)
            with pytest.raises(UnreachablePointError, match="sliding window of 20"):
                attachment.begin(model.prepared())
        finally:
            config.sliding_window = window

    def test_a_model_that_attends_across(self) -> None:
        model = tiny_vlm("mllama")
        with pytest.raises(UnreachablePointError):
            check(model, KeepAfterProjector(keep=0.5), model.prepared())

    def test_a_hybrid(self) -> None:
        with pytest.raises(UnreachablePointError, match="which keep a running state"):
            KeepAfterProjector(keep=0.5).attach(tiny_vlm("qwen3_5"))

    def test_a_method_that_does_not_do_what_it_says(self) -> None:
        class Shifted(KeepInLayer):
            """Drops one layer later than it reports."""

            def attach(self, model: Any) -> Any:
                from vlmbench.interventions.keep_in_layer import InLayer

                attachment = InLayer(model, self.chooser, (3,), self.keep, method="shifted")
                told = attachment.keeps

                def keeps() -> list[torch.Tensor | None]:
                    found = told()
                    return [*found[:2], found[3], *found[3:]]

                attachment.keeps = keeps  # type: ignore[method-assign]
                return attachment

        with pytest.raises(UnreachablePointError, match="refused for LlavaForConditionalGeneration: its logits differ"):
            check(model_of("llava"), Shifted(keep=0.5), model_of("llava").prepared())


@pytest.mark.parametrize("where", ["selector", "forward"])
def test_everything_is_put_back_after_an_exception(where: str) -> None:
    from vlmbench.interventions.selectors import Needs, Seen

    class Broken:
        name, needs = "broken", Needs.LAST_TOKEN_ATTENTION

        def choose(self, seen: Seen, keep: int) -> torch.Tensor:
            if where == "selector":
                raise RuntimeError("planted")
            return torch.arange(keep)

    model = model_of("qwen3_vl")
    before, tokens = attributes(model.module), answer(model, model.prepared(), 4).tokens
    planted = None
    if where == "forward":

        def fail(*_: Any) -> None:
            raise RuntimeError("planted")

        planted = model.module.get_submodule(model.anatomy.language_model[0]).layers[4].register_forward_hook(fail)
    attachment = KeepInLayer(keep=0.5, layer=2, selector=Broken()).attach(model)
    attachment.begin(model.prepared())
    with pytest.raises(RuntimeError, match="planted"):
        answer(model, model.prepared(), 4)
    attachment.detach()
    if planted is not None:
        planted.remove()
    assert hooks(model.module) == 0
    assert attributes(model.module) == before
    assert torch.equal(answer(model, model.prepared(), 4).tokens, tokens)


def test_an_attention_row_is_eagers_own() -> None:
    from vlmbench.interventions.attention_row import AttentionRow, Row, attention_modules
    from vlmbench.interventions.marks import MethodMarks

    for family in ("llava", "qwen3_vl", "gemma3"):
        eager = model_of(family, "eager")
        with torch.no_grad():
            wanted = eager.module(**eager.inputs, output_attentions=True).attentions[1][:, :, -1].mean(1)
        model = model_of(family)
        layer = model.module.get_submodule(model.anatomy.language_model[0]).layers[1]
        row = AttentionRow(attention_modules(layer)[0], Row.LAST, MethodMarks())
        row.arm()
        with torch.no_grad():
            model.module(**model.inputs)
        assert torch.allclose(row.take(), wanted, atol=1e-6)
        row.detach()


def test_batches_of_equal_rows_with_a_choice_made_beforehand() -> None:
    model = tiny_vlm("llava")
    alone, _ = run(model, KeepAfterProjector(keep=0.5, selector="random"))
    model.inputs = {name: torch.cat([value, value]) for name, value in model.inputs.items()}
    for method in (KeepAfterProjector(keep=0.5, selector="random"), KeepInLayer(keep=0.5, layer=2, selector="random")):
        attachment = method.attach(model)
        attachment.begin(model.prepared())
        with torch.no_grad():
            produced = model.module.generate(**model.inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        attachment.detach()
        assert torch.equal(produced[0], produced[1])
        if isinstance(method, KeepAfterProjector):
            assert torch.equal(produced[0, -4:], alone)
    attachment = KeepAfterProjector(keep=0.5, selector="norm").attach(model)
    with pytest.raises(UnreachablePointError, match="one row at a time"):
        attachment.begin(model.prepared())
    attachment.detach()

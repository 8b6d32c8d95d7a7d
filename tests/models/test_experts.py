"""Mixtures of experts: what runs is known, and can be chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.models.shipped import loaded, request, spec
from vlmbench.errors import ModelError
from vlmbench.models.building import choose_experts, experts_facts, module_on_meta
from vlmbench.models.loading import build_config
from vlmbench.models.spec import ModelSpec

NAMES = ("experts_implementation", "experts_implementation_decode")
TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 9}


def mixture() -> ModelSpec:
    """MolmoE, narrow and shallow."""
    real = spec("molmoe_1b")
    changes = {
        name: {**real.config[name], **small} for name, small in (("text_config", TEXT), ("vision_config", VISION))
    }
    return replace(real, config={**real.config, **changes, "projector_hidden_size": 32})


def qwen3_vl_moe() -> Any:
    from transformers import AutoConfig

    text = {**TEXT, "vocab_size": 100, "moe_intermediate_size": 16, "head_dim": 16, "decoder_sparse_step": 1}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    return AutoConfig.for_model("qwen3_vl_moe", text_config=text, vision_config=vision)


def test_without_a_choice_it_is_what_transformers_takes() -> None:
    facts = loaded(mixture(), device="cpu").facts
    assert [facts[name] for name in NAMES] == ["grouped_mm", "grouped_mm"]  # on a CPU it stays grouped


@pytest.mark.parametrize("config", [lambda: build_config(mixture()), qwen3_vl_moe], ids=["molmoe", "qwen3_vl_moe"])
def test_the_change_for_decode_steps_is_seen(config: Any) -> None:
    module = module_on_meta(config())  # any device but the CPU
    assert list(experts_facts(module).values()) == ["grouped_mm", "batched_mm"]
    assert experts_facts(module)["experts_implementation"] == "grouped_mm"  # put back
    for wanted in ("eager", "batched_mm"):
        choose_experts(module, wanted, name="x")
        assert list(experts_facts(module).values()) == [wanted, wanted]


def test_a_choice_changes_what_runs_not_what_comes_out() -> None:
    answers = []
    for wanted in ("eager", "grouped_mm", "batched_mm"):
        model = loaded(mixture(), device="cpu", experts_implementation=wanted)
        assert model.facts["experts_implementation"] == wanted
        answers.append(model.generate(model.transfer(model.prepare(request(size=(100, 80), new_tokens=4)))))
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_models_without_experts() -> None:
    model = loaded(spec("tiny"), device="cpu")
    assert not set(NAMES) & set(model.facts)
    with pytest.raises(ModelError, match=r"'tiny' has no experts.*experts_implementation=null"):
        loaded(spec("tiny"), device="cpu", experts_implementation="grouped_mm")


def test_what_transformers_does_not_know() -> None:
    with pytest.raises(ModelError, match=r"experts_implementation=wibble.*grouped_mm"):
        choose_experts(loaded(mixture(), device="cpu").module, "wibble", name="x")
    with pytest.raises(ValueError, match=r"'runtime.experts_implementation' must be one of eager, .*'wibble'"):
        loaded(mixture(), device="cpu", experts_implementation="wibble")

"""Faults that users of other instruments reported, planted here: each is a kind of error, kept out by a known answer."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.models.shipped import loaded, request, shrunken, spec
from vlmbench.cost.flop_sharing import Counter
from vlmbench.errors import SampleError
from vlmbench.models.loading import build_config
from vlmbench.models.protocol import Prepared
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.runner.execution import complete, prepare


@pytest.fixture(scope="module")
def tiny() -> TransformersModel:
    return loaded(spec("tiny"), device="cpu")


def test_tokens_are_counted_from_ids_not_from_text(tiny: TransformersModel) -> None:
    """flexible-inference-bench#66: output tokens counted by re-tokenising the text. These ids decode to no word."""

    class Unreadable(TransformersModel):
        def generate(self, prepared: Prepared, stopping_criteria: list[Any] | None = None) -> torch.Tensor:
            del prepared, stopping_criteria
            return torch.tensor([[self.processor.tokenizer.eos_token_id or 0] * 7])

    model = Unreadable(**{name: value for name, value in vars(tiny).items() if name in _fields()})
    outcome = complete(model, prepare(model, request(new_tokens=7)), [], [])
    assert outcome.values["num_output_tokens"] == 7


def _fields() -> set[str]:
    return {name for name in TransformersModel.__dataclass_fields__ if not name.startswith("_")}


@pytest.mark.parametrize("name", ["qwen2_5_vl_7b", "gemma3_4b"])
def test_flops_do_not_depend_on_the_attention_kernel(name: str) -> None:
    """pytorch#177169: the FLOP formula of scaled-dot-product attention miscounts grouped queries."""
    one = shrunken(name)
    inputs = None
    counted = []
    for attention in ("sdpa", "eager"):
        model = loaded(one, device="cpu", attn_implementation=attention)
        inputs = model.prepare(request(size=(224, 224))).inputs
        counter = Counter.of_config(_config(one, attention))
        counted.append(counter.count(inputs, output_tokens=3))
    assert counted[0] == counted[1]


def _config(one: Any, attention: str) -> Any:
    config = build_config(one)
    config._attn_implementation = attention
    return config


def test_a_question_that_holds_the_image_token_is_refused_by_its_name(tiny: TransformersModel) -> None:
    """aiperf#667, and questions of MMMU: a literal image token in the text must not become an image."""
    token = tiny.processor.image_token
    with pytest.raises(SampleError, match=re.escape(token)):
        prepare(tiny, request(question=f"What does {token} show?"))

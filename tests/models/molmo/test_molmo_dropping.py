"""Vision tokens dropped in Molmo 1, whose image features are added to embeddings instead of taking their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.interventions.tiny import TinyVLM
from vlmbench.interventions.keep_after_projector import KeepAfterProjector
from vlmbench.interventions.keep_in_layer import KeepInLayer
from vlmbench.interventions.proof import prove
from vlmbench.models.anatomy.find import find_anatomy
from vlmbench.models.token_counts import ImageMarks


@pytest.mark.parametrize("family", ["olmoe", "olmo2", "qwen2"])
@pytest.mark.parametrize(
    "method", [KeepAfterProjector(keep=0.5, selector="norm"), KeepInLayer(keep=0.5, layer=1)], ids=["after", "in layer"]
)
def test_a_method_proves_itself(
    family: str, method: Any, load: Callable[[str], Any], case_inputs: Callable[[str], dict[str, torch.Tensor]]
) -> None:
    module = load(family)
    model = TinyVLM(
        module=module,
        marks=ImageMarks.from_config(module.config),
        anatomy=find_anatomy(module),
        inputs=case_inputs(family),
    )
    proof = prove(model, method, model.prepared())
    assert proof.holds
    assert not proof.weak
    assert proof.tokens_equal == 8
    assert str(model.vision // 2) in proof.kept_by_layer

"""Tiny models on which dropping tokens can be told from not dropping them: six decoder layers, weights at 1/√fan-in.

At the classes' own scale of 0.02 nothing in a tiny model's answer depends on its image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlmbench.engines.capture import Recorder
from vlmbench.engines.cudagraph import GraphLoop, GraphSettings
from vlmbench.models.anatomy.find import find_anatomy
from vlmbench.models.protocol import Anatomy, Prepared
from vlmbench.models.token_counts import ImageMarks
from vlmbench.request import Output, TokenCounts
from vlmbench.testing import tiny_models

LAYERS = 6


def deepened(config: Any) -> Any:
    text = config.get_text_config(decoder=True)
    text.num_hidden_layers = LAYERS
    for name in ("layer_types", "mlp_layer_types"):
        if getattr(text, name, None):
            kinds = getattr(text, name)
            setattr(text, name, [kinds[index % len(kinds)] for index in range(LAYERS)])
    return config


@torch.no_grad()
def redraw(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        if parameter.dim() >= 2:
            fan_in = parameter[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))


@dataclass(kw_only=True)
class TinyVLM:
    """What a method needs of a loaded model, around a module without a processor."""

    module: Any
    marks: ImageMarks
    anatomy: Anatomy
    inputs: dict[str, Any]
    cache_implementation: str | None = None
    compile: bool = False
    team: None = None
    loop: GraphLoop | None = None
    device = torch.device("cpu")

    def prepared(self, new_tokens: int = 8) -> Prepared:
        counts = TokenCounts(num_input_tokens=0, num_prompt_tokens=0, num_vision_tokens=0)
        output = Output(max_new_tokens=new_tokens, forced=True)
        return Prepared(inputs=self.inputs, count=lambda: counts, output=output)

    def capturing(self, recorder: Recorder, **settings: Any) -> GraphLoop:
        """A loop of its own, which answers from now on."""
        self.loop = GraphLoop(
            module=self.module,
            anatomy=self.anatomy,
            device=self.device,
            settings=GraphSettings(**{"cache_step": 8, **settings}),
            recorder=recorder,
        )
        return self.loop

    def ready(self, prepared: Prepared) -> dict[str, Any]:
        assert self.loop is not None
        return {"T_capture": self.loop.ready(prepared, lambda: prepared.inputs)}

    def generate(self, prepared: Prepared, criteria: Sequence[Callable[..., Any]]) -> torch.Tensor:
        assert self.loop is not None
        return self.loop.generate(prepared, criteria)

    @property
    def vision(self) -> int:
        return int((self.inputs["input_ids"][0] == self.marks.image_token_ids[0]).sum())


def tiny_vlm(name: str, attention: str | None = None) -> TinyVLM:
    torch.manual_seed(0)
    config = deepened(tiny_models.tiny_config(name))
    if attention is not None:
        config._attn_implementation = attention
    module = tiny_models.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config).eval()
    redraw(module)
    if config.get_text_config(decoder=True).pad_token_id is None:
        module.generation_config.pad_token_id = 0
    inputs = tiny_models.tiny_inputs(name, module)
    return TinyVLM(module=module, marks=ImageMarks.from_config(config), anatomy=find_anatomy(module), inputs=inputs)

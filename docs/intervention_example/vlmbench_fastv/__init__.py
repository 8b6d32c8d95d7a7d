"""FastV (L. Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024) as a plug-in of vlmbench.

Section 4 of the paper: after layer K, rank the vision tokens by the attention that they receive, keep the best, and go
on without the others. The rank is that of the last token's attention, mean over heads, in layer K.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from vlmbench.interventions.attention_row import AttentionRow, Row, attention_modules
from vlmbench.interventions.cutting import cut_mask, cut_rotation
from vlmbench.interventions.language import decoder_layers, language_model
from vlmbench.interventions.marks import marks_of
from vlmbench.interventions.observed import kept_by_layer, kept_values
from vlmbench.interventions.places import find_places
from vlmbench.interventions.selectors import highest


@dataclass(frozen=True, kw_only=True)
class FastV:
    """Keeps a share ``keep`` of the vision tokens behind the first ``layers`` decoder layers."""

    layers: int = 2
    keep: float = 0.5
    name = "my_fastv"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"layers": self.layers, "keep": self.keep}

    def keeping(self, keep: float) -> FastV:
        return replace(self, keep=keep)

    def request(self, request: Any, model: Any) -> Any:
        return request

    def attach(self, model: Any) -> Running:
        return Running(model, self)


class Running:
    def __init__(self, model: Any, spec: FastV) -> None:
        self.model, self.spec, self.marks = model, spec, marks_of(model.module)
        self.layers = decoder_layers(language_model(model, method=spec.name), method=spec.name)
        attention = attention_modules(self.layers[spec.layers - 1])[0]
        self.row = AttentionRow(attention, Row.LAST, self.marks)  # one row, beside the layer's own kernel
        self.hooks: dict[int, Any] = {}

    def begin(self, prepared: Any) -> None:
        self.places = find_places(prepared, self.model, method=self.spec.name)
        self.cache = self.kept = None
        self.row.arm()
        for at in range(self.spec.layers, len(self.layers)):
            hook = partial(self.before, at)
            self.hooks[at] = self.layers[at].register_forward_pre_hook(hook, with_kwargs=True)

    def before(self, at: int, module: Any, args: Any, kwargs: Any) -> Any:
        self.hooks.pop(at).remove()  # the prefill only: the decode finds a shorter cache
        hidden, places = args[0], self.places
        if at == self.spec.layers:
            self.marks.enter()  # the method's own time, inside the prefill
            scores = self.row.take()[0].index_select(0, places.vision)
            self.kept = places.positions(highest(scores, places.kept(self.spec.keep)))
            self.cache, hidden = kwargs["past_key_values"], hidden.index_select(1, self.kept)
            self.marks.leave()
        cut = {
            "attention_mask": cut_mask(kwargs["attention_mask"], self.kept, places.length),
            "position_embeddings": cut_rotation(kwargs["position_embeddings"], self.kept, places.length),
            "position_ids": torch.arange(len(self.kept), device=hidden.device)[None],
        }
        return (hidden, *args[1:]), {**kwargs, **cut}

    def keeps(self) -> list[Any]:
        return [None] * self.spec.layers + [self.kept] * (len(self.layers) - self.spec.layers)

    def values(self, num_output_tokens: int) -> dict[str, Any]:
        text = len(self.places.text)
        found = kept_by_layer(self.cache, text=text, num_output_tokens=num_output_tokens, method=self.spec.name)
        return kept_values(found)

    def detach(self) -> None:
        for hook in self.hooks.values():
            hook.remove()
        self.row.detach()

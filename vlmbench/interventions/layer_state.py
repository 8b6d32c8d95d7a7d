"""What of a prompt is left at which decoder layer, while one prefill runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vlmbench.interventions.places import Places

if TYPE_CHECKING:
    import torch
    from torch import nn


class LayerState:
    """Positions that are left, arguments that were cut already, and the cache that was seen; made anew for each run.

    Every argument is cut once for each dropping, not once a layer. It is remembered by identity, with the object held,
    and forgotten when the run is over, because it would keep a request's tensors alive.
    """

    def __init__(self, body: nn.Module) -> None:
        self._body: Any = body
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.counts: dict[int, int] = {}
        self.plan: dict[int, torch.Tensor] = {}
        self.keep: torch.Tensor | None = None
        self.cache: Any = None
        self.length = self.text_count = 0
        self._places: Places | None = None
        self._rows: torch.Tensor | None = None
        self._vision: torch.Tensor | None = None
        self._dropped: list[tuple[int, torch.Tensor]] = []
        self._memo: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._passed: set[int] = set()
        self._over = False

    def begin(self, places: Places, counts: Mapping[int, int], plan: Mapping[int, torch.Tensor]) -> None:
        """A run with this prompt, dropping to these counts at these layers."""
        self.clear()
        self._places, self.counts, self.plan = places, dict(counts), dict(plan)
        self.length, self.text_count = places.length, int(places.text.shape[0])

    def prefilled(self, positions: int) -> bool:
        """Whether a call with so many positions is a decode step."""
        if not self._over and positions == 1 and self.length > 1:
            self._over = True
            self._memo.clear()
        return self._over

    def vision_here(self) -> torch.Tensor:
        """Where the vision tokens that are left stand among the positions that are left."""
        assert self._places is not None
        return self._places.vision if self._vision is None else self._vision

    def drop(self, at: int, chosen: torch.Tensor) -> torch.Tensor:
        """Drop all vision tokens but the chosen (indices into those left); which of the positions left now stay."""
        import torch

        places = self._places
        assert places is not None
        rows = chosen if self._rows is None else self._rows.index_select(0, chosen)
        keep = places.positions(rows)
        relative = keep if self.keep is None else torch.searchsorted(self.keep, keep)
        self._rows, self.keep = rows, keep
        self._vision = torch.searchsorted(keep, places.vision.index_select(0, rows))
        self._dropped.append((at, keep))
        self._memo.clear()
        return relative

    def count(self) -> torch.Tensor:
        """Positions counted without gaps, (1, left): gaps look like packed sequences to some kernels."""
        import torch

        assert self.keep is not None
        return torch.arange(self.keep.shape[0], device=self.keep.device)[None]

    def rows_of_images(self) -> torch.Tensor:
        """Rows of the image features, (batch · n, width), that are left."""
        import torch

        assert self._places is not None
        assert self._rows is not None
        offsets = torch.arange(self._places.rows, device=self._rows.device) * self._places.count
        return (offsets[:, None] + self._rows[None]).reshape(-1)

    def remembered(self, name: str, value: Any, make: Callable[[], Any]) -> Any:
        """What was made of this very object before, or is made now."""
        key = (name, id(value))
        if key not in self._memo:
            self._memo[key] = (value, make())
        return self._memo[key][1]

    def passed(self, at: int) -> None:
        """A layer's arguments were cut."""
        self._passed.add(at)

    def complete(self, layers: int) -> bool:
        """Whether every layer from the first dropping on was cut in the last prefill."""
        first = min(self.counts, default=layers)
        return self._passed >= set(range(first, layers))

    def by_layer(self, layers: int) -> list[torch.Tensor | None]:
        """Positions left at each layer; None where all are."""
        left: list[torch.Tensor | None] = [None] * layers
        for at, keep in self._dropped:
            left[at:] = [keep] * (layers - at)
        return left

    def decode_mask(self, at: int, mask: Any, hidden: Any, kwargs: Mapping[str, Any]) -> Any:
        """A decode step's mask for a layer with fewer keys than the one that the mask was made for.

        Args:
            mask: made for the longest layer's cache; says that this kernel wants one.
            hidden: (batch, 1, width).
            kwargs: the layer's arguments.
        """
        from transformers import masking_utils

        config = self._body.config
        kinds: Any = getattr(config, "layer_types", None)
        sliding = bool(kinds) and "sliding" in kinds[at]
        make = masking_utils.create_sliding_window_causal_mask if sliding else masking_utils.create_causal_mask
        level = sum(1 for start, _ in self._dropped if start <= at)

        def made() -> Any:
            return make(
                config=config,
                inputs_embeds=hidden,
                attention_mask=None,
                past_key_values=kwargs["past_key_values"],
                layer_idx=at,
                allow_is_causal_skip=False,
            )

        self._forget_older(mask)
        return self.remembered(f"{level}/{sliding}", mask, made)

    def _forget_older(self, mask: Any) -> None:
        """Masks of earlier steps: a step brings masks of its own, so what was made of others is over."""
        held = [key for key, (value, _) in self._memo.items() if value is not mask]
        if len(held) > 16:
            for key in held:
                del self._memo[key]

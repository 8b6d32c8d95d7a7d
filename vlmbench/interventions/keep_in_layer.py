"""Vision tokens dropped inside the language model, before decoder layer k: FastV; several layers: PyramidDrop.

Layers before k keep all tokens in their caches, layers from k on fewer. Positions are those of the whole prompt
(rotations are cut, not made anew), and the attention kernel stays the baseline's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from vlmbench.errors import MeasurementError, UnreachablePointError
from vlmbench.interventions.attention_row import AttentionRow, Row, attention_modules
from vlmbench.interventions.cutting import cut_mask, cut_other, cut_rotation
from vlmbench.interventions.language import check_window, decoder_layers, language_model, masks_in_decode
from vlmbench.interventions.layer_state import LayerState
from vlmbench.interventions.marks import marks_of
from vlmbench.interventions.observed import kept_by_layer, kept_values
from vlmbench.interventions.places import Places, find_places
from vlmbench.interventions.protocol import check_share
from vlmbench.interventions.selectors import Needs, Seen, Selector, selector_of

if TYPE_CHECKING:
    import torch

    from vlmbench.models.protocol import Prepared
    from vlmbench.request import Request

_ALLOWED = frozenset({Needs.NOTHING, Needs.FEATURES, Needs.LAST_TOKEN_ATTENTION})


@dataclass(frozen=True, kw_only=True)
class KeepInLayer:
    """Keeps a share of the vision tokens from decoder layer ``layer`` on.

    Args:
        keep: share that stays at each of the layers, above 0, at most 1.
        layer: the first decoder layer (from 0) that sees fewer; a list drops again at each: of what is left,
            ``keep`` stays.
        selector: last_token_attention (FastV), random, uniform, norm, or an object of a user's class.
        seed: of the random selector.
    """

    keep: float
    layer: Any = 2
    selector: Any = "last_token_attention"
    seed: int = 0

    name = "keep_in_layer"

    def __post_init__(self) -> None:
        check_share("keep", self.keep)
        if not isinstance(self.layer, int | list | tuple):
            raise ValueError(f"'layer' must be a layer's number from 0 on, or an ascending list (got {self.layer!r})")
        whole = all(isinstance(at, int) and not isinstance(at, bool) and at >= 0 for at in self.layers)
        if not self.layers or not whole or list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"'layer' must be a layer's number from 0 on, or an ascending list (got {self.layer!r})")
        if self.chooser.needs is Needs.LAST_TOKEN_ATTENTION and self.layers[0] == 0:
            raise ValueError(
                "'layer' must be 1 or more with selector last_token_attention: it looks at the layer before"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers before which tokens are dropped."""
        return (self.layer,) if isinstance(self.layer, int) else tuple(self.layer)

    @property
    def chooser(self) -> Selector:
        """The selector itself."""
        return selector_of(self.selector, allowed=_ALLOWED, seed=self.seed, method=self.name)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Share, layers, selector, and the seed of a random one."""
        layer = self.layers[0] if len(self.layers) == 1 else list(self.layers)
        given: dict[str, Any] = {"keep": self.keep, "layer": layer, "selector": self.chooser.name}
        return given | ({"seed": self.seed} if self.chooser.name == "random" else {})

    def keeping(self, keep: float) -> KeepInLayer:
        """The same with another share."""
        return replace(self, keep=keep)

    def request(self, request: Request, model: Any) -> Request:  # noqa: ARG002 – the protocol's arguments
        """The request itself."""
        return request

    def attach(self, model: Any) -> InLayer:
        """Hook onto the decoder layers.

        Raises:
            UnreachablePointError: this model has no such layer, or its layers cannot be cut.
        """
        return InLayer(model, self.chooser, self.layers, self.keep, method=self.name)


class InLayer:
    """The method at work: see :class:`vlmbench.interventions.protocol.Attachment`."""

    def __init__(self, model: Any, selector: Selector, drops: Sequence[int], keep: float, *, method: str) -> None:
        self._model, self._selector, self._keep, self._method = model, selector, keep, method
        self._drops = tuple(drops)
        self._body = language_model(model, method=method)
        self._layers = decoder_layers(self._body, method=method)
        self._check()
        self._marks = marks_of(model.module)
        self._in_decode = masks_in_decode(model, self._body)
        self._captured = getattr(model, "loop", None) is not None
        if self._captured and self._in_decode:
            raise UnreachablePointError(
                f"{method} needs masks of its own in each captured step, which eager attention does not ask for; use "
                "runtime.attn_implementation=sdpa, or runtime=eager"
            )
        self._places: Places | None = None
        self._plan: dict[int, torch.Tensor] = {}
        self._counts: dict[int, int] = {}
        self._told = ""
        self._note: Any = None
        self._seen_cache: Any = None
        self._state = LayerState(self._body)
        self._rows: dict[int, AttentionRow] = {}
        self._handles: dict[int, Any] = {}
        if selector.needs is Needs.LAST_TOKEN_ATTENTION:
            self._rows = {at: self._row(at - 1) for at in self._drops}
        self._deepstack = self._wrap_deepstack()

    def _check(self) -> None:
        architecture, count = type(self._model.module).__name__, len(self._layers)
        if self._drops[-1] >= count:
            raise UnreachablePointError(
                f"{self._method}: layer {self._drops[-1]} of {architecture} does not exist; it has {count}, from 0 on"
            )
        config: Any = getattr(self._body, "config", None)
        if getattr(config, "num_kv_shared_layers", 0) and self._drops[-1]:
            raise UnreachablePointError(
                f"{self._method}: layers of {architecture} read the keys of earlier ones, whose length would differ"
            )
        if self._model.compile:
            raise UnreachablePointError(
                f"{self._method} needs a mask of its own in each decode step of a fixed cache, which a compiled decode "
                "does not ask for; use runtime=eager, or keep_after_projector"
            )

    def _row(self, layer: int) -> AttentionRow:
        seen = attention_modules(self._layers[layer])
        if not seen:
            raise UnreachablePointError(
                f"{self._method}: no attention in layer {layer} of {type(self._body).__name__} can be looked into"
            )
        return AttentionRow(seen[0], Row.LAST, self._marks)

    def begin(self, prepared: Prepared) -> None:
        """Find the image in the prompt, choose what can be chosen without looking, hook on."""
        places = find_places(prepared, self._model, method=self._method)
        if places.rows > 1 and self._selector.needs is not Needs.NOTHING:
            raise UnreachablePointError(
                f"{self._method}: selector {self._selector.name} chooses by content, for one row at a time "
                f"(batch_size={places.rows}); take random or uniform for batches"
            )
        check_window(self._body, places, method=self._method)
        plan: dict[int, torch.Tensor] = {}
        counts: dict[int, int] = {}
        left = places.count
        for at in self._drops:
            counts[at] = max(1, round(self._keep * left))
            if self._selector.needs is Needs.NOTHING:
                plan[at] = self._selector.choose(Seen(count=left), counts[at])
            left = counts[at]
        fixed = [places.vision, *plan.values()]  # a capture reads these where they lie
        self._told = sha256(repr([part.tolist() for part in fixed]).encode()).hexdigest() if self._captured else ""
        self._places, self._counts = places, counts
        self._plan = {at: chosen.to(self._model.device) for at, chosen in plan.items()}
        self._arm()
        self._seen_cache = None
        if self._captured:
            self._note = self._body.register_forward_pre_hook(self._note_cache, with_kwargs=True)

    def _arm(self) -> None:
        """Hook on for one prefill."""
        assert self._places is not None
        self._state.begin(self._places, self._counts, self._plan)
        for row in self._rows.values():
            row.arm()
        self._unhook()
        for at in range(self._drops[0], len(self._layers)):
            hook = partial(self._layer, at)
            self._handles[at] = self._layers[at].register_forward_pre_hook(hook, with_kwargs=True)

    def _note_cache(self, module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:  # noqa: ARG002 – torch's arguments
        """Before the language model, whose layers run no hook in a replay: the cache of this run."""
        self._seen_cache = kwargs.get("past_key_values")
        self._note.remove()

    def left(self) -> list[int]:
        """Positions that each decoder layer stores: known on the host."""
        assert self._places is not None
        text = int(self._places.text.shape[0])
        stored = [self._places.length] * len(self._layers)
        for at, count in self._counts.items():
            stored[at:] = [text + count] * (len(stored) - at)
        return stored

    def inside(self) -> dict[str, tuple[Any, ...]]:
        """The language model drops within; the image's place and what is chosen blindly are fixed in it."""
        return {"language_model": (*self._counts.items(), self._selector.name, self._told)}

    def anew(self, stage: str) -> object:
        """Hook on again; what the layers then read besides their arguments."""
        if stage != "language_model":
            return None
        self._arm()
        return self._places, self._plan

    def _layer(self, at: int, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:  # noqa: ARG002 – torch's arguments
        """Before a decoder layer: drop here, or cut the arguments to what was dropped before."""
        hidden = args[0] if args else kwargs["hidden_states"]
        if self._state.prefilled(hidden.shape[1]):
            if self._in_decode and (mask := kwargs.get("attention_mask")) is not None:
                return args, {**kwargs, "attention_mask": self._state.decode_mask(at, mask, hidden, kwargs)}
            return None
        if at in self._state.counts:
            self._marks.enter()
            hidden = self._drop(at, hidden, kwargs)
        cut = {name: self._cut_one(name, value) for name, value in kwargs.items() if name != "hidden_states"}
        if at in self._state.counts:
            self._marks.leave()
        if not self._in_decode:
            self._handles.pop(at).remove()  # an idle hook would cost the decode microseconds a layer and token
        self._state.passed(at)
        return ((hidden, *args[1:]), cut) if args else (args, {**cut, "hidden_states": hidden})

    def _drop(self, at: int, hidden: Any, kwargs: Mapping[str, Any]) -> Any:
        """The hidden states without the tokens that are dropped here."""
        state = self._state
        if state.cache is None:
            state.cache = kwargs.get("past_key_values")
        if state.cache is None:
            raise UnreachablePointError(f"{self._method} needs a key-value cache; this run has none (use_cache=False)")
        vision = state.vision_here()
        if at in state.plan:
            chosen = state.plan[at]
        else:
            wants = self._selector.needs
            seen = Seen(
                count=vision.shape[0],
                features=hidden.index_select(1, vision) if wants is Needs.FEATURES else None,
                attention=self._rows[at].take()[0].index_select(0, vision) if at in self._rows else None,
            )
            chosen = self._selector.choose(seen, state.counts[at])
        return hidden.index_select(1, state.drop(at, chosen))

    def _cut_one(self, name: str, value: Any) -> Any:
        keep, length = self._state.keep, self._state.length
        if value is None or keep is None:
            return value
        if name == "position_ids":
            return self._state.remembered("count", value, self._state.count)
        if name == "attention_mask":
            return self._state.remembered(name, value, lambda: cut_mask(value, keep, length))
        if name == "position_embeddings":
            return self._state.remembered(name, value, lambda: cut_rotation(value, keep, length))
        return self._state.remembered(name, value, lambda: cut_other(name, value, keep, length))

    def _wrap_deepstack(self) -> bool:
        """Have image features that are added after early layers (DeepStack) cut as well."""
        body: Any = self._body
        add = getattr(body, "_deepstack_process", None)
        if add is None or "_deepstack_process" in vars(body):
            return False

        def added(hidden: Any, marked: Any, features: Any) -> Any:
            keep = self._state.keep
            if keep is None or marked is None or hidden.shape[1] == marked.shape[1]:
                return add(hidden, marked, features)
            rows = self._state.rows_of_images()
            return add(hidden, marked.index_select(1, keep), features.index_select(0, rows))

        body._deepstack_process = added
        return True

    def keeps(self) -> list[torch.Tensor | None]:
        """Positions that stayed in the last run, layer by layer; None where all did."""
        return self._state.by_layer(len(self._layers))

    def values(self, num_output_tokens: int) -> dict[str, Any]:
        """Vision tokens kept, observed on the cache of every layer."""
        cache, self._state.cache = self._seen_cache if self._captured else self._state.cache, None
        self._seen_cache = None
        counts = kept_by_layer(
            cache, text=self._state.text_count, num_output_tokens=num_output_tokens, method=self._method
        )
        if not self._captured and not self._state.complete(len(self._layers)):  # a loop compares with left() itself
            raise MeasurementError(f"{self._method}: not every decoder layer passed the hook; is the model wrapped?")
        return kept_values(counts)

    def _unhook(self) -> None:
        for handle in self._handles.values():
            handle.remove()
        self._handles = {}
        if self._note is not None:
            self._note.remove()

    def detach(self) -> None:
        """Take all hooks off, give every module what it had."""
        self._unhook()
        for row in self._rows.values():
            row.detach()
        if self._deepstack:
            del self._body._deepstack_process
            self._deepstack = False
        self._state.clear()

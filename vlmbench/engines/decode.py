"""One decode step over tensors that stay: what is captured once and replayed for every token.

The step reads the last token, its slot and its positions from tensors, runs the model's own forward, chooses the next
token, and leaves everything ready for the step after it. No value passes through the host.
"""

# transformers' annotations are incomplete and differ between the versions supported here.
# mypy: disable-error-code="no-untyped-call, misc"

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vlmbench.engines.attention import attention_kernels, grouped, takes_groups
from vlmbench.engines.refusals import refuse
from vlmbench.engines.static_cache import FixedCache, Spans

_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
_LAST = 8  # runs before a capture write so many slots at most
_OWN = frozenset({"input_ids", "position_ids", "attention_mask", "past_key_values", "logits_to_keep", *_TOKEN_TYPES})


@dataclass(kw_only=True)
class DecodeState:
    """What passes from step to step of one batch size; every tensor keeps its address.

    Args:
        batch: rows.
        capacity: slots of the cache: prompt and answer together.
        layers: of the decoder.
        device: of all tensors.
    """

    batch: int
    capacity: int
    layers: int
    device: torch.device
    slot: torch.Tensor = field(init=False)  # (1,): where the next token's keys go
    slots: list[torch.Tensor] = field(init=False, default_factory=list)  # the same of layers that hold fewer tokens
    cache: FixedCache = field(init=False)
    token: torch.Tensor = field(init=False)  # (B, 1): the last token
    positions: torch.Tensor | None = field(init=False, default=None)  # (..., B, 1): its position
    seen: torch.Tensor = field(init=False)  # (B, capacity): slots that hold a token, not padding
    answer: torch.Tensor = field(init=False)  # (B, capacity)
    count: torch.Tensor = field(init=False)  # (1,): tokens in the answer
    unfinished: torch.Tensor = field(init=False)  # (B,)
    going: torch.Tensor = field(init=False)  # (1,) on the host: whether a row is unfinished

    def __post_init__(self) -> None:
        here: dict[str, Any] = {"device": self.device, "dtype": torch.int64}
        self.slot = torch.zeros(1, **here)
        self.cache = FixedCache(layers=self.layers, capacity=self.capacity, slot=self.slot)
        self.token = torch.zeros(self.batch, 1, **here)
        self.seen = torch.zeros(self.batch, self.capacity, dtype=torch.bool, device=self.device)
        self.answer = torch.zeros(self.batch, self.capacity, **here)
        self.count = torch.zeros(1, **here)
        self.unfinished = torch.ones(self.batch, dtype=torch.bool, device=self.device)
        self.going = torch.ones(1, dtype=torch.bool, pin_memory=self.device.type == "cuda")

    def rewind(self, windows: Spans) -> None:
        """Let the next steps write to the last slots of these windows: for steps whose outcome does not matter."""
        self._at(tuple((first, max(window - _LAST, 0)) for first, window in windows))
        self.count.zero_()

    def _at(self, held: Spans) -> None:
        """Let each layer's next step write after the tokens that it holds."""
        self.slot.fill_(held[0][1])
        for number, (_, count) in enumerate(held[1:]):
            if number == len(self.slots):
                self.slots.append(torch.zeros_like(self.slot))
            self.slots[number].fill_(count)

    def look_at(self, windows: Spans) -> None:
        """Let decode steps attend over these windows."""
        shorter = [(*span, slot) for span, slot in zip(windows[1:], self.slots, strict=False)]
        self.cache.look_at(windows[0][1], shorter)

    def begin(self, prompt_mask: torch.Tensor, positions: torch.Tensor | None, shorter: Spans = ()) -> None:
        """Make ready for a request: nothing of the one before it can be seen.

        Args:
            prompt_mask: (B, prompt), 0 for padding; of the tokens that the first layer stores.
            positions: (..., B, prompt) of the prompt; None where the model counts by itself.
            shorter: (first layer, tokens) of layers that store fewer.
        """
        length = prompt_mask.shape[1]
        self.seen.zero_()
        self.seen[:, :length].copy_(prompt_mask)
        self._at(((0, length), *shorter))
        self.count.zero_()
        self.unfinished.fill_(True)
        if positions is None:
            return
        following = positions[..., -1:] + 1  # of the first new token
        if self.positions is None:
            self.positions = torch.empty_like(following)
        self.positions.copy_(following)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a token is chosen: the most likely one, as greedy ``generate()`` does.

    Args:
        eos: ids that end a row; shape (n,).
        pad: what a finished row gets.
        forced: ``eos`` is never chosen, and no row ends.
    """

    eos: torch.Tensor
    pad: int
    forced: bool

    def __call__(self, state: DecodeState, logits: torch.Tensor) -> None:
        """Choose from ``logits`` (B, vocabulary) and write token and answer."""
        scores = logits.float()
        if self.forced and len(self.eos):
            scores = scores.index_fill(1, self.eos, -torch.inf)
        chosen = scores.argmax(-1)
        if not self.forced and len(self.eos):
            chosen = torch.where(state.unfinished, chosen, self.pad)
            state.unfinished.logical_and_((chosen[:, None] != self.eos).all(-1))
            state.going.copy_(state.unfinished.any()[None], non_blocking=True)
        state.token.copy_(chosen[:, None])
        state.answer.index_copy_(1, state.count, chosen[:, None])
        state.count.add_(1)


@dataclass(kw_only=True)
class Step:
    """The step of one batch size and one window.

    Args:
        module: the top-level model.
        forward: its own forward.
        decoder_config: of the language model.
        state: what it reads and writes.
        windows: slots that it attends over: of all layers, and of those from a layer on that hold fewer tokens.
        choice: of the token.
        template: the model's inputs of a decode step, as its class makes them; constants are taken from it.
        compiler: compiles the forward before it is captured; None leaves it as it is.
    """

    module: Any
    forward: Callable[..., Any]
    decoder_config: Any
    state: DecodeState
    windows: Spans
    choice: Choice
    template: Mapping[str, Any]
    compiler: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    _plain: bool = field(init=False)
    _as_they_are: bool = field(init=False, default=False)  # groups of heads
    _shift: int = field(init=False)
    _inputs: dict[str, Any] = field(init=False)
    _logits: Callable[[Any], torch.Tensor] = field(init=False)

    @property
    def window(self) -> int:
        """Slots of the first layer."""
        return self.windows[0][1]

    def __post_init__(self) -> None:
        constants = {name: value for name, value in self.template.items() if name not in _OWN}
        self._inputs = {name: value for name, value in constants.items() if not isinstance(value, torch.Tensor)}
        for name in _TOKEN_TYPES:
            if self.template.get(name) is not None:
                self._inputs[name] = self.template[name].clone()
        self._shift = self._shift_of_class()
        self._plain = all(_all_seen(mask) for mask in _masks(self.template.get("attention_mask")))
        self._logits = self._run if self.compiler is None else self.compiler(self._run)
        if self.windows[1:] and not (self._plain and self.compiler is None):
            refuse(self.module, "layers that hold fewer tokens have windows of their own, or are compiled")
        self._refuse_what_it_reads({name for name in constants if name not in self._inputs})

    def __call__(self) -> torch.Tensor:
        """Run one step; the logits that its token was chosen by, (batch, vocabulary)."""
        state = self.state
        state.seen.index_fill_(1, state.slot, True)
        mask = self._mask()
        with grouped(self.decoder_config, self._shorter(), as_they_are=self._as_they_are):
            logits = self._logits(mask)
        state.slot.add_(1)
        for slot, _ in zip(state.slots, self.windows[1:], strict=False):
            slot.add_(1)
        if state.positions is not None:
            state.positions.add_(1)
        self.choice(state, logits)
        return logits

    def _shift_of_class(self) -> int:
        """What the class adds to positions (PaliGemma counts from 1); a class without positions counts by itself.

        Raises:
            ModelError: it does something else with them.
        """
        given, made = self.state.positions, self.template.get("position_ids")
        if given is None or made is None:
            return 0
        shift = made - given if made.shape == given.shape else None
        if shift is None or shift.unique().numel() != 1:
            refuse(self.module, "its class makes positions of its own for every token")
        return int(shift.flatten()[0])

    def _refuse_what_it_reads(self, names: set[str]) -> None:
        """Refuse a decode step that reads tensors of the prompt again: in the next request they lie elsewhere.

        Most classes hand such tensors on and do not look at them without pixels; then the logits do not need them.

        Raises:
            ModelError: with the names.
        """
        if not names:
            return
        mask, without = self._mask(), self._inputs
        try:
            bare = self._seen_by_all(mask)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
            bare = None
        self._inputs = {**without, **{name: self.template[name] for name in names}}
        full = self._seen_by_all(mask)
        self._inputs = without
        if bare is None or not _equal_as_rounded(bare, full):
            refuse(self.module, f"its decode step reads {', '.join(sorted(names))} again")

    def _seen_by_all(self, mask: Any) -> torch.Tensor:
        """The logits, by the module's own attention unless layers need masks of their own."""
        if not self.windows[1:]:
            return self._run(mask)
        with grouped(self.decoder_config, self._shorter()):
            return self._run(mask)

    def _shorter(self) -> list[tuple[int, torch.Tensor]]:
        """(first layer, mask) of the layers that hold fewer tokens; rows have no padding there."""
        found = []
        for slot, (first, window) in zip(self.state.slots, self.windows[1:], strict=False):
            seen = torch.arange(window, device=slot.device) <= slot
            found.append((first, self._dense(seen[None, None, None])))
        return found

    def kernels(self) -> Mapping[str, int]:
        """Run the forward once, uncompiled: which attention operators it runs, and how often.

        Groups of heads are handed to the kernel as they are from here on, where it is one that takes them.
        """
        if self.state.device.type == "cuda":
            found = self._kernels(as_they_are=True)
            if takes_groups(found):
                self._as_they_are = True
                return found
        return self._kernels(as_they_are=False)

    def _kernels(self, *, as_they_are: bool) -> Mapping[str, int]:
        mask = self._mask()
        with attention_kernels() as seen, grouped(self.decoder_config, self._shorter(), as_they_are=as_they_are):
            self._run(mask)
        return dict(seen)

    def _run(self, mask: Any) -> torch.Tensor:
        state = self.state
        inputs = {**self._inputs, "input_ids": state.token, "past_key_values": state.cache, "attention_mask": mask}
        if state.positions is not None and self.template.get("position_ids") is not None:
            inputs["position_ids"] = state.positions + self._shift if self._shift else state.positions
        logits: torch.Tensor = self.forward(**inputs, return_dict=True).logits[:, -1]
        return logits

    def _mask(self) -> Any:
        """Added to the scores, made once a step: attention would turn what is allowed into it in every layer.

        One tensor for all layers, or one for each kind of layer.
        """
        if self._plain:  # all layers see every token so far
            mask = self._added(self.state.seen[:, None, None, : self.window])
            like = self.template.get("attention_mask")
            return dict.fromkeys(like, mask) if isinstance(like, Mapping) else mask
        masks = decode_masks(self.module, self.state, self.window, self._inputs)
        if isinstance(masks, Mapping):
            return {kind: self._added(mask) for kind, mask in masks.items()}
        return self._added(masks)

    def _added(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        return mask if mask is None or mask.dtype != torch.bool else self._dense(mask)

    def _dense(self, mask: torch.Tensor) -> torch.Tensor:
        nothing = torch.zeros((), dtype=self.module.dtype, device=mask.device)
        return torch.where(mask, nothing, torch.finfo(self.module.dtype).min)


def decode_masks(module: Any, state: DecodeState, window: int, inputs: Mapping[str, Any]) -> Any:
    """The masks of one decode step as the model's class makes them, from tensors only."""
    from transformers.masking_utils import create_masks_for_generate

    create = getattr(module, "create_masks_for_generate", create_masks_for_generate)
    return create(
        config=module.config,
        inputs_embeds=torch.empty((state.batch, 1, 0), dtype=module.dtype, device=state.device),
        attention_mask=state.seen[:, :window],
        past_key_values=state.cache,
        position_ids=state.positions,
        is_first_iteration=False,
        **{name: inputs.get(name) for name in ("token_type_ids", "mm_token_type_ids")},
    )


def step_template(module: Any, state: DecodeState, window: int, model_kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs that the model's class gives to a decode step, at the last slot of a full window.

    Args:
        state: of a request that was prefilled; its slot and what it has seen are put back.
        window: slots.
        model_kwargs: what the class was handed for the prefill, without ids, mask and positions.
    """
    slot, seen = state.slot.clone(), state.seen.clone()
    state.slot.fill_(window - 1)
    state.seen[:, :window] = True
    state.cache.look_at(window)
    kwargs = dict(model_kwargs)
    for name in _TOKEN_TYPES:
        if kwargs.get(name) is not None:
            last = kwargs[name][:, -1:]
            # As generate() goes on: text follows, or what came last does.
            kwargs[name] = last if name == "token_type_ids" else torch.zeros_like(last)
    template: Mapping[str, Any] = module.prepare_inputs_for_generation(
        state.token,
        next_sequence_length=1,
        past_key_values=state.cache,
        attention_mask=state.seen[:, :window],
        position_ids=None if state.positions is None else state.positions.clone(),  # some classes add to it in place
        is_first_iteration=False,
        **kwargs,
    )
    state.slot.copy_(slot)
    state.seen.copy_(seen)
    return template


def _equal_as_rounded(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether logits are equal up to rounding: kernels may add in another order when they are run again."""
    tolerance = 2 * torch.finfo(one.dtype).eps * float(one.abs().max())
    return float((one.float() - other.float()).abs().max()) <= tolerance


def _masks(mask: Any) -> list[torch.Tensor | None]:
    return list(mask.values()) if isinstance(mask, Mapping) else [mask]


def _all_seen(mask: torch.Tensor | None) -> bool:
    """Whether a mask of a full window hides nothing: then no layer has a window of its own."""
    if mask is None:
        return True
    return bool(mask.all()) if mask.dtype == torch.bool else bool((mask == 0).all())

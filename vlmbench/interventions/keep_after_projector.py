"""Vision tokens dropped between the projector and the language model: the family of VisionZip, PruMerge, FasterVLM.

One hook on the language model, in the prefill only, for every model that places image features among its text. Tokens
keep the positions that they had; the decode needs nothing, because ``generate()`` counts on from the whole prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlmbench.errors import UnreachablePointError
from vlmbench.interventions.cutting import cut_mask, cut_other
from vlmbench.interventions.encoder_scores import EncoderScores
from vlmbench.interventions.language import check_window, decoder_layers, is_flash, language_model
from vlmbench.interventions.marks import marks_of
from vlmbench.interventions.observed import kept_by_layer, kept_values
from vlmbench.interventions.places import Places, find_places
from vlmbench.interventions.protocol import check_share
from vlmbench.interventions.selectors import Needs, Seen, Selector, selector_of

if TYPE_CHECKING:
    import torch

    from vlmbench.models.protocol import Prepared
    from vlmbench.request import Request

_ALLOWED = frozenset({Needs.NOTHING, Needs.FEATURES, Needs.ENCODER_ATTENTION})


@dataclass(frozen=True, kw_only=True)
class KeepAfterProjector:
    """Keeps a share of the vision tokens, chosen between the projector and the language model.

    Args:
        keep: share of vision tokens that stays, above 0, at most 1.
        selector: random, uniform, norm, encoder_attention, or an object with ``name``, ``needs``, ``choose``.
        seed: of the random selector.
    """

    keep: float
    selector: Any = "norm"
    seed: int = 0

    name = "keep_after_projector"

    def __post_init__(self) -> None:
        check_share("keep", self.keep)
        _ = self.chooser

    @property
    def chooser(self) -> Selector:
        """The selector itself."""
        return selector_of(self.selector, allowed=_ALLOWED, seed=self.seed, method=self.name)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Share, selector, and the seed of a random one."""
        given: dict[str, Any] = {"keep": self.keep, "selector": self.chooser.name}
        return given | ({"seed": self.seed} if self.chooser.name == "random" else {})

    def keeping(self, keep: float) -> KeepAfterProjector:
        """The same with another share."""
        return replace(self, keep=keep)

    def request(self, request: Request, model: Any) -> Request:  # noqa: ARG002 – the protocol's arguments
        """The request itself."""
        return request

    def attach(self, model: Any) -> AfterProjector:
        """Hook onto the language model.

        Raises:
            UnreachablePointError: this model has no place for it.
        """
        return AfterProjector(model, self.chooser, self.keep, method=self.name)


class AfterProjector:
    """The method at work: see :class:`vlmbench.interventions.protocol.Attachment`."""

    def __init__(self, model: Any, selector: Selector, keep: float, *, method: str) -> None:
        self._model = model
        self._method = method
        self._selector = selector
        self._keep = keep
        self._body = language_model(model, method=method)
        self._marks = marks_of(model.module)
        needs_scores = selector.needs is Needs.ENCODER_ATTENTION
        self._scores = EncoderScores(model, self._marks) if needs_scores else None
        self._handles: list[Any] = []
        self._places: Places | None = None
        self._chosen: torch.Tensor | None = None
        self._cache: Any = None
        self.kept: torch.Tensor | None = None

    def begin(self, prepared: Prepared) -> None:
        """Find the image in the prompt, choose what can be chosen without looking, hook on."""
        self._places = places = find_places(prepared, self._model, method=self._method)
        if places.rows > 1 and self._selector.needs is not Needs.NOTHING:
            raise UnreachablePointError(
                f"{self._method}: selector {self._selector.name} chooses by content, for one row at a time "
                f"(batch_size={places.rows}); take random or uniform for batches"
            )
        check_window(self._body, places, method=self._method)
        self._cache = self.kept = self._chosen = None
        if self._selector.needs is Needs.NOTHING:
            seen = Seen(count=places.count)
            self._chosen = self._selector.choose(seen, places.kept(self._keep)).to(self._model.device)
        if self._scores is not None:
            self._scores.begin(prepared, self._model.device)
        self._unhook()
        self._handles.append(self._body.register_forward_pre_hook(self._cut, with_kwargs=True))
        if is_flash(self._body):  # gaps in the positions look like packed sequences to it: count without gaps
            for layer in decoder_layers(self._body, method=self._method):
                self._handles.append(layer.register_forward_pre_hook(self._count, with_kwargs=True))

    def _cut(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:  # noqa: ARG002 – torch's arguments
        """The language model's arguments without the dropped tokens; once a run, then the hook is taken off."""
        places = self._places
        embeds = kwargs.get("inputs_embeds")
        assert places is not None
        if embeds is None or embeds.shape[1] != places.length:
            shape = None if embeds is None else tuple(embeds.shape)
            raise UnreachablePointError(
                f"{self._method}: {type(self._model.module).__name__} calls its language model with embeddings of "
                f"shape {shape}, not with all {places.length} positions of the prompt"
            )
        self._marks.enter()
        self._handles.pop(0).remove()
        self._cache = _cache_of(kwargs, self._method)
        chosen = self._choose(embeds, places)
        self.kept = keep = places.positions(chosen)
        cut = {name: self._cut_one(name, value, chosen, keep) for name, value in kwargs.items()}
        if cut.get("position_ids") is None:
            cut["position_ids"] = keep[None]
        self._marks.leave()
        return args, cut

    def _choose(self, embeds: Any, places: Places) -> torch.Tensor:
        if self._chosen is not None:
            return self._chosen
        seen = Seen(
            count=places.count,
            features=embeds.index_select(1, places.vision) if self._selector.needs is Needs.FEATURES else None,
            attention=None if self._scores is None else self._scores.take(places.count),
        )
        return self._selector.choose(seen, places.kept(self._keep))

    def _cut_one(self, name: str, value: Any, chosen: Any, keep: Any) -> Any:
        places = self._places
        assert places is not None
        if name == "position_ids":
            return None if value is None else value.index_select(-1, keep)
        if name == "attention_mask":
            return cut_mask(value, keep, places.length)
        if name == "deepstack_visual_embeds" and value is not None:
            rows = chosen if places.rows == 1 else _every_row(chosen, places)
            return [part.index_select(0, rows) for part in value]
        return cut_other(name, value, keep, places.length)

    def _count(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        """A layer's positions without gaps (the rotation is in ``position_embeddings``), in the prefill only."""
        if self.kept is None or kwargs.get("position_ids") is None or args[0].shape[1] == 1:
            return None
        import torch

        count = torch.arange(self.kept.shape[0], device=self.kept.device)[None]
        return args, {**kwargs, "position_ids": count}

    def left(self) -> list[int]:
        """Positions that each decoder layer stores: known on the host."""
        places = self._places
        assert places is not None
        kept = int(places.text.shape[0]) + places.kept(self._keep)
        return [kept] * len(decoder_layers(self._body, method=self._method))

    def inside(self) -> dict[str, str]:
        """Scores are taken in the encoder; the language model is the same code with fewer positions."""
        return {} if self._scores is None else {"vision_encoder": self._selector.name}

    def anew(self, stage: str) -> None:
        """Take the scores anew."""
        if stage == "vision_encoder" and self._scores is not None:
            self._scores.anew()

    def keeps(self) -> list[torch.Tensor | None]:
        """Positions that stayed in the last run, layer by layer."""
        return [self.kept] * len(decoder_layers(self._body, method=self._method))

    def values(self, num_output_tokens: int) -> dict[str, Any]:
        """Vision tokens kept, observed on the cache."""
        cache, self._cache = self._cache, None
        text = 0 if self._places is None else int(self._places.text.shape[0])
        return kept_values(kept_by_layer(cache, text=text, num_output_tokens=num_output_tokens, method=self._method))

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def detach(self) -> None:
        """Take all hooks off."""
        self._unhook()
        if self._scores is not None:
            self._scores.detach()
        self._cache = self.kept = self._chosen = None


def _cache_of(kwargs: Mapping[str, Any], method: str) -> Any:
    """The run's cache.

    Raises:
        UnreachablePointError: there is none: every step would be a prefill of the whole prompt.
    """
    cache = kwargs.get("past_key_values")
    if cache is None or kwargs.get("use_cache") is False:
        raise UnreachablePointError(f"{method} needs a key-value cache; this run has none (use_cache=False)")
    return cache


def _every_row(chosen: Any, places: Places) -> Any:
    """Rows of features of all images of a batch, (batch · n, width), for equal choices in each."""
    import torch

    offsets = torch.arange(places.rows, device=chosen.device) * places.count
    return (offsets[:, None] + chosen[None]).reshape(-1)

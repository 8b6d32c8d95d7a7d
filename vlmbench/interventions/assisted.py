"""Several tokens proposed and checked by one forward: transformers' assisted decoding, cut by accepted tokens.

A draft (a smaller model of the same vocabulary, or the prompt itself: prompt lookup) proposes tokens; the model checks
all of them in one forward and keeps those that it would have chosen. The tokens are the model's own; what varies is how
many a forward yields.

transformers 5.23 keeps the image from the draft: what it proposes is read off the text alone, and each row says
so (``draft_sees_image``).
"""

# transformers' annotations are incomplete and differ between the versions supported here.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from vlmbench.errors import MeasurementError, UnreachablePointError, first_line
from vlmbench.interventions.language import refuse_captured
from vlmbench.interventions.marks import marks_of

if TYPE_CHECKING:
    from vlmbench.models.protocol import Prepared
    from vlmbench.request import Request

PROOF_TOKENS = 16
_ROUNDING_STEPS = 4  # of the number format, as a share of the largest logit: what two orders of summing may differ by
_LEAST_ROUNDING = 1e-4
_PIXELS = ("pixel_values", "image_patches", "images", "flattened_patches")
_DRAFTS: dict[Any, Any] = {}  # loaded draft models; a run has one or two


@dataclass(frozen=True, kw_only=True)
class Assisted:
    """Proposes tokens and has the model check them together.

    Args:
        draft: the :class:`vlmbench.models.spec.ModelSpec` of a model with the same vocabulary; None looks the last
            tokens up in the prompt and the answer so far.
        tokens: that are proposed for each forward.
        ngram: with prompt lookup: so many last tokens at most are looked up.
        seed: of a draft's random weights.
    """

    draft: Any = None  # a ModelSpec; its name is not imported where a configuration reads these hints
    tokens: int = 5
    ngram: int = 2
    seed: int = 0

    name = "assisted"

    def __post_init__(self) -> None:
        for name in ("tokens", "ngram"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"'{name}' must be a whole number of 1 or more (got {value!r})")

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What proposes, and how much."""
        if self.draft is None:
            return {"draft": "prompt_lookup", "tokens": self.tokens, "ngram": self.ngram}
        return {"draft": self.draft.name, "tokens": self.tokens, "seed": self.seed}

    def request(self, request: Request, model: Any) -> Request:  # noqa: ARG002 – the protocol's arguments
        """The request itself.

        Raises:
            UnreachablePointError: a batch; transformers checks one request at a time.
        """
        if request.batch_size > 1:
            raise UnreachablePointError(f"{self.name}: one request at a time (got a batch of {request.batch_size})")
        return request

    def attach(self, model: Any) -> Assistance:
        """Have ``generate()`` use the draft, which is loaded once.

        Raises:
            UnreachablePointError: the cache cannot drop what was refused, or the draft has another vocabulary.
        """
        return Assistance(model, self)

    def prove(self, model: Any, prepared: Prepared) -> Mapping[str, Any]:
        """Compare the first tokens of an answer with those of plain decoding.

        Raises:
            UnreachablePointError: they differ by more than two orders of summing explain, or decoding fails.
        """
        from vlmbench.interventions.proof import answer

        asked = min(PROOF_TOKENS, prepared.output.max_new_tokens)
        plain = answer(model, prepared, asked)
        attachment = self.attach(model)
        try:
            attachment.begin(prepared)
            with_draft = answer(model, prepared, asked)
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise UnreachablePointError(
                f"{self.name} fails on {type(model.module).__name__} with this prompt: {first_line(error)}"
            ) from error
        finally:
            attachment.detach()
        unlike = (plain.tokens != with_draft.tokens).nonzero()
        equal = int(unlike[0, 0]) if unlike.numel() else asked
        if equal < asked:
            self._refuse_unless_even(model, plain.logits[equal], int(with_draft.tokens[equal]))
        end = "" if equal == asked else "; there two tokens were even, as far as rounding tells"
        words = f"the first {equal} of {asked} tokens are those of plain decoding{end}"
        return {"words": words, "holds": True, "weak": False, "tokens": asked, "tokens_equal": equal}

    def _refuse_unless_even(self, model: Any, logits: Any, token: int) -> None:
        import torch

        rounding = max(_LEAST_ROUNDING, _ROUNDING_STEPS * torch.finfo(next(model.module.parameters()).dtype).eps)
        if float(logits.max() - logits[token]) > rounding * float(logits.abs().max()):
            raise UnreachablePointError(
                f"{self.name} is refused for {type(model.module).__name__}: its tokens are not those of plain decoding"
            )


class Assistance:
    """The method at work: see :class:`vlmbench.interventions.protocol.Attachment`."""

    def __init__(self, model: Any, spec: Assisted) -> None:
        refuse_captured(model, method=spec.name)
        if model.compile or model.cache_implementation is not None or model.team is not None:
            raise UnreachablePointError(
                f"{spec.name} takes tokens back out of the cache: a dynamic one in one process, runtime=eager"
            )
        self._module, self._marks = model.module, marks_of(model.module)
        self._lengths: list[int] = []
        self._drafted: list[int] = []
        self._lookup, self._images = spec.draft is None, list(model.marks.image_token_ids)
        self._sees_image: bool | None = None
        self._hook: Any = None
        options: dict[str, Any] = {"prompt_lookup_num_tokens": spec.tokens, "max_matching_ngram_size": spec.ngram}
        if spec.draft is not None:
            draft = draft_of(model, spec)
            options = {"assistant_model": draft}
            self._hook = draft.register_forward_pre_hook(self._note, with_kwargs=True)
        self._module.generate = partial(self._module.generate, **options)
        self._make = self._module._get_candidate_generator
        self._module._get_candidate_generator = self._watched

    def _note(self, module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:  # noqa: ARG002 – torch's arguments
        """At the draft's forwards: whether it is given the image, which transformers may keep to the model."""
        given = any(kwargs.get(name) is not None for name in (*_PIXELS, "mm_encoder_outputs"))
        self._sees_image = bool(self._sees_image) or given

    def _watched(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' maker of candidates, whose work is marked as the method's own and counted."""
        generator = self._make(*args, **kwargs)
        propose: Callable[..., Any] = generator.get_candidates

        def get_candidates(ids: Any, *more: Any, **named: Any) -> Any:
            self._lengths.append(int(ids.shape[1]))
            self._marks.enter()
            try:
                proposed = self._without_images(ids, *propose(ids, *more, **named))
            finally:
                self._marks.leave()
            self._drafted.append(int(proposed[0].shape[1]) - int(ids.shape[1]))
            return proposed

        generator.get_candidates = get_candidates
        return generator

    def _without_images(self, ids: Any, proposed: Any, logits: Any) -> tuple[Any, Any]:
        """A proposal cut before the first image position: prompt lookup would take one for a token."""
        if not self._lookup:
            return proposed, logits
        import torch

        new = proposed[0, ids.shape[1] :]
        images = torch.isin(new, torch.tensor(self._images, device=new.device)).nonzero()
        return (proposed[:, : ids.shape[1] + int(images[0, 0])] if images.numel() else proposed), logits

    def begin(self, prepared: Prepared) -> None:  # noqa: ARG002 – the protocol's argument
        """Forget the run before."""
        self._lengths, self._drafted = [], []
        self._sees_image = None

    def values(self, num_output_tokens: int) -> dict[str, Any]:
        """Forwards that checked, tokens that each yielded, tokens that were proposed.

        Raises:
            MeasurementError: no forward was seen: the answer was decoded without the method.
        """
        if not self._lengths:
            raise MeasurementError("assisted: no tokens were proposed; generate() decoded without the method")
        ends = [*self._lengths[1:], self._lengths[0] + num_output_tokens]
        accepted = [end - begin for begin, end in zip(self._lengths, ends, strict=True)]
        return {
            "num_forwards": len(accepted),
            "tokens_each_forward": accepted,
            "tokens_per_forward": num_output_tokens / len(accepted),
            "num_drafted_tokens": sum(self._drafted),
            **({} if self._sees_image is None else {"draft_sees_image": self._sees_image}),
        }

    def detach(self) -> None:
        """Leave ``generate()`` and the draft as they were."""
        if self._hook is not None:
            self._hook.remove()
        for name in ("generate", "_get_candidate_generator"):
            vars(self._module).pop(name, None)


def draft_of(model: Any, spec: Assisted) -> Any:
    """The draft's module, on the model's device and in its dtype; loaded once.

    Raises:
        UnreachablePointError: it has another vocabulary.
    """
    from vlmbench.models.loading import load
    from vlmbench.models.runtime import Runtime

    assert spec.draft is not None
    dtype = str(next(model.module.parameters()).dtype).removeprefix("torch.")
    key = (repr(spec.draft), spec.seed, str(model.device), dtype)
    if key not in _DRAFTS:
        runtime = Runtime(device=str(model.device), dtype=dtype)
        _DRAFTS[key] = load(spec.draft, runtime, seed=spec.seed).module
    draft = _DRAFTS[key]
    sizes = [one.config.get_text_config(decoder=True).vocab_size for one in (model.module, draft)]
    if sizes[0] != sizes[1]:
        raise UnreachablePointError(
            f"{spec.name}: the draft '{spec.draft.name}' has a vocabulary of {sizes[1]:,}, the model {sizes[0]:,}"
        )
    # As many as are asked for, every time: transformers would propose more or fewer by how the last went.
    config = draft.generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = spec.tokens, "constant"
    config.assistant_confidence_threshold = 0.0
    return draft

"""A method proves itself on the model at hand before it is measured.

Four answers of a few tokens are compared: the baseline's; the method's with everything kept, which must be the same
tokens; the method's own; and that of a reference that drops nothing and masks what the method dropped
(:mod:`vlmbench.interventions.reference`). What rounding alone makes of the reference is measured beside it, with
nothing masked. A method that fails is refused: its times would be those of another model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlmbench.errors import UnreachablePointError
from vlmbench.interventions.language import decoder_layers, language_model
from vlmbench.interventions.protocol import Attachment, Intervention, KeepsTokens
from vlmbench.interventions.reference import masked_reference
from vlmbench.request import Output

if TYPE_CHECKING:
    import torch

    from vlmbench.models.protocol import Prepared

TOKENS = 8
_ROUNDING = 1e-4  # of the logits' largest value: float32 in another order of summing
_TIMES_NOISE = 4.0


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was compared, over the first tokens of one answer.

    Args:
        keep_one_equal: everything kept gives the baseline's logits, as far as rounding tells, and so its tokens.
        tokens_equal: leading tokens of the method that equal the masked reference's.
        tokens: that were compared.
        error: largest difference of logits between method and reference, as far as their tokens agree.
        noise: the same between the baseline and the reference with nothing masked: rounding alone.
        effect: the same between the method and the baseline's first step: what dropping does.
        scale: the logits' largest absolute value.
        rounding: of the model's number format, as a share of ``scale``.
        restored: after detaching, the baseline's answer is the same again.
        kept_by_layer: observed on the cache.
    """

    keep_one_equal: bool
    tokens_equal: int
    tokens: int
    error: float
    noise: float
    effect: float
    scale: float
    rounding: float
    restored: bool
    kept_by_layer: str

    @property
    def tolerance(self) -> float:
        """The difference that rounding explains."""
        return tolerance_of(self.rounding, self.scale, self.noise)

    @property
    def weak(self) -> bool:
        """Whether dropping changes no more than rounding does, so that equality to the reference says little."""
        return self.effect <= self.tolerance

    @property
    def holds(self) -> bool:
        """Whether the method does what it says."""
        return self.keep_one_equal and self.restored and self.error <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        """For the provenance."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**fields, "tolerance": self.tolerance, "weak": self.weak, "holds": self.holds}

    def why_not(self) -> str:
        """What failed, in words."""
        if not self.keep_one_equal:
            return "with everything kept it does not give the baseline's tokens"
        if not self.restored:
            return "after it was taken off, the model no longer gives the baseline's answer"
        return (
            f"its logits differ from the masked reference's by {self.error:.2g} where rounding explains "
            f"{self.tolerance:.2g}"
        )


def tolerance_of(rounding: float, scale: float, noise: float) -> float:
    """The difference of logits that rounding explains."""
    return max(rounding * scale, _TIMES_NOISE * noise)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Tokens (n,) and logits (n, vocabulary) of the first row of a batch."""

    tokens: torch.Tensor
    logits: torch.Tensor

    def same(self, other: Answer, within: float = 0.0) -> bool:
        """Whether logits differ by no more than ``within``, as far as the tokens are equal and where they first part:
        two runs of the same bfloat16 code on a GPU may choose differently between tokens that are even.
        """
        return _difference(self, other) <= within


def prove(model: Any, intervention: KeepsTokens, prepared: Prepared, *, tokens: int = TOKENS) -> Proof:
    """Compare a method that drops tokens with its masked reference.

    Args:
        intervention: with the share that is to be proven; 0.5 says most.
        tokens: of the answers that are compared.

    Raises:
        UnreachablePointError: it does not apply to this model or request.
    """
    baseline = answer(model, prepared, tokens)
    whole, _, _ = _with(model, intervention.keeping(1.0), prepared, tokens)
    arm, keeps, observed = _with(model, intervention, prepared, tokens)
    again = answer(model, prepared, tokens)
    layers = decoder_layers(language_model(model, method=intervention.name), method=intervention.name)
    length = int(prepared.inputs["input_ids"].shape[1])
    with masked_reference(layers, keeps, length=length):
        reference = answer(model, prepared, tokens)
    with masked_reference(layers, [None] * len(layers), length=length):
        unmasked = answer(model, prepared, tokens)
    rounding, scale = _rounding(model.module), float(baseline.logits.abs().max())
    noise = _difference(baseline, unmasked)
    explained = tolerance_of(rounding, scale, noise)
    return Proof(
        keep_one_equal=whole.same(baseline, within=explained),
        tokens_equal=_leading(arm, reference),
        tokens=tokens,
        error=_difference(arm, reference),
        noise=noise,
        effect=float((arm.logits[0] - baseline.logits[0]).abs().max()),
        scale=scale,
        rounding=rounding,
        restored=again.same(baseline, within=explained),
        kept_by_layer=observed,
    )


def check(model: Any, intervention: Intervention, prepared: Prepared) -> Proof | None:
    """Refuse a method that does not do what it says; None for one that keeps all tokens.

    Raises:
        UnreachablePointError: it does not apply, or it failed its proof.
    """
    if not isinstance(intervention, KeepsTokens):
        return None
    proof = prove(model, intervention, prepared)
    if not proof.holds:
        architecture = type(model.module).__name__
        raise UnreachablePointError(f"{intervention.name} is refused for {architecture}: {proof.why_not()}")
    return proof


def compare_captured(plain: Answer, captured: Answer, tolerance: float, *, of: str) -> dict[str, Any]:
    """Compare an arm as an engine's loop replays it with the same arm as Python code; words and figures.

    Args:
        plain: of ``generate()`` under the method, which proved itself.
        captured: of the loop under the method.
        tolerance: the difference of logits that rounding explains.
        of: arm and model, named in errors.

    Raises:
        UnreachablePointError: they are not the same answer.
    """
    equal, tokens, error = _leading(plain, captured), int(plain.tokens.shape[0]), _difference(plain, captured)
    if error > tolerance:
        raise UnreachablePointError(
            f"{of} is refused: replayed, its logits differ by {error:.2g} from those of the same code run as Python, "
            f"where rounding explains {tolerance:.2g}"
        )
    end = "" if equal == tokens else "; there two tokens were even, as far as rounding tells"
    words = (
        f"{equal} of {tokens} tokens and their logits are those of the same arm run as Python (they differ by "
        f"{error:.2g}, rounding explains {tolerance:.2g}){end}"
    )
    figures = {"tokens": tokens, "tokens_equal": equal, "error": error, "tolerance": tolerance}
    return {"words": words, "holds": True, "weak": False, **figures}


def answer_of_loop(model: Any, prepared: Prepared, tokens: int) -> Answer:
    """The same of an engine's loop."""
    import torch

    short = replace(prepared, output=Output(max_new_tokens=tokens, forced=True))
    model.ready(short)
    logits: list[torch.Tensor] = []
    given = model.generate(short, [lambda _, scores: logits.append(scores[0].float().clone())])
    return Answer(tokens=given[0].clone(), logits=torch.stack(logits))


def answer(model: Any, prepared: Prepared, tokens: int) -> Answer:
    """A greedy answer of exactly so many tokens with its logits, uncompiled."""
    import torch

    options: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    if model.cache_implementation is not None:
        options["cache_implementation"] = model.cache_implementation
    with torch.inference_mode():
        produced = model.module.generate(
            **prepared.inputs, **options, disable_compile=True, output_logits=True, return_dict_in_generate=True
        )
    logits = torch.stack([step[0].float() for step in produced.logits])
    return Answer(tokens=produced.sequences[0, -tokens:].clone(), logits=logits)


def _rounding(module: Any) -> float:
    """What the model's number format rounds, as a share of the largest logit: twice its step, 1e-4 at least."""
    import torch

    return max(_ROUNDING, 2 * torch.finfo(next(module.parameters()).dtype).eps)


def _with(
    model: Any, intervention: Intervention, prepared: Prepared, tokens: int
) -> tuple[Answer, list[torch.Tensor | None], str]:
    """(answer, positions kept at each layer, vision tokens observed on the cache) under a method."""
    attachment: Attachment = intervention.attach(model)
    try:
        attachment.begin(prepared)
        given = answer(model, prepared, tokens)
        keeps = [None if keep is None else keep.clone() for keep in attachment.keeps()]  # type: ignore[attr-defined]
        return given, keeps, attachment.values(tokens).get("kept_by_layer", "")
    finally:
        attachment.detach()


def _leading(one: Answer, other: Answer) -> int:
    """Tokens that are equal before the first that is not."""
    unlike = (one.tokens != other.tokens).nonzero()
    return int(unlike[0, 0]) if unlike.numel() else int(one.tokens.shape[0])


def _difference(one: Answer, other: Answer) -> float:
    """Largest difference of logits up to and including the first step whose tokens differ."""
    steps = _leading(one, other) + 1
    return float((one.logits[:steps] - other.logits[:steps]).abs().max())

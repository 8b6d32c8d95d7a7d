"""What a batch of different requests cost beside its requests: padding, and steps after a request's own end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmbench.models.protocol import Prepared, VisionLanguageModel
from vlmbench.request import Request

if TYPE_CHECKING:
    import torch

DIFFERENT, COPIES = "different", "copies"
"""What a batch is of (``measurement.batch``, ``batch_of`` of a row)."""


def batch_columns(
    request: Request, prepared: Prepared, tokens: torch.Tensor, model: VisionLanguageModel
) -> dict[str, Any]:
    """Say what a batch was of, request by request; nothing for a single request.

    Args:
        tokens: new token ids, shape (batch, steps), on the host.
        model: whose end-of-sequence tokens end an answer.

    Returns:
        ``batch_of``; for different requests ``sample_ids``, ``input_tokens_each``, ``vision_tokens_each`` and
        ``output_tokens_each`` (a list each, in the order of the rows), ``padding_tokens`` (positions of the prefill
        that stand for nothing) and ``tokens_after_end`` (tokens made after a request's own end).
    """
    if request.batch_size == 1:
        return {}
    if not prepared.each:
        return {"batch_of": COPIES}
    lengths = [counts.num_input_tokens for counts in prepared.each]
    made = [int(tokens.shape[1])] * len(lengths)
    if not request.output.forced:
        made = _until_end(tokens, _end_tokens(model))
    padded = int(prepared.inputs["input_ids"].shape[1])
    return {
        "batch_of": DIFFERENT,
        "sample_ids": [row.sample.sample_id for row in request.rows],
        "input_tokens_each": lengths,
        "vision_tokens_each": [counts.num_vision_tokens for counts in prepared.each],
        "output_tokens_each": made,
        "padding_tokens": padded * len(lengths) - sum(lengths),
        "tokens_after_end": int(tokens.numel()) - sum(made),
    }


def _until_end(tokens: torch.Tensor, ends: list[int]) -> list[int]:
    """Tokens of each row up to and with its first end-of-sequence token."""
    made = []
    for row in tokens.tolist():
        first = next((at for at, token in enumerate(row) if token in ends), len(row) - 1)
        made.append(first + 1)
    return made


def _end_tokens(model: VisionLanguageModel) -> list[int]:
    config: Any = getattr(model.module, "generation_config", None)
    found = getattr(config, "eos_token_id", None)
    return [] if found is None else list(found) if isinstance(found, list | tuple) else [found]

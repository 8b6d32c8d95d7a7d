"""What FLOPs promise of a method that drops vision tokens: the language model's part, by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlmbench.cost.decoder_formula import ClosedForm
from vlmbench.cost.stage_costs import ClosedFormError
from vlmbench.request import TokenCounts

_LANGUAGE = ("llm_prefill", "llm_decode")
_OF_LANGUAGE = ("bytes", "floor_ms", "intensity", "mfu", "mbu", "over_floor", "verdict")
_NOTE = "under the method: FLOPs of the language model by layer, from the closed form; no bytes and no floors"


def layer_counts(kept_by_layer: str) -> list[tuple[int, int]]:
    """(vision tokens, layers) of each run of equal layers, from ``576x2,288x30``."""
    return [(int(count), int(layers)) for count, layers in (part.split("x") for part in kept_by_layer.split(","))]


def under_method(
    row: Mapping[str, Any],
    closed: ClosedForm | None,
    counts: TokenCounts,
    observed: Mapping[str, Any],
    *,
    output_tokens: int,
    batch_size: int,
) -> dict[str, Any]:
    """Cost columns of a run under a method, from those of the request as it is.

    Encoder and projector are as they were. The language model's FLOPs are scaled by the closed form: the mean over
    layers of what each costs with the tokens that were observed in its cache. Bytes and floors of the language model
    are left out: they are not modelled under a method.

    Args:
        row: cost columns of the request, nothing dropped.
        closed: the model's closed form; None where none is known (the FLOPs are left out then).
        observed: of the run: ``kept_by_layer`` or ``weight_bytes_…`` decide; without them the row is as it was.
        output_tokens: tokens that came out.
    """
    kept = observed.get("kept_by_layer")
    precision = any(name.startswith("weight_bytes_") for name in observed)
    fewer = observed.get("num_decoder_layers_run")
    if kept is None and fewer is None and not precision and "num_forwards" not in observed:
        return dict(row)
    left = {k: v for k, v in row.items() if not _is_of_language(k)}
    if precision:
        return {**left, "flops_note": f"{row.get('flops_note', '')}; {_NOTE.partition(': ')[0]}: no bytes, no floors"}
    ratios = None
    if kept is not None and closed is not None:
        ratios = _ratios(closed, counts, layer_counts(str(kept)), output_tokens=output_tokens, batch_size=batch_size)
    for suffix in ("", "_closed"):
        total = 0.0
        for stage in ("vision_encoder", "projector", *_LANGUAGE):
            name = f"flops_{stage}{suffix}"
            value = row.get(name)
            if value is not None and stage in _LANGUAGE:
                value = None if ratios is None else round(value * ratios[stage])
                left[name] = value
            total = float("nan") if value is None else total + value
        if f"flops_total{suffix}" in row:
            left[f"flops_total{suffix}"] = None if total != total else round(total)  # noqa: PLR0124 – not a number
    return {**left, "flops_note": f"{row.get('flops_note', '')}; {_NOTE}"}


def _is_of_language(name: str) -> bool:
    return name == "flops_llm_prefill_needed" or any(
        name in (f"{kind}_{stage}", f"{kind}_total") for kind in _OF_LANGUAGE for stage in (*_LANGUAGE, "LLM_prefill")
    )


def _ratios(
    closed: ClosedForm, counts: TokenCounts, layers: list[tuple[int, int]], *, output_tokens: int, batch_size: int
) -> dict[str, float] | None:
    """Stage of the language model to its FLOPs under the method over those without."""
    total = sum(number for _, number in layers)
    try:
        whole = closed.flops(counts, output_tokens, batch_size=batch_size).by_stage()
        parts = [
            (number / total, closed.flops(_with(counts, kept), output_tokens, batch_size=batch_size).by_stage())
            for kept, number in layers
        ]
    except ClosedFormError:
        return None
    return {
        stage: sum(share * part[stage] for share, part in parts) / whole[stage] if whole[stage] else 1.0
        for stage in _LANGUAGE
    }


def _with(counts: TokenCounts, kept: int) -> TokenCounts:
    dropped = counts.num_vision_tokens - kept
    return replace(counts, num_vision_tokens=kept, num_input_tokens=counts.num_input_tokens - dropped)

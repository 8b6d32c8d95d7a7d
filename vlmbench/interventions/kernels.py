"""Which attention kernels really run, by tower and phase: observed in a run of its own, never in a timed one.

Two arms whose kernels differ compare kernels as well as tokens, and are shown so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PHASES = ("vision_encoder", "LLM_prefill", "LLM_decode")


@dataclass(frozen=True, kw_only=True)
class AttentionKernels:
    """What was seen, by phase: each a sorted tuple of signatures such as ``sdpa/flash mask=none causal``.

    Args:
        seen: phase (one of ``PHASES``) to its signatures; a phase without any has none.
        configured: phase to the attention implementation that its modules name.
    """

    seen: Mapping[str, tuple[str, ...]]
    configured: Mapping[str, str]

    def values(self) -> dict[str, str]:
        """Columns of a row: ``attention_kernel_PHASE``."""
        return {f"attention_kernel_{phase}": self.words(phase) for phase in PHASES if self.words(phase)}

    def words(self, phase: str) -> str:
        """One phase in words; where the kernel is not torch's, what is configured."""
        return "; ".join(self.seen.get(phase, ())) or self.configured.get(phase, "")


def unlike(baseline: Mapping[str, Any], arm: Mapping[str, Any]) -> list[str]:
    """Phases in which two arms ran other attention kernels, from the columns of their rows.

    A phase that one of them does not have is not compared.
    """
    columns = [f"attention_kernel_{phase}" for phase in PHASES]
    return [
        column.removeprefix("attention_kernel_")
        for column in columns
        if baseline.get(column) and arm.get(column) and baseline[column] != arm[column]
    ]


@dataclass(kw_only=True)
class _Watch:
    """Notes of one run."""

    phase: str = ""
    prefill_over: bool = False
    seen: dict[str, set[str]] = field(default_factory=dict)

    def note(self, signature: str) -> None:
        self.seen.setdefault(self.phase or "other", set()).add(signature)


@contextmanager
def watch_kernels(model: Any) -> Iterator[list[AttentionKernels]]:
    """Record torch's scaled-dot-product calls of the runs inside; the list holds the result afterwards."""
    import torch

    watch = _Watch()
    handles = [handle for phase, paths in _towers(model) for handle in _phase_hooks(model, watch, phase, paths)]
    functional: Any = torch.nn.functional
    original = functional.scaled_dot_product_attention

    def noted(query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **options: Any) -> Any:
        watch.note(signature((query, key, value), attn_mask, args, options))
        return original(query, key, value, attn_mask, *args, **options)

    functional.scaled_dot_product_attention = noted
    result: list[AttentionKernels] = []
    try:
        yield result
    finally:
        functional.scaled_dot_product_attention = original
        for handle in handles:
            handle.remove()
        seen = {phase: tuple(sorted(names)) for phase, names in watch.seen.items()}
        result.append(AttentionKernels(seen=seen, configured=_configured(model)))


def signature(tensors: tuple[Any, Any, Any], mask: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> str:
    """One call in words: the backend that torch chooses, the mask's kind, causal or not, grouped queries or not."""
    import torch

    dropout = options.get("dropout_p", args[0] if args else 0.0)
    causal = bool(options.get("is_causal", args[1] if len(args) > 1 else False))
    grouped = bool(options.get("enable_gqa", False))
    try:
        choice = torch._fused_sdp_choice(
            *tensors, mask, dropout, causal, scale=options.get("scale"), enable_gqa=grouped
        )
        backend = torch.nn.attention.SDPBackend(int(choice)).name.lower().removesuffix("_attention")
    except (RuntimeError, TypeError, ValueError):
        backend = "unknown"
    kind = "none" if mask is None else str(mask.dtype).removeprefix("torch.")
    words = [f"sdpa/{backend}", f"mask={kind}", str(tensors[0].dtype).removeprefix("torch.")]
    return " ".join([*words, *(["causal"] if causal else []), *(["grouped"] if grouped else [])])


def _towers(model: Any) -> list[tuple[str, tuple[str, ...]]]:
    anatomy = model.anatomy
    return [("vision_encoder", anatomy.vision_encoder), ("LLM", anatomy.language_model)]


def _phase_hooks(model: Any, watch: _Watch, phase: str, paths: tuple[str, ...]) -> list[Any]:
    """Hooks that say which tower runs; the language model's first run is the prefill."""

    def enter(*_: Any) -> None:
        watch.phase = phase if phase != "LLM" else "LLM_decode" if watch.prefill_over else "LLM_prefill"

    def leave(*_: Any) -> None:
        watch.prefill_over = watch.prefill_over or phase == "LLM"
        watch.phase = ""

    handles = []
    for path in paths:
        module: torch.nn.Module = model.module.get_submodule(path)
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    return handles


def _configured(model: Any) -> dict[str, str]:
    """What the attention modules of each tower name as their kernel."""
    from vlmbench.interventions.attention_row import attention_modules

    found: dict[str, str] = {}
    for phase, paths in _towers(model):
        names = {
            str(module.config._attn_implementation)  # type: ignore[union-attr]
            for path in paths
            for module in attention_modules(model.module.get_submodule(path))
        }
        for each in ("LLM_prefill", "LLM_decode") if phase == "LLM" else (phase,):
            if names:
                found[each] = "+".join(sorted(names))
    return found

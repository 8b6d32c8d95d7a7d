"""FLOPs of one ``generate()`` call, counted: the real model runs without weights (:mod:`vlmbench.models.weightless`).

torch's ``FlopCounterMode`` sees every matrix product, convolution and attention of the run; hooks at stage boundaries
take snapshots of its total. Nothing is assumed about the architecture. What lies outside every stage before the first
token (there is little: an attention mask made by a product) belongs to the prefill, as its time does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from vlmbench.cost.flop_ledger import Ledger
from vlmbench.cost.repeated_blocks import NotAlike, repeated_once
from vlmbench.models.anatomy.find import find_anatomy
from vlmbench.models.protocol import Anatomy
from vlmbench.models.weightless import Ghost, GhostError, ghost_inputs


def text_inputs(config: Any, tokens: int) -> dict[str, Any]:
    """Make a prompt of ``tokens`` ordinary tokens, shape (1, tokens)."""
    special = {v for n, v in vars(config).items() if n.endswith(("token_id", "token_index")) and isinstance(v, int)}
    ordinary = next(i for i in range(3, 1000) if i not in special)
    ids = torch.full((1, tokens), ordinary, dtype=torch.long, device="cpu")
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@dataclass(frozen=True, kw_only=True)
class GenerateFlops:
    """What one counted ``generate()`` did.

    Args:
        vision_encoder: FLOPs of the tower.
        projector: of the connector.
        prefill_body: of the language model's first call, and of what lies outside every stage before the second.
        prefill_head: of the output embedding in the first step.
        steps: of each later step, head included.
    """

    vision_encoder: int
    projector: int
    prefill_body: int
    prefill_head: int
    steps: tuple[int, ...]

    @property
    def prefill(self) -> int:
        """Body and head of the first step."""
        return self.prefill_body + self.prefill_head


class _LanguageModelReached(Exception):  # noqa: N818 - a signal, not an error: it ends a run that only vision needs
    pass


class _FusedAttention(TorchFunctionMode):
    """Attention as one operation that the counter knows; on ``meta`` torch would run a dozen in its place."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention or len(args) < 3:
            return func(*args, **kwargs)
        query, key, value = args[:3]
        if query.ndim != 4 or query.device.type != "meta" or value.shape[-1] != query.shape[-1]:
            return func(*args, **kwargs)
        if key.shape[:2] != query.shape[:2]:  # grouped queries: every query head meets a key head
            key = key.new_empty((*query.shape[:2], *key.shape[2:]))
            value = value.new_empty((*query.shape[:2], *value.shape[2:]))
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]


def count_generate(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    new_tokens: int = 1,
    anatomy: Anatomy | None = None,
    vision_only: bool = False,
    every_block: bool = False,
) -> GenerateFlops:
    """Count one ``generate()`` call of a model without weights.

    Args:
        model: from :func:`build_ghost`.
        inputs: keyword arguments of ``generate`` as the processor makes them; a leading batch axis counts whole.
        new_tokens: tokens to generate: one prefill and ``new_tokens - 1`` decode steps.
        anatomy: which module is which stage; found by rule where not given.
        vision_only: stop where the language model is first called (``prefill_*`` are 0 then).
        every_block: run every block; without it, blocks that repeat run once (:mod:`vlmbench.cost.repeated_blocks`).

    Returns:
        FLOPs for the whole batch.

    Raises:
        GhostError: the control flow depends on activations, so the model cannot run on shapes.
    """
    parts = anatomy or find_anatomy(model)
    ghosts = ghost_inputs(inputs)
    if not every_block:
        try:
            return _summed(_run(model, ghosts, new_tokens, parts, vision_only=vision_only, once=True))
        except (NotAlike, GhostError):
            pass  # counted in full, which also tells whose error it was
    return _summed(_run(model, ghosts, new_tokens, parts, vision_only=vision_only, once=False))


def _run(
    model: nn.Module, inputs: Mapping[str, Any], new_tokens: int, anatomy: Anatomy, *, vision_only: bool, once: bool
) -> Ledger:
    counter = FlopCounterMode(display=False, custom_mapping=_extra_formulas())
    with torch.no_grad(), Ghost(), counter, _FusedAttention():
        ledger = Ledger(total=counter.get_total_flops)
        shared = repeated_once(model, ledger) if once else nullcontext()
        with _boundaries(model, anatomy, ledger, vision_only=vision_only), shared, warnings.catch_warnings():
            # Ids are on the CPU and weights on meta on purpose.
            warnings.filterwarnings("ignore", message=r".*`input_ids` being on a device type different")
            # Notes of the library about its own insides.
            warnings.simplefilter("ignore", FutureWarning)
            try:
                model.generate(  # type: ignore[operator]
                    **inputs, max_new_tokens=new_tokens, do_sample=False, num_beams=1
                )
            except _LanguageModelReached:
                pass
            except (NotImplementedError, RuntimeError, ValueError, TypeError, IndexError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise GhostError(f"{type(model).__name__} cannot run without weights: {reason}") from error
        ledger.settle()
    return ledger


def _summed(ledger: Ledger) -> GenerateFlops:
    vision, projector = ledger.of("vision_encoder", 0, 1), ledger.of("projector", 0, 1)
    steps = tuple(
        sum(v for (stage, k), v in ledger.sums.items() if k == step and stage != "rotary")
        for step in range(2, ledger.step + 1)
    )
    return GenerateFlops(
        vision_encoder=vision,
        projector=projector,
        prefill_body=ledger.of("language_model", 0, 1) + ledger.of("other", 0, 1),
        prefill_head=ledger.of("head", 0, 1),
        steps=steps,
    )


@contextmanager
def _boundaries(model: nn.Module, anatomy: Anatomy, ledger: Ledger, *, vision_only: bool) -> Iterator[None]:
    stage_of = {path: stage for stage, paths in anatomy.stages() for path in paths}
    handles = []
    for path, module in model.named_modules():
        # The table of rotary angles is an outer product, 1e-8 of the whole; releases of transformers differ in whether
        # they write it as a matrix product, so it is left out.
        stage = stage_of.get(path) or ("rotary" if "Rotary" in type(module).__name__ else None)
        if stage is None:
            continue

        def before(_m: nn.Module, _a: Any, _k: Any, stage: str = stage, path: str = path) -> None:
            if vision_only and stage == "language_model":
                ledger.settle()
                raise _LanguageModelReached
            ledger.enter(stage, path)

        def after(_m: nn.Module, _a: Any, _k: Any, _out: Any) -> None:
            ledger.leave()

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _extra_formulas() -> dict[Any, Any]:
    """Formulas of operations that torch's counter does not know."""
    from torch.utils.flop_counter import sdpa_flop_count

    def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]

    def grouped(a: Any, b: Any, *_: Any, **__: Any) -> int:
        # (tokens, in) x (groups, in, out): every token meets one group.
        return int(2 * a[-2] * a[-1] * b[-1])

    extra: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    if hasattr(torch.ops.aten, "_grouped_mm"):
        extra[torch.ops.aten._grouped_mm] = grouped
    return extra

"""``watch``: the stages of any ``generate()``, whoever calls it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING, Any, cast

from vlmbench.api.arguments import check, check_model
from vlmbench.models.protocol import Anatomy

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vlmbench.machine.clock import Clock

_STAGE = "T_"
_TOTAL = "T_total"


@dataclass(frozen=True, kw_only=True)
class WatchedRun:
    """One ``generate()`` that was watched.

    Args:
        T_total: ms between entering ``generate()`` and its last token, the device idle at both ends.
        stages: ``T_setup``, ``T_vision_encoder``, ``T_projector``, ``T_LLM_prefill``, ``T_LLM_decode``,
            ``T_residual`` … in ms, as far as the model has them; with the residual they add up to ``T_total``, but for
            ``T_decode_forward`` and ``T_decode_loop``, which are the two parts of ``T_LLM_decode``.
        TTFT_model: ms until the first token.
        ITL: ms between consecutive tokens, one value fewer than tokens.
        num_output_tokens: new tokens of one row.
        batch_size: rows.
        flags: known causes of an odd value.
    """

    T_total: float
    stages: Mapping[str, float]
    TTFT_model: float | None
    ITL: tuple[float, ...]
    num_output_tokens: int
    batch_size: int
    flags: tuple[str, ...]


@dataclass(kw_only=True)
class _Watched:
    """What the timeline needs of a model that somebody else drives."""

    module: nn.Module

    @cached_property
    def devices(self) -> list[torch.device]:
        return list(dict.fromkeys(parameter.device for parameter in self.module.parameters()))

    @property
    def device(self) -> torch.device:
        return self.devices[0]

    @property
    def facts(self) -> Mapping[str, Any]:
        return {}

    @cached_property
    def clock(self) -> Clock:
        from vlmbench.machine.clock import clock_for

        return clock_for(self.devices)

    @cached_property
    def anatomy(self) -> Anatomy:
        from vlmbench.models.anatomy.find import find_anatomy

        return find_anatomy(self.module)

    @property
    def compile(self) -> bool:
        """Whether ``generate`` compiled its decode step: a hook inside would break the graph."""
        return "_compiled_call" in vars(self.module)


@contextmanager
def watch(model: nn.Module, *, residual_goal: float = 0.01) -> Iterator[list[WatchedRun]]:
    """Time the stages of every ``generate()`` of a model while the block runs.

    Calls of several threads take turns, for hooks do not tell whose call they saw.
    Hooks are set for the length of each call only; the model's hooks, mode and settings are left as they were found,
    also after an exception. The device is synchronised once before and once after a call, never inside it.

    Args:
        residual_goal: a run whose stages miss the whole by a larger share is flagged.

    Yields:
        A list that grows by one :class:`WatchedRun` a call. Calls that raise leave none.

    Raises:
        AnatomyError: the model's stages cannot be found.
        ConfigError: no model, or no share.

    Examples:
        >>> import vlmbench
        >>> model, processor = vlmbench.load("tiny", device="cpu")
        >>> inputs = processor(text=["What is this?"], return_tensors="pt")
        >>> with vlmbench.watch(model) as runs:
        ...     _ = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
        >>> runs[0].num_output_tokens, len(runs[0].ITL)
        (4, 3)
    """
    check_model(model)
    check(watch.__annotations__, {"residual_goal": residual_goal}, least={"residual_goal": 0})
    target = _Watched(module=model)
    _ = target.anatomy  # now, so that a model without stages is refused before anything is wrapped
    own = vars(model).get("generate")  # somebody else's wrapper, which stays
    original: Callable[..., Any] = cast("Any", model).generate
    runs: list[WatchedRun] = []
    inside, turn = False, RLock()

    def generate(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        with turn:
            if inside:  # an assistant of the same model, say
                return original(*args, **kwargs)
            inside = True
            try:
                produced, run = _watched(target, original, args, kwargs, residual_goal)
            finally:
                inside = False
            runs.append(run)
            return produced

    vars(model)["generate"] = generate
    try:
        yield runs
    finally:
        if own is None:
            del vars(model)["generate"]
        else:
            vars(model)["generate"] = own


def _watched(
    target: _Watched, original: Callable[..., Any], args: Any, kwargs: dict[str, Any], residual_goal: float
) -> tuple[Any, WatchedRun]:
    """What ``generate`` returned, and what was seen of it."""
    from transformers import StoppingCriteriaList

    from vlmbench.machine.clock import synchronize
    from vlmbench.probes.protocol import RunFacts
    from vlmbench.probes.timeline import TimelineProbe

    with TimelineProbe(residual_goal=residual_goal).watch(target) as seen:
        theirs = kwargs.get("stopping_criteria") or []
        mine = {**kwargs, "stopping_criteria": StoppingCriteriaList([*theirs, *seen.stopping_criteria])}
        synchronize(target.devices)
        seen.start()
        began = time.perf_counter_ns()
        produced = original(*args, **mine)
        seen.stop()
        synchronize(target.devices)
        T_total = (time.perf_counter_ns() - began) / 1e6
    prompt = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs"))
    tokens = _new_only(getattr(produced, "sequences", produced), prompt)
    facts = RunFacts(T_total=T_total, num_output_tokens=int(tokens.shape[1]), batch_size=int(tokens.shape[0]))
    values = seen.values(facts)
    return produced, WatchedRun(
        T_total=T_total,
        stages={k: v for k, v in values.items() if k.startswith(_STAGE) and k != _TOTAL and v is not None},
        TTFT_model=values.get("TTFT_model"),
        ITL=tuple(values.get("ITL") or ()),
        num_output_tokens=facts.num_output_tokens,
        batch_size=facts.batch_size,
        flags=tuple(values.get("flags", ())),
    )


def _new_only(produced: Any, prompt: Any) -> Any:
    """Cut the prompt off, for the models that return it; those fed with embeddings do not."""
    if prompt is None or produced.shape[1] <= prompt.shape[1]:
        return produced
    length = prompt.shape[1]
    echoed = produced.shape[0] == prompt.shape[0] and bool((produced[:, :length] == prompt).all())
    return produced[:, length:] if echoed else produced

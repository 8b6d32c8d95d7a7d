"""Counted FLOPs of many requests at the price of a few counted runs.

The vision part is counted once for each distinct set of image shapes. The language model's prefill is a polynomial of
second degree in the number of tokens, and a decode step is affine in the context's length (up to a window, and again
above it): both are counted at a few lengths of plain text and evaluated exactly elsewhere. That this holds is checked,
not assumed: the first request is also counted whole, and where the two differ, or a model cannot run on text alone
(cross-attention), every request is counted whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, cast

import torch
from torch import nn

from vlmbench.cost.flop_counting import GenerateFlops, count_generate, text_inputs
from vlmbench.cost.stage_costs import StageFlops
from vlmbench.models.anatomy.find import find_anatomy
from vlmbench.models.protocol import Anatomy
from vlmbench.models.weightless import GhostError, ghost_of_config

_SHORT, _LONG = 8, 16  # tokens of the texts that are counted
_STEPS = 2  # decode steps counted: two make a line


class Counter:
    """Counts requests of one model.

    Args:
        model: from :func:`vlmbench.cost.flop_counting.build_ghost`.
        anatomy: which module is which stage; found by rule where not given.

    Attributes:
        notes: what was not evaluated exactly, in words, in the order in which it was met.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy | None = None) -> None:
        self.model = model
        self.anatomy = anatomy or find_anatomy(model)
        self.notes: list[str] = []
        self._vision: dict[Any, GenerateFlops] = {}
        self._whole: dict[Any, GenerateFlops] = {}
        self._lines: dict[int, tuple[int, int]] = {}
        self._prefill: Callable[[int], int] | None = None
        self._head = 0
        self._by_length: bool | None = None
        self._config = cast(Any, model.config)
        text = self._config.get_text_config(decoder=True)
        windows = {getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")}
        self._windows = sorted(w for w in windows if isinstance(w, int))

    @classmethod
    def of_config(cls, config: Any, anatomy: Anatomy | None = None) -> Counter:
        """For a transformers configuration of an image-text-to-text model; takes a second or two."""
        return cls(ghost_of_config(config), anatomy)

    def count(self, inputs: Mapping[str, Any], *, output_tokens: int) -> StageFlops:
        """FLOPs of ``generate(**inputs)`` when ``output_tokens`` tokens come out of every row: the whole batch.

        Args:
            inputs: what the model's processor made, ``input_ids`` of shape (batch, length), rows of equal length.
            output_tokens: 1 or more.

        Raises:
            GhostError: the model cannot run without weights.
        """
        if output_tokens < 1:
            raise ValueError(f"'output_tokens' must be 1 or more (got {output_tokens})")
        rows, length = inputs["input_ids"].shape
        if not self._lengths_suffice(inputs):
            whole = self._count_whole(inputs)
            base, slope = _line(length, whole.steps)
            decode = _sum_of_line(base, slope, length + 1, length + output_tokens - 1)
            return _stages(whole, whole.prefill, decode, whole.prefill_head)
        key = _key(inputs)
        if key not in self._vision:
            self._vision[key] = self._run(inputs, vision_only=True)
        return self._from_lengths(self._vision[key], rows, length, output_tokens)

    def _run(self, inputs: Mapping[str, Any], *, new_tokens: int = 1, vision_only: bool = False) -> GenerateFlops:
        return count_generate(self.model, inputs, new_tokens=new_tokens, anatomy=self.anatomy, vision_only=vision_only)

    def _lengths_suffice(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the language model's FLOPs follow from lengths alone; settled on the first request."""
        if "cross_attention_mask" in inputs:
            return False
        if self._by_length is None:
            rows, length = inputs["input_ids"].shape
            whole = self._count_whole(inputs)
            self._by_length = True
            try:
                predicted = self._from_lengths(whole, rows, length, 1 + len(whole.steps))
                self._by_length = (predicted.llm_prefill, predicted.llm_decode) == (whole.prefill, sum(whole.steps))
            except GhostError:
                self._by_length = False
            if not self._by_length:
                self.notes.append(
                    "the language model's FLOPs do not follow from lengths alone: each request is counted"
                )
        return self._by_length

    def _count_whole(self, inputs: Mapping[str, Any]) -> GenerateFlops:
        key = (_key(inputs), tuple(inputs["input_ids"].shape))
        if key not in self._whole:
            self._whole[key] = self._run(inputs, new_tokens=1 + _STEPS)
        return self._whole[key]

    def _from_lengths(self, vision: GenerateFlops | None, rows: int, length: int, output_tokens: int) -> StageFlops:
        if self._prefill is None:
            short = self._run(text_inputs(self._config, _SHORT), new_tokens=1 + _STEPS)
            long = self._run(text_inputs(self._config, _LONG))
            self._head = short.prefill_head if short.prefill_head == long.prefill_head else 0
            self._prefill = _quadratic([(0, self._head), (_SHORT, short.prefill), (_LONG, long.prefill)])
            self._lines[_SHORT] = _line(_SHORT, short.steps)
        decode = sum(self._decode_within(a, b) for a, b in self._spans(length + 1, length + output_tokens - 1))
        return _stages(vision, rows * self._prefill(length), rows * decode, rows * self._head)

    def _spans(self, first: int, last: int) -> list[tuple[int, int]]:
        """The context lengths of all decode steps, cut where a window of the model is reached."""
        cuts = [w for w in self._windows if first <= w < last]
        bounds = [first - 1, *cuts, last]
        return [(a + 1, b) for a, b in itertools.pairwise(bounds) if b > a]

    def _decode_within(self, first: int, last: int) -> int:
        """FLOPs of the decode steps at context lengths ``first`` to ``last``, between two windows."""
        # The line of a span above a window is counted just above it; all spans below share one.
        start = max((w for w in self._windows if w < first), default=_SHORT)
        if start not in self._lines:
            texts = text_inputs(self._config, start)
            self._lines[start] = _line(start, self._run(texts, new_tokens=1 + _STEPS).steps)
        base, slope = self._lines[start]
        return _sum_of_line(base, slope, first, last)


def _stages(vision: GenerateFlops | None, prefill: int, decode: int, head: int) -> StageFlops:
    return StageFlops(
        vision_encoder=vision.vision_encoder if vision else 0,
        projector=vision.projector if vision else 0,
        llm_prefill=prefill,
        llm_decode=decode,
        head=head,
    )


def _line(context: int, steps: Sequence[int]) -> tuple[int, int]:
    """(FLOPs at context length 0, FLOPs per token of context) from the two steps after a prefill of ``context``."""
    slope = steps[1] - steps[0]
    return steps[0] - slope * (context + 1), slope


def _sum_of_line(base: int, slope: int, first: int, last: int) -> int:
    steps = last - first + 1
    return base * steps + slope * (first + last) * steps // 2


def _key(inputs: Mapping[str, Any]) -> Any:
    """What the vision part depends on: the shapes of pixels, and the values of grids and sizes."""
    length = inputs["input_ids"].shape[1]
    parts: list[Any] = [inputs["input_ids"].shape[0]]
    for name, value in sorted(inputs.items()):
        if not isinstance(value, torch.Tensor) or (value.ndim >= 2 and value.shape[1] == length):
            continue  # ids and masks along the text
        small = not value.is_floating_point() and value.numel() <= 4096 and value.device.type == "cpu"
        parts.append((name, tuple(value.shape), tuple(value.flatten().tolist()) if small else None))
    return tuple(parts)


def _quadratic(points: Sequence[tuple[int, int]]) -> Callable[[int], int]:
    """The polynomial of second degree through three points, evaluated in whole numbers."""

    def value(x: int) -> int:
        total = Fraction(0)
        for i, (xi, yi) in enumerate(points):
            term = Fraction(yi)
            for j, (xj, _) in enumerate(points):
                if i != j:
                    term *= Fraction(x - xj, xi - xj)
            total += term
        return int(total)

    return value

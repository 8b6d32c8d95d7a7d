"""What all data sets share: which samples are taken, and the text around a question. Standard library only."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Sequence

PLACEHOLDER = "{question}"


def check_prompt(prompt: str) -> None:
    """A prompt template holds ``{question}`` exactly once; any other brace stands for itself.

    Raises:
        ValueError: the placeholder is absent or stands there twice.
    """
    if prompt.count(PLACEHOLDER) != 1:
        raise ValueError(f"'prompt' must hold {PLACEHOLDER} exactly once (got {prompt!r})")


def check_num_samples(num_samples: int | None) -> None:
    """``num_samples`` is None (all) or 1 and more.

    Raises:
        ValueError: it is below 1.
    """
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"'num_samples' must be 1 or more, or null for all (got {num_samples})")


def fill(prompt: str, question: str) -> str:
    """The user's text: the question in its template. No ``str.format``: a question may hold braces of its own."""
    return prompt.replace(PLACEHOLDER, question)


def take(rows: Iterable[int], *, num_samples: int | None, shuffle: bool, seed: int) -> Sequence[int]:
    """At most ``num_samples`` of the rows, in order or in the seeded order.

    All rows are shuffled before the cut, so that 100 samples are the first 100 of 1,000 with the same seed.
    """
    order = array("q", rows)
    if shuffle:
        random.Random(f"samples/{seed}").shuffle(order)
    return order if num_samples is None else order[:num_samples]

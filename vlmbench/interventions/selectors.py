"""Which vision tokens stay: selectors, each with what it needs to see.

A selector answers with exactly as many ascending indices as it is asked for, and never makes the host wait for the
device: how many stay is known before the run, so ``topk`` and ``index_select`` are enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


class Needs(StrEnum):
    """What a selector looks at."""

    NOTHING = "nothing"  # chosen on the host before the clock starts
    FEATURES = "features"  # the vision tokens' vectors where they are dropped
    ENCODER_ATTENTION = "encoder_attention"  # how much the vision encoder attends to each
    LAST_TOKEN_ATTENTION = "last_token_attention"  # noqa: S105 – how much the prompt's last token attends to each


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a selector is shown.

    Args:
        count: vision tokens to choose from, n.
        features: their vectors, shape (batch, n, width); None for ``Needs.NOTHING``.
        attention: the weight of each, shape (n,), mean over heads; None unless it was asked for.
    """

    count: int
    features: torch.Tensor | None = None
    attention: torch.Tensor | None = None


@runtime_checkable
class Selector(Protocol):
    """Chooses the vision tokens that stay."""

    @property
    def name(self) -> str:
        """Names it in configuration, rows and figures."""

    @property
    def needs(self) -> Needs:
        """What it has to be shown."""

    def choose(self, seen: Seen, keep: int) -> torch.Tensor:
        """Indices of the vision tokens that stay, ascending, shape (keep,), on the device of what was shown."""


@dataclass(frozen=True, kw_only=True)
class Random:
    """Any tokens: the control that costs no thought.

    Args:
        seed: the same tokens in every run of a prompt of the same length.
    """

    seed: int = 0
    name = "random"
    needs = Needs.NOTHING

    def choose(self, seen: Seen, keep: int) -> torch.Tensor:
        """Drawn without replacement from the seed."""
        import torch

        drawn = torch.randperm(seen.count, generator=torch.Generator().manual_seed(self.seed))
        return drawn[:keep].sort().values


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Every n-th token."""

    name = "uniform"
    needs = Needs.NOTHING

    def choose(self, seen: Seen, keep: int) -> torch.Tensor:
        """Evenly spread, from the first on."""
        import torch

        return torch.tensor([index * seen.count // keep for index in range(keep)])


@dataclass(frozen=True, kw_only=True)
class Norm:
    """Those whose vectors are longest."""

    name = "norm"
    needs = Needs.FEATURES

    def choose(self, seen: Seen, keep: int) -> torch.Tensor:
        """By Euclidean norm where they are dropped."""
        assert seen.features is not None
        return highest(seen.features[0].norm(dim=-1), keep)


@dataclass(frozen=True, kw_only=True)
class EncoderAttention:
    """Those that the vision encoder itself attends to most (VisionZip, FasterVLM): the class token's row of a layer of
    the encoder, or the mean of all rows where it has no class token.
    """

    name = "encoder_attention"
    needs = Needs.ENCODER_ATTENTION

    def choose(self, seen: Seen, keep: int) -> torch.Tensor:
        """By attention weight."""
        assert seen.attention is not None
        return highest(seen.attention, keep)


@dataclass(frozen=True, kw_only=True)
class LastTokenAttention:
    """Those that the prompt's last token attends to most in the layer before they are dropped (FastV)."""

    name = "last_token_attention"
    needs = Needs.LAST_TOKEN_ATTENTION

    def choose(self, seen: Seen, keep: int) -> torch.Tensor:
        """By attention weight."""
        assert seen.attention is not None
        return highest(seen.attention, keep)


SHIPPED: tuple[type[Any], ...] = (Random, Uniform, Norm, EncoderAttention, LastTokenAttention)


def highest(scores: torch.Tensor, keep: int) -> torch.Tensor:
    """Indices of the ``keep`` highest scores, ascending; no wait for the device."""
    return scores.topk(keep, sorted=False).indices.sort().values


def selector_of(value: object, *, allowed: frozenset[Needs], seed: int, method: str) -> Selector:
    """The selector that a configuration names, or the object of a user's own class.

    Args:
        value: a shipped selector's name, or a :class:`Selector`.
        allowed: what the method can show a selector.

    Raises:
        ValueError: no such selector, or one that needs what the method cannot show.
    """
    by_name = {kind.name: kind for kind in SHIPPED if kind.needs in allowed}
    if isinstance(value, str):
        if value not in by_name:
            raise ValueError(f"'selector' of {method} must be one of {', '.join(by_name)} (got {value!r})")
        chosen: Selector = Random(seed=seed) if value == Random.name else by_name[value]()
        return chosen
    if not isinstance(value, Selector):
        raise ValueError(
            f"'selector' of {method} must be one of {', '.join(by_name)} or an object with name, needs and choose "
            f"(got {type(value).__name__})"
        )
    if value.needs not in allowed:
        raise ValueError(f"'selector' {value.name} needs {value.needs}, which {method} cannot show it")
    return value

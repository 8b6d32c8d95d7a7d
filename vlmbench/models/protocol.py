"""What the runner and the probes need of a model. No torch import at run time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from zlib import crc32

from vlmbench.request import Output, Request, TokenCounts

if TYPE_CHECKING:
    import torch

    from vlmbench.machine.clock import Clock
    from vlmbench.models.inputs import Prompter
    from vlmbench.models.token_counts import ImageMarks


_OF_TOKENS = frozenset(
    {"input_ids", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids"}
)
_MOST_OF_CUT = 65536


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Which module is which stage: dotted paths from the top-level model; an absent stage has no path.

    Args:
        vision_encoder: the tower(s) that turn pixels into patch features.
        projector: connector(s): projector, merger, resampler, pooling. May lie inside a tower; time inside it is
            then the projector's, not the tower's.
        language_model: the decoder body that prefill and decode call (no head, no vision inside it where possible).
        head: the output embedding.
        how: for each stage, the rule that found it, for the table.
        notes: what is unusual, in words (why a stage is absent, say).
    """

    vision_encoder: tuple[str, ...] = ()
    projector: tuple[str, ...] = ()
    language_model: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    how: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def stages(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(stage name, module paths) in the order in which a request meets them."""
        for stage in ("vision_encoder", "projector", "language_model", "head"):
            yield stage, getattr(self, stage)


@dataclass(frozen=True, kw_only=True)
class Cached:
    """A cache that is filled before the clock, over which a run begins.

    Args:
        tokens: positions of the inputs that it holds.
        filled_with: ``random``: keys and values of no text, so that no prefill is run; ``earlier turns``.
        earlier: inputs whose prefill fills it; empty for ``random``.
        whole: inputs of the same request from an empty cache, to compare with; empty for ``random``.
    """

    tokens: int
    filled_with: str = "random"
    earlier: Mapping[str, Any] = field(default_factory=dict)
    whole: Mapping[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, Any]:
        """For the rows of its runs."""
        return {"num_cached_tokens": self.tokens, "cache_filled_with": self.filled_with}


@dataclass(kw_only=True)
class Prepared:
    """A request ready for ``generate``: tensors (on the host until transferred) and what was observed on them.

    Args:
        inputs: keyword arguments of ``generate``, tensors with a leading batch axis.
        count: observes the token counts of one row on the inputs; the instrument's own work, so not done while a
            clock runs.
        output: how long the answer may be.
        count_each: observes the counts of every request of a batch of different ones; None where all rows are equal.
        cached: what the run finds in the cache; None for an empty one.
        num_frames: of the clip that is shown; None without one.
        T_video_decode: ms that decoding the clip took, on the host; no part of T_preprocess.
    """

    inputs: dict[str, Any]
    count: Callable[[], TokenCounts]
    output: Output
    count_each: Callable[[], tuple[TokenCounts, ...]] | None = None
    cached: Cached | None = None
    num_frames: int | None = None
    T_video_decode: float | None = None

    @property
    def prefill(self) -> bool:
        """Whether the run has a prefill; over a cache of random keys it has none."""
        return self.cached is None or self.cached.filled_with != "random"

    @property
    def cut(self) -> Mapping[str, int]:
        """Checksums of the small integer inputs that say how images are cut (grids, sizes, masks of patches): a tower's
        path hangs on what they hold, not on their shapes alone. Only of those on the host: a device would have to be
        waited for.
        """
        return {
            name: crc32(value.contiguous().numpy().tobytes())
            for name, value in sorted(self.inputs.items())
            if name not in _OF_TOKENS
            and hasattr(value, "is_floating_point")
            and not value.is_floating_point()
            and value.device.type == "cpu"
            and value.numel() <= _MOST_OF_CUT
        }

    @cached_property
    def counts(self) -> TokenCounts:
        """The observed token counts of one row; of a batch of different requests their means, rounded down."""
        return self.count()

    @cached_property
    def each(self) -> tuple[TokenCounts, ...]:
        """The counts of each request of a batch of different ones, without padding; empty where all rows are equal."""
        return () if self.count_each is None else self.count_each()


@runtime_checkable
class InReplays(Protocol):
    """A method at work on a model (an attachment) that goes together with a loop's replays; asked once it has begun."""

    def begin(self, prepared: Prepared) -> None:
        """Make ready for one run of the request."""

    def left(self) -> list[int]:
        """Positions of the prompt that each decoder layer will store in this run."""

    def inside(self) -> Mapping[str, Hashable]:
        """The stages whose code the method changes, each with all that tells one such change from another."""

    def anew(self, stage: str) -> object:
        """Make ready for a first run of a stage's code, with no wait for the device: it is run again to be captured.

        Returns:
            The tensors that the code then reads besides its arguments.
        """


class Loop(Protocol):
    """A generation loop in place of ``generate()``: an engine's, driving a module that is loaded in this process."""

    def ready(self, prepared: Prepared, inputs: Callable[[], Mapping[str, Any]]) -> float:
        """Capture or compile what the request needs; the time that took in ms, 0.0 where everything was there.

        Args:
            inputs: gives its inputs on the device.
        """

    def generate(self, prepared: Prepared, criteria: Sequence[Callable[..., Any]] = ()) -> torch.Tensor:
        """The new token ids of one request, (batch, tokens); ``criteria`` are called after each token.

        Forward hooks on the stages' modules, and on the top-level module, fire at the stages' boundaries.
        """

    def under(self, method: InReplays) -> AbstractContextManager[None]:
        """Requests within run under a method that has begun with them, and is begun again after a capture."""

    def python(self) -> AbstractContextManager[None]:
        """Requests within run the code that was captured, not its replays: for what only Python code can show."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is known once requests have run: what was captured, how long that took, which kernels serve."""

    def clear(self) -> None:
        """Forget everything that was captured and give its memory back."""


class Target(Protocol):
    """What the measurement loop needs of whatever answers requests: a model in this process, or one elsewhere."""

    @property
    def device(self) -> torch.device:
        """Where inputs go; the host's where the model is elsewhere."""

    @property
    def devices(self) -> list[torch.device]:
        """Every device to wait for before a clock is read, :attr:`device` first."""

    @property
    def compile(self) -> bool:
        """Whether ``generate`` compiles its decode step: the first step after another shape then costs more."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Provenance: weights (pretrained with revision, or random with seed), dtype, attention kernel, parameters."""

    def resolve(self, request: Request) -> Request:
        """The request with its targets turned into settings, which may take a search: call it before timing.

        Raises:
            UnreachablePointError: no setting reaches a target.
        """

    def vision_counts(self, request: Request, most: int) -> list[int]:
        """Up to ``most`` counts of vision tokens that can be reached, ascending: the values of a sweep's ``auto``.

        Raises:
            ConfigError: fewer than three can be reached.
        """

    def prepare(self, request: Request) -> Prepared:
        """Decode, resize, crop, normalise, apply the prompt format, tokenise: T_preprocess. Host only.

        Raises:
            SampleError: an image that cannot be decoded.
            UnreachablePointError: a knob this model does not have.
        """

    def ready(self, prepared: Prepared) -> Mapping[str, Any]:
        """Capture or compile what a request needs, before any clock starts; what that took, for its row.

        ``T_capture`` in ms where something was captured; empty where nothing had to be.
        """

    @property
    def closing_facts(self) -> Mapping[str, Any]:
        """Provenance that is known only once requests have run; empty for most."""

    def transfer(self, prepared: Prepared) -> Prepared:
        """The inputs on the device: T_transfer."""

    def announce(self, prepared: Prepared) -> None:
        """Called just before the clock of ``generate`` starts: where several processes share the model, the others are
        told what comes next and are waited for. Nothing to do otherwise.
        """

    def generate(self, prepared: Prepared, stopping_criteria: list[Any] | None = None) -> torch.Tensor:
        """One ``generate()`` call from an empty cache; returns the new token ids only, shape (batch, tokens)."""

    def detokenize(self, tokens: torch.Tensor) -> list[str]:
        """Token ids to text: T_detokenize."""

    def own_columns(self) -> Mapping[str, Any]:
        """Columns that the engine itself gives of the run that just ended; empty for most.

        ``T_transfer`` or ``T_detokenize`` is None where the engine does it within ``generate``: the row has none then.
        """

    def release(self) -> str:
        """Give memory back after a request ran out of it; returns, in a few words, how much was free."""


class Watched(Protocol):
    """What probes need of a model in this process: its module, and where and how it runs."""

    @property
    def module(self) -> torch.nn.Module:
        """The top-level module, on its device, in eval mode."""

    @property
    def device(self) -> torch.device:
        """Where inputs go."""

    @property
    def devices(self) -> list[torch.device]:
        """Every device that holds a part of the model, :attr:`device` first."""

    @property
    def clock(self) -> Clock:
        """The clock whose marks this model's devices understand; one for the life of the model, with its event pool."""

    @property
    def compile(self) -> bool:
        """Whether ``generate`` compiles its decode step: hooks inside what is compiled would break the graph."""

    @property
    def anatomy(self) -> Anatomy:
        """Which module is which stage."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Provenance; probes read which other GPUs hold a part of the model (``other_gpus``)."""


Told = Callable[[str, bool], Callable[[], None]]
"""Gives what is to be called where a stage (``vision_encoder``, ``projector``, ``forward``: a step's model) begins, or
ends; asked for before a run."""


@runtime_checkable
class TellsStages(Protocol):
    """An engine on whose modules forward hooks do not fire: it says itself where stages begin and end."""

    def listen(self, told: Told) -> Callable[[], None]:
        """Call what is told of every beginning and end, until the function that is returned is called."""


class VisionLanguageModel(Target, Watched, Protocol):
    """A loaded model in this process, which the loop runs and the probes watch."""


class Processes(Protocol):
    """What the search for settings needs of a model: its processor, never its weights."""

    processor: Any
    prompter: Prompter
    marks: ImageMarks

    def process(self, images: Sequence[Any], rendered: str, request: Request) -> dict[str, Any]:
        """The processor's own call, see :meth:`vlmbench.models.transformers_model.TransformersModel.process`."""

    def resolve(self, request: Request) -> Request:
        """The request with its targets turned into settings."""

    def remember(self, key: tuple[Any, ...], find: Callable[[], Any]) -> Any:
        """The result of a search, made once."""

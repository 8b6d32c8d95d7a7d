"""A model whose stage times are planted: every module busy-waits for a known time. Nothing else is faked.

Its modules are real ``torch.nn.Module`` objects called through ``__call__``, its ``generate`` calls stopping criteria
once a token as transformers' does, so that the timeline probe meets what it meets in earnest.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from vlmbench.errors import SampleError
from vlmbench.machine.clock import Clock, HostClock
from vlmbench.models.protocol import Anatomy, Prepared
from vlmbench.request import ImageSource, Output, Request, Sample, TokenCounts

if TYPE_CHECKING:
    import pytest


class SimulatedTime:
    """A clock that only planted waits move: stage times are then known to the nanosecond on any machine."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace the clock of ``time.perf_counter_ns`` and the planted waits, until the test ends."""
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self.now_ns)
        monkeypatch.setattr(sys.modules[__name__], "wait", self.advance)

    def advance(self, ms: float) -> None:
        """Let time pass."""
        self.now_ns += round(ms * 1e6)


def wait(ms: float) -> None:
    """Keep the processor busy for that long."""
    end = time.perf_counter_ns() + int(ms * 1e6)
    while time.perf_counter_ns() < end:
        pass


class Waiting(torch.nn.Module):
    """Waits for ``ms``, with another module inside where one is given."""

    def __init__(self, ms: float, inner: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.ms = ms
        self.inner = inner
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: Any = None) -> Any:
        """Wait, call the inner module, and give back what came in."""
        wait(self.ms)
        if self.inner is not None:
            self.inner(x)
        return x


class Decoder(torch.nn.Module):
    """Waits for the prefill time at its first call, for the decode time at later ones."""

    def __init__(self, prefill_ms: float, decode_ms: float) -> None:
        super().__init__()
        self.prefill_ms, self.decode_ms, self.calls = prefill_ms, decode_ms, 0
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self) -> None:
        """Wait for the prefill, or for one step."""
        wait(self.decode_ms if self.calls else self.prefill_ms)
        self.calls += 1


@dataclass
class Times:
    """Planted times in ms. ``jitter`` gives what the n-th generate() takes on top, in its prefill."""

    setup: float = 1.0
    vision: float = 4.0
    projector: float = 2.0
    prefill: float = 5.0
    decode: float = 2.0
    loop: float = 0.5
    tail: float = 0.3
    preprocess: float = 1.0
    search: float = 0.0
    per_image_token: float = 0.0
    jitter: Callable[[int], float] = field(default=lambda _: 0.0)


class Network(torch.nn.Module):
    """A tower, a projector and a decoder that wait, and a ``generate()`` like transformers'."""

    def __init__(self, times: Times, *, inside: bool = False, tiles: int = 1, vision: bool = True) -> None:
        super().__init__()
        self.times, self.tiles, self.runs, self.has_vision = times, tiles, 0, vision
        projector = Waiting(times.projector)
        self.tower = Waiting(times.vision, projector if inside else None)
        self.projector = projector if not inside else torch.nn.Identity()
        self.language = Decoder(times.prefill, times.decode)
        self.inside = inside

    def forward(self) -> None:
        """Run the decoder once."""
        self.language()

    def generate(self, steps: int, criteria: list[Any], extra_prefill_ms: float = 0.0) -> torch.Tensor:
        """Run vision, prefill and ``steps`` tokens; criteria are called once a token."""
        self.language.calls = 0
        wait(self.times.setup)
        if self.has_vision:
            for _ in range(self.tiles):
                self.tower()
                if not self.inside:
                    self.projector(torch.zeros(1))
        wait(extra_prefill_ms + self.times.jitter(self.runs))
        self.runs += 1
        ids = torch.zeros(1, 1, dtype=torch.long)
        for step in range(steps):
            if step:
                wait(self.times.loop)
            self()
            for criterion in criteria:
                criterion(ids, None)
        wait(self.times.tail)
        return torch.zeros(1, steps, dtype=torch.long)


class PlantedModel:
    """Implements ``vlmbench.models.protocol.VisionLanguageModel`` on the CPU."""

    def __init__(
        self,
        times: Times | None = None,
        *,
        inside: bool = False,
        tiles: int = 1,
        vision: bool = True,
        fail: Callable[[Request], None] = lambda _: None,
    ) -> None:
        self.times = times or Times()
        self.module = Network(self.times, inside=inside, tiles=tiles, vision=vision)
        self.fail = fail
        self.compiles = False
        self.prepared = 0
        self.resolved: set[int | None] = set()
        self._anatomy = Anatomy(
            vision_encoder=("tower",) if vision else (),
            projector=(("tower.inner",) if inside else ("projector",)) if vision else (),
            language_model=("language",),
        )

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def devices(self) -> list[torch.device]:
        """The CPU alone."""
        return [self.device]

    @cached_property
    def clock(self) -> Clock:
        """The host's clock."""
        return HostClock()

    @property
    def compile(self) -> bool:
        """Whether it says of itself that it compiles."""
        return self.compiles

    @property
    def anatomy(self) -> Anatomy:
        """The planted stages."""
        return self._anatomy

    @property
    def facts(self) -> Mapping[str, Any]:
        """Name, weights and a number of parameters."""
        return {"name": "planted", "weights": "random", "parameters": {"total": 4}}

    def resolve(self, request: Request) -> Request:
        """Wait for a search at the first request of a target."""
        if request.vision_tokens not in self.resolved:
            self.resolved.add(request.vision_tokens)
            wait(self.times.search)
        return request

    def prepare(self, request: Request) -> Prepared:
        """Wait for the host's part, and count the tokens."""
        self.prepared += 1
        self.resolve(request)
        wait(self.times.preprocess)
        for image in request.images:
            if image.read() == b"corrupt":
                raise SampleError(f"{image.name}: cannot be decoded")
        tokens = request.vision_tokens or 16
        counts = TokenCounts(num_input_tokens=tokens + 4, num_prompt_tokens=4, num_vision_tokens=tokens, num_images=1)
        inputs = {"input_ids": torch.zeros(1, tokens + 4, dtype=torch.long), "request": request}
        return Prepared(inputs=inputs, count=lambda: counts, output=request.output)

    def ready(self, prepared: Prepared) -> Mapping[str, Any]:  # noqa: ARG002 – the protocol's
        """Capture nothing."""
        return {}

    @property
    def closing_facts(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def transfer(self, prepared: Prepared) -> Prepared:
        """Give the inputs back as they are."""
        return prepared

    def announce(self, prepared: Prepared) -> None:
        """Do nothing: no other process shares the model."""

    def generate(self, prepared: Prepared, stopping_criteria: list[Any] | None = None) -> torch.Tensor:
        """Run the network, or fail as planted."""
        self.fail(prepared.inputs["request"])
        extra = self.times.per_image_token * prepared.counts.num_vision_tokens
        return self.module.generate(prepared.output.max_new_tokens, stopping_criteria or [], extra)

    def own_columns(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def release(self) -> str:
        """Give nothing back."""
        return "host memory"

    def detokenize(self, tokens: torch.Tensor) -> list[str]:
        """One letter a token."""
        return ["x" * tokens.shape[1]]


class Samples:
    """A data set of ``n`` requests; ``corrupt`` names those whose image cannot be decoded."""

    def __init__(self, n: int, corrupt: tuple[int, ...] = ()) -> None:
        self.n, self.corrupt = n, corrupt

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        data = b"corrupt" if index in self.corrupt else b"fine"
        image = ImageSource(name=f"image/{index}", read=lambda: data)
        return Sample(sample_id=f"s{index}", question="what?", images=(image,))


def request(tokens: int = 4) -> Request:
    """Make a request of one image and so many forced tokens."""
    return Request(sample=Samples(1)[0], output=Output(max_new_tokens=tokens, forced=True))

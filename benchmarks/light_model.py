"""A model that takes next to no time, for benchmarks of everything around a model.

Its modules are real ``torch.nn.Module`` objects called through ``__call__`` and its ``generate`` calls stopping
criteria once a token as transformers' does, so that hooks, marks, rows and reports are those of a real run.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from vlmbench.machine.clock import Clock, clock_for
from vlmbench.models.protocol import Anatomy, Prepared
from vlmbench.request import ImageSource, Request, Sample, TokenCounts

DISTINCT_SHAPES = 500  # real images come in many sizes
IMAGE_BYTES = 100_000  # of a photograph as JPEG: held for 100,000 requests they would be 10 GB


class Layer(torch.nn.Module):
    """Passes its input through; ``parameters`` tensors of one number."""

    def __init__(self, parameters: int, device: torch.device) -> None:
        super().__init__()
        numbers = (torch.nn.Parameter(torch.zeros(1, device=device)) for _ in range(parameters))
        self.weights = torch.nn.ParameterList(numbers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Network(torch.nn.Module):
    """Vision tower, projector and language model; about ``parameters`` tensors in all."""

    def __init__(self, parameters: int, device: torch.device) -> None:
        super().__init__()
        self.tower, self.projector = Layer(parameters // 2, device), Layer(4, device)
        self.language = Layer(parameters // 2, device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.language(x)
        return output

    def generate(self, ids: torch.Tensor, steps: int, criteria: list[Any]) -> torch.Tensor:
        self.projector(self.tower(ids))
        for _ in range(steps):
            self(ids)
            for criterion in criteria:
                criterion(ids, None)
        return ids.new_zeros(1, steps)


class LightModel:
    """Implements ``vlmbench.models.protocol.VisionLanguageModel``.

    Args:
        parameters: parameter tensors of the network (LLaVA-1.5-7B has 686).
        device: where it lives.
    """

    def __init__(self, parameters: int = 16, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.devices = [self.device]
        self.module = Network(parameters, self.device)
        self.compile = False
        self.anatomy = Anatomy(vision_encoder=("tower",), projector=("projector",), language_model=("language",))

    @cached_property
    def clock(self) -> Clock:
        return clock_for(self.devices)

    @property
    def facts(self) -> Mapping[str, Any]:
        count = sum(1 for _ in self.module.parameters())
        return {"name": "light", "weights": "random", "dtype": "float32", "parameters": {"total": count}}

    def resolve(self, request: Request) -> Request:
        return request

    def prepare(self, request: Request) -> Prepared:
        data = b"".join(image.read() for image in request.images)
        tokens = 16 + int.from_bytes(data[:8], "little") % DISTINCT_SHAPES
        counts = TokenCounts(
            num_input_tokens=tokens + 8,
            num_prompt_tokens=8,
            num_vision_tokens=tokens,
            num_vision_patches=4 * tokens,
            num_crops=1,
            num_images=1,
        )
        ids = torch.zeros(1, tokens + 8, dtype=torch.long)
        return Prepared(inputs={"input_ids": ids}, count=lambda: counts, output=request.output)

    def transfer(self, prepared: Prepared) -> Prepared:
        prepared.inputs = {name: value.to(self.device) for name, value in prepared.inputs.items()}
        return prepared

    def announce(self, prepared: Prepared) -> None:
        pass

    def ready(self, _: Prepared) -> dict[str, float]:
        return {}

    def own_columns(self) -> dict[str, float]:
        return {}

    def generate(self, prepared: Prepared, stopping_criteria: list[Any] | None = None) -> torch.Tensor:
        steps = prepared.output.max_new_tokens
        return self.module.generate(prepared.inputs["input_ids"], steps, stopping_criteria or [])

    def detokenize(self, tokens: torch.Tensor) -> list[str]:
        return ["x" * tokens.shape[1]]


class LightSamples:
    """A data set of ``size`` questions, each about an image of :data:`IMAGE_BYTES` that is made when it is read."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        def read() -> bytes:
            return index.to_bytes(8, "little") + bytes(IMAGE_BYTES)

        image = ImageSource(name=f"light/{index}", read=read)
        return Sample(sample_id=f"sample-{index}", question=f"What is in image {index}?", images=(image,))

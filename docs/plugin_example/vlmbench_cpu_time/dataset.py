"""A data set: grey images of one size."""

from __future__ import annotations

import io
from dataclasses import dataclass

from vlmbench.request import ImageSource, Sample


@dataclass(frozen=True, kw_only=True)
class GreyImages:
    """So many grey images, each with one question."""

    name: str = "grey"
    num_samples: int = 4
    side: int = 56

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"'num_samples' must be 1 or more (got {self.num_samples})")

    def open(self) -> list[Sample]:
        """Make the samples; an image is drawn when it is read."""
        image = ImageSource(name="grey", read=self._png, size=(self.side, self.side))
        return [
            Sample(sample_id=str(i), question="Which colour is this?", images=(image,)) for i in range(self.num_samples)
        ]

    def _png(self) -> bytes:
        from PIL import Image

        memory = io.BytesIO()
        Image.new("RGB", (self.side, self.side), "grey").save(memory, format="PNG")
        return memory.getvalue()

"""The control that costs no thought: a smaller image, which makes as many vision tokens as a method keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlmbench.errors import UnreachablePointError
from vlmbench.interventions.protocol import Attachment, Untouched, check_share

if TYPE_CHECKING:
    from vlmbench.request import Request


@dataclass(frozen=True, kw_only=True)
class Downsample:
    """Asks with an image that makes a share of the vision tokens, through the model's own processor.

    Args:
        keep: share of the vision tokens that the request makes as it is, above 0, at most 1.
    """

    keep: float

    name = "downsample"

    def __post_init__(self) -> None:
        check_share("keep", self.keep)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The share."""
        return {"keep": self.keep}

    def request(self, request: Request, model: Any) -> Request:
        """The request with its number of vision tokens as a target, which the model's processor is searched for.

        Raises:
            UnreachablePointError: the processor makes no such number (a model with a fixed number of vision tokens).
        """
        if self.keep == 1:
            return request
        count = request.vision_tokens
        if count is None:  # asked once: this runs before every run of the arm
            look = (self.name, request.sample.sample_id, request.num_images, request.image_size)
            count = model.remember(
                (*look, repr(request.processor_kwargs)), lambda: model.prepare(request).counts.num_vision_tokens
            )
        if not count:
            raise UnreachablePointError(f"{self.name} needs a request with an image among its text")
        target = max(1, round(self.keep * count))
        asked = replace(request, vision_tokens=target, image_size=None)
        try:
            resolved: Request = model.resolve(asked)
        except UnreachablePointError as error:
            raise UnreachablePointError(f"{self.name}: of {count} vision tokens, {error}") from error
        return resolved

    def attach(self, model: Any) -> Attachment:  # noqa: ARG002 – the protocol's argument
        """Change nothing: the image is what changes."""
        return Untouched()

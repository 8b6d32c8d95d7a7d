"""Where the image stands in a prompt, and how many of its tokens stay: known on the host before the clock starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmbench.errors import UnreachablePointError

if TYPE_CHECKING:
    import torch

    from vlmbench.models.protocol import Prepared


@dataclass(frozen=True, kw_only=True)
class Places:
    """Positions in the prompt of one request, equal in all rows of its batch.

    Args:
        length: positions of the prompt, L.
        vision: positions that hold image features, ascending, shape (n,), on the model's device.
        text: all others, ascending, shape (L − n,).
        rows: of the batch.
        new_tokens: that the answer may have.
    """

    length: int
    vision: torch.Tensor
    text: torch.Tensor
    rows: int
    new_tokens: int

    @property
    def count(self) -> int:
        """Vision tokens, n."""
        return int(self.vision.shape[0])

    def kept(self, keep: float) -> int:
        """How many vision tokens a share is: rounded, at least one."""
        return max(1, round(keep * self.count))

    def positions(self, chosen: torch.Tensor) -> torch.Tensor:
        """All positions that stay, ascending: the text and the chosen vision tokens (indices into ``vision``)."""
        import torch

        return torch.cat([self.text, self.vision.index_select(0, chosen)]).sort().values


def find_places(prepared: Prepared, model: Any, *, method: str) -> Places:
    """Find the image positions of a prepared request.

    Args:
        prepared: with inputs on any device; on the host it takes no wait.
        model: whose configuration names the id of an image position.

    Raises:
        UnreachablePointError: no image positions in the prompt, rows that differ, or padding.
    """
    import torch

    ids = prepared.inputs.get("input_ids")
    architecture = type(model.module).__name__
    if ids is None:
        raise UnreachablePointError(f"{method}: {architecture} takes no input_ids, so no image position can be found")
    ids = ids.cpu()
    marks = model.marks.image_token_ids
    is_vision = torch.isin(ids, torch.tensor(marks, dtype=ids.dtype)) if marks else torch.zeros_like(ids).bool()
    if not bool(is_vision.any()):
        raise UnreachablePointError(
            f"{method}: no image position stands in the prompt of {architecture} (a text-only request, or a model that "
            "attends to its image across instead of placing it among the text)"
        )
    if not bool((is_vision == is_vision[0]).all()):
        raise UnreachablePointError(f"{method} needs a batch whose rows hold the image at the same positions")
    mask = prepared.inputs.get("attention_mask")
    if mask is not None and not bool(mask.cpu().bool().all()):
        raise UnreachablePointError(f"{method} needs a batch without padding; this one has rows of unlike length")
    where = torch.arange(ids.shape[1])
    return Places(
        length=int(ids.shape[1]),
        vision=where[is_vision[0]].to(model.device),
        text=where[~is_vision[0]].to(model.device),
        rows=int(ids.shape[0]),
        new_tokens=prepared.output.max_new_tokens,
    )

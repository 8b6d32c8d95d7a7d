"""A trial of a checkpoint's processor: one picture and a question, before anything is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmbench.errors import ModelError, SampleError, UnreachablePointError
from vlmbench.request import Output, Request, Sample

if TYPE_CHECKING:
    from vlmbench.models.transformers_model import TransformersModel

_SIDE = 336  # pixels: what the smallest towers take whole, so that few tiles are made


def try_processor(model: TransformersModel, *, source: str) -> None:
    """Refuse a processor whose inputs the model cannot take: each request would fail, on a GPU for good.

    An id beyond the embedding is an assertion on the device, after which CUDA answers nothing in this process.

    Args:
        model: as loaded.
        source: what the error calls the checkpoint.

    Raises:
        ModelError: the processor refuses a picture with a question, or makes ids that the model has no row for.
    """
    from PIL import Image

    sample = Sample(sample_id="trial", question="What is in this picture?", images=())
    request = Request(sample=sample, output=Output(max_new_tokens=1, forced=True))
    processor: Any = model.processor
    parts = f"{type(processor).__name__} with {type(processor.image_processor).__name__}"
    try:
        rendered = model.prompter.render(sample.question, num_images=1)
        inputs = model.process([Image.new("RGB", (_SIDE, _SIDE), "grey")], rendered, request)
    except (SampleError, UnreachablePointError) as error:
        raise ModelError(
            f"the processor in '{source}' ({parts}) cannot prepare a picture with a question; "
            f"does it belong to the model? {error}"
        ) from error
    rows, ids = _embedding_rows(model.module), inputs.get("input_ids")
    if rows is None or ids is None:
        return
    # An image position may have an id of its own, which models replace before they embed.
    text = [int(value) for value in ids.unique() if int(value) not in model.marks.image_token_ids]
    if text and max(text) >= rows:
        raise ModelError(
            f"the tokenizer in '{source}' gives the id {max(text)}, but the model has {rows:,} embeddings: "
            "they belong to different models"
        )


def _embedding_rows(module: Any) -> int | None:
    """Ids that the input embedding knows."""
    embedding = module.get_input_embeddings() if hasattr(module, "get_input_embeddings") else None
    weight = getattr(embedding, "weight", None)
    if weight is None or weight.ndim != 2:
        return None
    return int(weight.shape[0]) + int(getattr(embedding, "num_additional_embeddings", 0) or 0)

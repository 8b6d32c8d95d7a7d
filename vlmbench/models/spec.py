"""A model's YAML as a frozen dataclass: data only. :func:`vlmbench.models.loading.load` makes a model of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vlmbench.schema import MODEL_PARTS

_WEIGHTS = ("random", "pretrained")
_QUANTIZATIONS = ("bitsandbytes_4bit", "bitsandbytes_8bit", "torchao_int8", "torchao_int4")
_STAGES = tuple(part.name for part in MODEL_PARTS)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model: what ``conf/model/*.yaml`` holds.

    Args:
        name: what records and figures call it.
        hub_id: repository on the Hugging Face hub; used with ``weights=pretrained``.
        revision: commit, tag or branch of ``hub_id``; the commit found is recorded.
        path: local checkpoint folder, with ``weights=pretrained``; used instead of ``hub_id`` when set.
        weights: ``random`` (no network, no files: configuration, tokenizer and processor come from here) or
            ``pretrained``.
        trust_remote_code: whether Python files of a checkpoint may run.
        plugin: Python module that registers the architecture with transformers' Auto classes when imported, for
            architectures that transformers does not have.
        config: arguments of the architecture's configuration class, ``model_type`` among them. Needed for random
            weights.
        processor: classes, arguments, tokenizer and prompt format of the processor; see
            :data:`vlmbench.models.processors.PROCESSOR_KEYS`. Needed for random weights.
        anatomy: stage name to dotted module paths, where the rules that find the stages need help.
        quantization: one of bitsandbytes_4bit, bitsandbytes_8bit, torchao_int8, torchao_int4; pretrained weights only.
        params_published: parameters according to the publisher.
        params_counted: parameters of ``config``, counted on the meta device.
        vision_tokens_640x480: image positions of a 640×480 image in the language model.
        verified: ``yes``, ``partial`` or a sentence: how far ``config`` is checked against the published files.
        from_memory: facts of this file that were recalled, not looked up.
        notes: free text.
    """

    name: str
    hub_id: str | None = None
    revision: str | None = None
    path: str | None = None
    weights: str = "random"
    trust_remote_code: bool = False
    plugin: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    anatomy: dict[str, list[str]] | None = None
    quantization: str | None = None
    params_published: int | None = None
    params_counted: int | None = None
    vision_tokens_640x480: int | None = None
    verified: str | None = None
    from_memory: list[str] = field(default_factory=list)
    notes: str | None = None

    def __post_init__(self) -> None:
        if self.weights not in _WEIGHTS:
            raise ValueError(f"'weights' must be one of {', '.join(_WEIGHTS)} (got {self.weights!r})")
        if self.quantization is not None and self.quantization not in _QUANTIZATIONS:
            raise ValueError(f"'quantization' must be one of {', '.join(_QUANTIZATIONS)} (got {self.quantization!r})")
        if self.quantization is not None and self.weights == "random":
            raise ValueError("'quantization' must go with weights=pretrained (got weights=random)")
        if self.weights == "pretrained" and not (self.path or self.hub_id):
            raise ValueError("'path' or 'hub_id' must be set with weights=pretrained")
        if self.path is not None and self.weights == "random":
            raise ValueError(
                f"'path' goes with weights=pretrained: random weights are made without it (got path={self.path!r}, "
                "weights=random)"
            )
        if self.weights == "random" and not isinstance(self.config.get("model_type"), str):
            raise ValueError("'config.model_type' must be set with weights=random (the name of the architecture)")
        if self.anatomy is not None and (unknown := sorted(set(self.anatomy) - set(_STAGES))):
            raise ValueError(f"'anatomy' must name stages among {', '.join(_STAGES)} (got {unknown})")

    @property
    def source(self) -> str | None:
        """Where pretrained weights come from: ``path`` before ``hub_id``."""
        return self.path or self.hub_id

"""Configuration of Molmo 1 (the 0924 family): a CLIP tower, a pooling connector and one of three decoders."""

# transformers' annotations are incomplete and differ between the versions supported here.
# mypy: disable-error-code="no-untyped-call, misc"

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig

from vlmbench.models.checkpoint import ReleasedCheckpointError

TEXT_MODEL_TYPES = ("olmoe", "olmo2", "qwen2")
"""Decoders the released checkpoints are made of: MolmoE-1B, Molmo-7B-O, and Molmo-7B-D with Molmo-72B."""

CLIP_VIT_L_14_336: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    # The checkpoints hold 23 of the 24 blocks; the last is executed and its output unused, as in the original code.
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""The vision tower, the same in all released checkpoints."""

# Keys that only the released checkpoints' own config.json has; see checkpoint_config.py.
_RELEASED_KEYS = ("embedding_size", "d_model", "attention_layer_norm")


class MolmoConfig(PreTrainedConfig):
    """Configuration of :class:`vlmbench.models.molmo.modeling.MolmoForConditionalGeneration`.

    Args:
        vision_config: :class:`~transformers.CLIPVisionConfig` or its dict; ViT-L/14-336 with 23 blocks where absent.
        text_config: config (or dict with ``model_type``) of an ``olmoe``, ``olmo2`` or ``qwen2`` decoder. Its
            ``vocab_size`` is the number of rows of the head; the input table has ``additional_vocab_size`` more.
        additional_vocab_size: rows of the input embedding behind the head's vocabulary, for the image tokens.
        vision_feature_layers: entries of the tower's ``hidden_states`` (0: the embeddings) that are concatenated, in
            this order.
        pooling_size: (height, width) in patches that attention pooling makes one vector of.
        projector_hidden_size: width of the connector's SwiGLU; the decoder's gate width where absent.
        projector_hidden_act: its activation.
        image_token_id: id of ``<im_patch>``, the token to whose embedding a pooled vector is added.
        image_start_token_id, image_end_token_id, image_col_token_id: ids of ``<im_start>``, ``<im_end>``, ``<im_col>``.
        bos_token_id, eos_token_id, pad_token_id: as in the tokenizer; the models begin with EOS for want of a BOS.

    Raises:
        ValueError: for another decoder, and for the config.json of a released checkpoint that was not converted.
    """

    model_type = "molmo"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig, "vision_config": CLIPVisionConfig}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vision_config: Any = None  # a configuration after construction; Any, because its fields differ by class
    text_config: Any = None
    additional_vocab_size: int = 128
    vision_feature_layers: list[int] | tuple[int, ...] = (-2, -9)
    pooling_size: list[int] | tuple[int, ...] = (2, 2)
    projector_hidden_size: int | None = None
    projector_hidden_act: str = "silu"
    image_token_id: int | None = None
    image_start_token_id: int | None = None
    image_end_token_id: int | None = None
    image_col_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Make the nested configurations and check what the model relies on."""
        released = sorted(set(_RELEASED_KEYS) & set(kwargs))
        if self.text_config is None and released:
            raise ReleasedCheckpointError(
                f"this is the configuration of a released Molmo checkpoint ({', '.join(released)} …), not a converted "
                "one: run `python -m vlmbench.models.molmo.convert SRC DST` and give the folder DST"
            )
        self.vision_config = _vision_config(self.vision_config)
        self.text_config = _text_config(self.text_config)
        if self.projector_hidden_size is None:
            self.projector_hidden_size = self.text_config.intermediate_size
        self.vision_feature_layers = list(self.vision_feature_layers)
        self.pooling_size = list(self.pooling_size)
        self._check()
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        """Refuse what would fail later, or silently be something else."""
        vision, text = self.vision_config, self.text_config
        side = vision.image_size // vision.patch_size
        if len(self.pooling_size) != 2 or any(n < 1 or side % n for n in self.pooling_size):
            raise ValueError(f"'pooling_size' must be two divisors of {side} patches (got {self.pooling_size})")
        entries = vision.num_hidden_layers + 1
        if not self.vision_feature_layers or any(not -entries <= i < entries for i in self.vision_feature_layers):
            raise ValueError(
                f"'vision_feature_layers' must name hidden states -{entries}..{entries - 1} of the vision tower "
                f"(got {self.vision_feature_layers})"
            )
        if self.tie_word_embeddings or getattr(text, "tie_word_embeddings", False):
            raise ValueError("'tie_word_embeddings' must be false: Molmo's head has fewer rows than its input table")


def _vision_config(given: Any) -> Any:
    """The tower's config; unnamed fields are ViT-L/14-336's."""
    if isinstance(given, PreTrainedConfig):
        return given
    return CLIPVisionConfig(**{**CLIP_VIT_L_14_336, **{k: v for k, v in (given or {}).items() if k != "model_type"}})


def _text_config(given: Any) -> Any:
    """The decoder's config; without one, that of Molmo-7B-D."""
    if given is None:
        given = MOLMO_7B_D_TEXT
    model_type = given.get("model_type") if isinstance(given, Mapping) else given.model_type
    if model_type not in TEXT_MODEL_TYPES:
        raise ValueError(f"'text_config.model_type' must be one of {', '.join(TEXT_MODEL_TYPES)} (got {model_type!r})")
    if isinstance(given, PreTrainedConfig):
        return given
    # Not the classes' own defaults, which are those of other checkpoints.
    fields = {"tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **given}
    fields.pop("model_type")
    return AutoConfig.for_model(model_type, **fields)


MOLMO_7B_D_TEXT: Mapping[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
"""The decoder of Molmo-7B-D-0924."""

"""A model's YAML as a folder that servers open: configuration, processor, tokenizer, chat template; weights if wanted.

The files are those of a checkpoint on the hub, so whatever opens one opens the folder: vLLM (with
``load_format=dummy`` where there are no weights), ``transformers serve``, converters to GGUF, ``from_pretrained``.
"""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbench.errors import InputError, MeasurementError, ModelError, first_line
from vlmbench.models import building
from vlmbench.models.loading import build_config, load, plain
from vlmbench.models.placement import resolve_dtype
from vlmbench.models.processors import build_processor
from vlmbench.models.runtime import Runtime
from vlmbench.models.transformers_library import transformers_library, transformers_module

if TYPE_CHECKING:
    from vlmbench.models.spec import ModelSpec

# Where torchvision is not installed, transformers forgets the names of these classes when it is imported.
_VIDEO_PROCESSORS = {
    "internvl": "InternVLVideoProcessor",
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "qwen2_5_vl": "Qwen2VLVideoProcessor",
    "qwen2_vl": "Qwen2VLVideoProcessor",
    "qwen3_vl": "Qwen3VLVideoProcessor",
    "smolvlm": "SmolVLMVideoProcessor",
}
_LIKE_IMAGES = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")


def export(spec: ModelSpec, folder: Path, *, runtime: Runtime, weights: bool, seed: int) -> Path:
    """Write the folder of a model.

    Args:
        spec: the model's YAML, with ``weights: random``.
        folder: where to; made if it is not there.
        runtime: ``dtype`` is what the configuration names (``auto``: bfloat16), and what weights are stored in.
        weights: also write random weights as safetensors: those that ``seed`` gives on ``runtime.device``.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds something already.
        ModelError: the YAML is of a checkpoint, or of an architecture that no server has.
        MeasurementError: there is no room for the weights.
    """
    import torch

    if spec.weights == "pretrained":
        raise ModelError(
            f"'{spec.source}' is a checkpoint: servers open it as it is\n"
            "only models with model.weights=random need to be written"
        )
    if spec.plugin is not None:
        raise ModelError(
            f"'{spec.name}' cannot be written for servers: they run it with the Python of its released checkpoint\n"
            "serve that checkpoint, or choose an architecture that transformers has (molmo2_8b, qwen2_5_vl_7b …)"
        )
    if (folder.is_dir() and any(folder.iterdir())) or folder.is_file():
        raise InputError(f"'{folder}' is not empty, and the model would be mixed with what is there\ngive a new folder")
    dtype = resolve_dtype("bfloat16" if runtime.dtype == "auto" else runtime.dtype, torch.device("cpu"))
    folder.mkdir(parents=True, exist_ok=True)
    config = build_config(spec)
    vocabulary = config.get_text_config(decoder=True).vocab_size
    arguments = {key: plain(value) for key, value in spec.processor.items()}
    processor = build_processor(arguments, model_type=config.model_type, vocab_size=vocabulary)
    write_processor(processor, folder, model_type=config.model_type)
    if weights:
        stored = Runtime(device=runtime.device, dtype=str(dtype).removeprefix("torch."))
        module = load(spec, stored, seed=seed).module
        _save(module, folder)
    _write_config(config, folder, dtype)
    ids = building.token_ids(processor.tokenizer)
    transformers_library().GenerationConfig(do_sample=False, **ids).save_pretrained(folder)
    return folder


def _save(module: Any, folder: Path) -> None:
    """Write the weights.

    Raises:
        MeasurementError: the disk is full, or the like.
    """
    safetensors: Any = importlib.import_module("safetensors")
    try:
        module.save_pretrained(folder)
    except (safetensors.SafetensorError, OSError) as error:
        raise MeasurementError(
            f"the weights cannot be written: {first_line(error)}\nfree space, or give another folder"
        ) from error


def _write_config(config: Any, folder: Path, dtype: Any) -> None:
    """``config.json`` with the classes' names, by which servers and converters choose their own."""
    names = transformers_module("models.auto.modeling_auto")
    architecture = names.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    if architecture is None:
        raise ModelError(f"transformers has no image-text-to-text class for '{config.model_type}'")
    config.architectures = [architecture]
    text = config.get_text_config(decoder=True)
    if text is not config and (decoder := names.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text.model_type)):
        text.architectures = [decoder]
    config.dtype = dtype
    config.save_pretrained(folder)


def write_processor(processor: Any, folder: Path, *, model_type: str) -> None:
    """Write tokenizer, processor and chat template, in the new layout (one file) and in the one before it.

    Args:
        processor: made offline (:func:`vlmbench.models.processors.build_processor`), or any other.
        model_type: of the architecture; names the class of a video processor, which is not made here.
    """
    cls: Any = type(processor)
    held = copy.copy(processor)
    there = [name for name in cls.get_attributes() if getattr(processor, name, None) is not None]
    if absent := set(cls.get_attributes()) - set(
        there
    ):  # transformers saves what its class lists, also where it is None
        held.__class__ = type(cls.__name__, (cls,), {"get_attributes": classmethod(lambda _: there)})
        for name in absent:
            vars(held).pop(name, None)
    try:
        held.save_pretrained(folder)
        processor.image_processor.save_pretrained(folder)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ModelError(f"{cls.__name__} cannot be written: {first_line(error)}") from error
    if "video_processor" in absent:
        _write_video_processor(processor, folder, model_type)


def _write_video_processor(processor: Any, folder: Path, model_type: str) -> None:
    """``video_preprocessor_config.json``: servers insist on it, also where no video is ever sent."""
    if (name := _VIDEO_PROCESSORS.get(model_type)) is None:
        return
    like = processor.image_processor.to_dict()
    content = {"video_processor_type": name, "processor_class": type(processor).__name__}
    content |= {key: like[key] for key in _LIKE_IMAGES if key in like}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

"""Pretrained or random weights to a :class:`TransformersModel`, on the device from the first byte.

Random parameters are made on the device itself: a 7B takes under a second on a GPU, where building on the CPU and
copying takes minutes. Memory is checked first, against the size of the same model on the ``meta`` device.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbench.errors import DeviceError, ModelError
from vlmbench.models.processors import backend_of, build_processor, load_processor
from vlmbench.models.prompting import Prompter
from vlmbench.models.tokens import ImageMarks
from vlmbench.models.transformers_model import TransformersModel

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vlmbench.models.spec import ModelSpec

__all__ = ["TransformersModel", "build_config", "count_parameters", "load", "module_on_meta"]

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_QUANTIZATION_PACKAGES = {"bitsandbytes": "bitsandbytes", "torchao": "torchao"}


def resolve_device(name: str) -> torch.device:
    """The device, checked to exist.

    Raises:
        DeviceError: not a device name, or not on this machine.
    """
    import torch

    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"'device' must be auto, cpu, cuda, cuda:<n> or mps (got {name!r})") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = torch.cuda.current_device() if device.index is None and count else device.index or 0
        if index >= count:
            raise DeviceError(f"device '{name}' is not here: {count} CUDA device(s) visible; use device=cpu or device=auto")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' is not here; use device=cpu")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        ModelError: not a dtype that models run in.
    """
    import torch

    if name not in _DTYPES:
        raise ModelError(f"'dtype' must be one of {', '.join(_DTYPES)} (got {name!r})")
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def import_plugin(name: str | None) -> None:
    """Import the module that registers an architecture of its own.

    Raises:
        ModelError: it cannot be imported.
    """
    if name is None:
        return
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"'plugin' {name!r} cannot be imported: {error}") from error


def build_config(spec: ModelSpec) -> Any:
    """The transformers configuration of a model's YAML.

    Raises:
        ModelError: this transformers has no such architecture, or refuses an argument.
    """
    import transformers

    import_plugin(spec.plugin)
    arguments = {key: _plain(value) for key, value in spec.config.items()}
    model_type = arguments.pop("model_type", None)
    try:
        return transformers.AutoConfig.for_model(model_type, **arguments)
    except ValueError as error:
        if "Unrecognized model identifier" in str(error):
            raise ModelError(
                f"transformers {transformers.__version__} has no architecture '{model_type}'; a newer one may have it"
            ) from error
        raise ModelError(f"the configuration of '{spec.name}' is refused: {error}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"the configuration of '{spec.name}' is refused: {error}") from error
    except Exception as error:
        if type(error).__name__.startswith("StrictDataclass"):  # huggingface_hub's checks of configuration classes
            raise ModelError(f"the configuration of '{spec.name}' is refused: {error}") from error
        raise


def _plain(value: Any) -> Any:
    """Mappings and sequences as plain dicts and lists: transformers stores them in JSON."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _from_config(config: Any, **options: Any) -> nn.Module:
    from transformers import AutoModelForImageTextToText

    try:
        module: nn.Module = AutoModelForImageTextToText.from_config(config, **options)
    except (ValueError, ImportError, TypeError) as error:
        raise ModelError(f"architecture '{config.model_type}' cannot be built: {error}") from error
    return module


def module_on_meta(config: Any) -> nn.Module:
    """The model without memory: shapes only. For counting parameters and bytes; a 72B takes a second or two."""
    import torch

    with torch.device("meta"):
        return _from_config(config)


def count_parameters(module: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def free_bytes(device: torch.device) -> int:
    """Bytes that a model may take on a device."""
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def check_memory(parameters: int, dtype: torch.dtype, device: torch.device, *, name: str, devices: int = 1) -> None:
    """Refuse a model whose parameters alone do not fit.

    Args:
        parameters: their number.
        dtype: what they are held in.
        device: where; with ``devices`` of its kind.
        name: of the model.
        devices: how many of them share the model.

    Raises:
        DeviceError: says the need and what is free.
    """
    import torch

    need = parameters * dtype.itemsize
    if device.type == "cuda" and devices > 1:
        free = sum(free_bytes(torch.device("cuda", index)) for index in range(devices))
    else:
        free = free_bytes(device)
    if need > free:
        where = f"{devices} x {device.type}" if devices > 1 else str(device)
        raise DeviceError(
            f"'{name}' needs {need / 2**30:.1f} GiB for its parameters in {str(dtype).removeprefix('torch.')}, and "
            f"{where} has {free / 2**30:.1f} GiB free; take a smaller model or dtype, or device_map=auto over more GPUs"
        )


def load(
    spec: ModelSpec,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
    seed: int = 0,
    device_map: str | None = None,
    tp_plan: str | None = None,
    cache_implementation: str | None = None,
    compile: bool = False,
) -> TransformersModel:
    """Build or load a model; the arguments are those of :meth:`vlmbench.models.spec.ModelSpec.load`.

    Raises:
        ModelError: the model cannot be found, built or loaded.
        DeviceError: no such device, or too little memory on it.
    """
    from vlmbench.models import building

    import_plugin(spec.plugin)
    target = resolve_device(device)
    if compile and target.type != "cuda":
        raise DeviceError(f"compile=true needs CUDA (got device {target}); transformers compiles nowhere else")
    number_type = resolve_dtype(dtype, target)
    where = building.Placement(device=target, dtype=number_type, device_map=device_map, tp_plan=tp_plan)
    logging.getLogger("transformers").setLevel(logging.ERROR)  # progress bars and advice would mix with our output
    if spec.weights == "random":
        config = build_config(spec)
        processor = build_processor(
            {key: _plain(value) for key, value in spec.processor.items()},
            model_type=config.model_type,
            vocab_size=config.get_text_config(decoder=True).vocab_size,
        )
        module = building.random_module(config, where, attn_implementation=attn_implementation, seed=seed, name=spec.name)
    else:
        module = building.pretrained_module(spec, where, attn_implementation=attn_implementation)
        processor = load_processor(
            str(spec.source),
            model_type=module.config.model_type,
            revision=spec.revision,
            trust_remote_code=spec.trust_remote_code,
        )
    building.set_generation(module, processor.tokenizer)
    return TransformersModel(
        module=module,
        device=building.input_device(module, target),
        dtype=number_type,
        processor=processor,
        prompter=_prompter(spec, processor),
        marks=_marks(spec, module, processor),
        override=spec.anatomy,
        provenance=_provenance(spec, module, processor, number_type, seed),
        cache_implementation=cache_implementation or ("static" if compile else None),
        compile=compile,
    )


def _prompter(spec: ModelSpec, processor: Any) -> Prompter:
    return Prompter.of(
        processor,
        prompt_format=spec.processor.get("prompt_format"),
        image_placeholder=spec.processor.get("image_placeholder"),
    )


def _marks(spec: ModelSpec, module: Any, processor: Any) -> ImageMarks:
    token = spec.processor.get("vision_token")
    index = None if token is None else processor.tokenizer.convert_tokens_to_ids(token)
    return ImageMarks.from_config(module.config, image_token_id=index)


def _provenance(spec: ModelSpec, module: Any, processor: Any, dtype: torch.dtype, seed: int) -> dict[str, Any]:
    import transformers

    facts: dict[str, Any] = {
        "name": spec.name,
        "weights": spec.weights,
        "model_type": module.config.model_type,
        "architecture": type(module).__name__,
        "dtype": str(dtype).removeprefix("torch."),
        "attention": getattr(module.config, "_attn_implementation", None),
        "transformers_version": transformers.__version__,
        "processor": type(processor).__name__,
        "processor_backend": backend_of(processor),
        "quantization": spec.quantization,
    }
    if spec.weights == "random":
        facts["seed"] = seed
    else:
        facts["source"] = Path(spec.path).name if spec.path else spec.hub_id
        facts["revision"] = getattr(module.config, "_commit_hash", None)
    return facts

"""Pretrained or random weights to a :class:`TransformersModel`, on the device from the first byte.

Random parameters are made on the device itself: a 7B takes under a second on a GPU, where building on the CPU and
copying takes minutes. Memory is checked first, against the size of the same model on the ``meta`` device.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbench.errors import DeviceError, ModelError, SampleError, UnreachablePointError, first_line
from vlmbench.machine.randomness import seeded
from vlmbench.models import building
from vlmbench.models.attention import allow_backends
from vlmbench.models.building import choose_experts, count_parameters, module_on_meta
from vlmbench.models.masks import take_made_masks
from vlmbench.models.parallel import tensor_parallel
from vlmbench.models.placement import Placement, resolve_device, resolve_dtype
from vlmbench.models.processors import build_processor, load_processor
from vlmbench.models.runtime import Runtime
from vlmbench.models.transformers_library import transformers_library
from vlmbench.models.transformers_model import TransformersModel, module_facts
from vlmbench.models.weightless import build_ghost
from vlmbench.request import Output, Request, Sample

if TYPE_CHECKING:
    import torch

    from vlmbench.models.parallel.team import Team
    from vlmbench.models.spec import ModelSpec


# A trial of a checkpoint's processor: one picture and a question, before anything is measured.

_SIDE = 336  # pixels: what the smallest towers take whole, so that few tiles are made


def try_processor(model: TransformersModel, *, source: str) -> None:
    """Refuse a processor whose inputs the model cannot take: each request would fail, on a GPU for good.

    An id beyond the embedding is an assertion on the device, after which CUDA answers nothing in this process.

    Args:
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


__all__ = ["TransformersModel", "build_config", "count_parameters", "load", "module_on_meta"]


def import_plugin(spec: ModelSpec) -> None:
    """Import the module that registers an architecture of its own, where a model's YAML names one.

    A module of this package may always be imported; any other runs code that the YAML's author chose, so it takes
    ``trust_remote_code``, as Python files of a checkpoint do.

    Raises:
        ModelError: it cannot be imported, or is not trusted.
    """
    name = spec.plugin
    if name is None:
        return
    if name.split(".")[0] != __name__.split(".")[0] and not spec.trust_remote_code:
        raise ModelError(
            f"'plugin' {name!r} is a Python module from elsewhere, whose code would run; "
            "set model.trust_remote_code=true if you trust it"
        )
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"'plugin' {name!r} cannot be imported: {error}") from error


def build_config(spec: ModelSpec) -> Any:
    """The transformers configuration of a model's YAML.

    Raises:
        ModelError: this transformers has no such architecture, or refuses an argument.
    """
    transformers = transformers_library()
    import_plugin(spec)
    arguments = {key: plain(value) for key, value in spec.config.items()}
    model_type = arguments.pop("model_type", None)
    try:
        return transformers.AutoConfig.for_model(model_type, **arguments)
    except ValueError as error:
        if model_type not in transformers.CONFIG_MAPPING:
            raise ModelError(
                f"transformers {transformers.__version__} has no architecture '{model_type}'; a newer one may have it"
            ) from error
        raise ModelError(f"the configuration of '{spec.name}' is refused: {_one_line(error)}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"the configuration of '{spec.name}' is refused: {_one_line(error)}") from error
    except Exception as error:
        if type(error).__name__.startswith("StrictDataclass"):  # huggingface_hub's checks of configuration classes
            raise ModelError(f"the configuration of '{spec.name}' is refused: {_one_line(error)}") from error
        raise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def plain(value: Any) -> Any:
    """Mappings and sequences as plain dicts and lists: transformers stores them in JSON."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def load(spec: ModelSpec, runtime: Runtime | None = None, *, seed: int = 0) -> TransformersModel:
    """Build or load a model.

    Args:
        spec: the model's YAML.
        runtime: where and how it runs; the defaults of :class:`vlmbench.models.runtime.Runtime` if None.

    Raises:
        ModelError: the model cannot be found, built or loaded.
        DeviceError: no such device, or too little memory on it.
        ConfigError: ``tp_plan`` without torchrun, torchrun without it, or with what it excludes.
    """
    runtime = runtime or Runtime()
    team = tensor_parallel.team_for(
        runtime.tp_plan, device_map=runtime.device_map, device=runtime.device, compile=runtime.compile
    )
    here = partial(_load, spec, runtime, seed, team)
    return here() if team is None else team.load_together(spec, runtime, seed, here)


def _load(spec: ModelSpec, runtime: Runtime, seed: int, team: Team | None) -> TransformersModel:
    """The model, or this process's share of it."""
    import_plugin(spec)
    where = _placement(runtime, team)
    if team is not None:
        tensor_parallel.connect(team, where.device)
    allow_backends(runtime.sdpa_backends)
    make = _random if spec.weights == "random" else _pretrained
    module, processor, build_s = make(spec, runtime, where, seed)
    choose_experts(module, runtime.experts_implementation, name=spec.name)
    cache = runtime.cache_implementation or ("static" if runtime.compile else None)
    if cache is not None:
        take_made_masks(module)
    given = building.set_generation(module, processor.tokenizer, keep_ids=spec.weights == "pretrained")
    facts = _provenance(spec, module, processor, where.dtype, seed)
    if given and spec.weights == "pretrained":
        facts["generation_config_not_used"] = given
    model = replace(
        TransformersModel.of(
            module, processor, name=spec.name, anatomy=spec.anatomy, prompt=spec.processor, device=where.device
        ),
        dtype=where.dtype,
        provenance={**facts, "build_s": build_s},
        cache_implementation=cache,
        compile=runtime.compile,
        team=team,
    )
    if spec.weights == "pretrained":
        try_processor(model, source=str(spec.source))
    return model


def _placement(runtime: Runtime, team: Team | None) -> Placement:
    device = resolve_device(runtime.device)
    if runtime.compile and device.type != "cuda":
        raise DeviceError(f"compile=true needs CUDA (got device {device}); transformers compiles nowhere else")
    return Placement(
        device=device,
        dtype=resolve_dtype(runtime.dtype, device),
        device_map=runtime.device_map,
        tp_plan=runtime.tp_plan,
        processes=1 if team is None else team.size,
    )


def _random(spec: ModelSpec, runtime: Runtime, where: Placement, seed: int) -> tuple[Any, Any, float]:
    """(module, processor, seconds that the weights took) of a model with random weights."""
    config = build_config(spec)
    processor = build_processor(
        {key: plain(value) for key, value in spec.processor.items()},
        model_type=config.model_type,
        vocab_size=config.get_text_config(decoder=True).vocab_size,
    )
    began = time.monotonic()
    module = building.random_module(
        config, where, attn_implementation=runtime.attn_implementation, seed=seed, name=spec.name
    )
    return module, processor, _elapsed_s(began, where.device)


def _pretrained(spec: ModelSpec, runtime: Runtime, where: Placement, seed: int) -> tuple[Any, Any, float]:
    """(module, processor, seconds that the weights took) of a checkpoint."""
    began = time.monotonic()
    with seeded(seed, [where.device]):  # parts may be drawn before the checkpoint's take their place
        module = building.pretrained_module(spec, where, attn_implementation=runtime.attn_implementation)
    build_s = _elapsed_s(began, where.device)
    return module, _processor_of(spec, module.config.model_type), build_s


def _processor_of(spec: ModelSpec, model_type: str) -> Any:
    """The processor of a checkpoint; a released Molmo 1 has the tokenizer only, the rest is ours."""
    if building.as_released(spec):
        released: Any = importlib.import_module("vlmbench.models.molmo.released")
        return released.read_released(Path(str(spec.path)))[1]
    return load_processor(str(spec.source), model_type=model_type, options=building.hub_options(spec))


def _elapsed_s(began: float, device: torch.device) -> float:
    """Time since ``began`` until the device has made or received all weights, s."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return round(time.monotonic() - began, 3)


def _provenance(spec: ModelSpec, module: Any, processor: Any, dtype: torch.dtype, seed: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": spec.name,
        "weights": spec.weights,
        **module_facts(module, processor, dtype),
        "quantization": spec.quantization,
    }
    if spec.weights == "random":
        facts["seed"] = seed
    else:
        facts["source"] = Path(spec.path).name if spec.path else spec.hub_id
        facts["revision"] = building.commit_of(spec)
    return facts


def weightless(spec: ModelSpec, *, dtype: str = "bfloat16") -> TransformersModel:
    """A model that prepares requests as the loaded one would, but has shapes for weights: made in seconds.

    Its ``module`` is what :class:`vlmbench.cost.flop_sharing.Counter` takes. It cannot generate.

    Args:
        spec: the model's YAML; with ``weights=pretrained``, the checkpoint's configuration and processor are read.

    Raises:
        ModelError: the architecture or its processor cannot be built here.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    import_plugin(spec)
    config, processor = _config_and_processor(spec)
    kind: torch.dtype = getattr(torch, dtype)
    auto: Any = AutoModelForImageTextToText
    ghost = build_ghost(lambda: auto.from_config(config, dtype=kind))
    model = TransformersModel.of(
        ghost, processor, anatomy=spec.anatomy, prompt=spec.processor, device=torch.device("cpu")
    )
    return replace(model, dtype=kind, provenance={"name": spec.name, "weights": "none", "dtype": dtype})


def _config_and_processor(spec: ModelSpec) -> tuple[Any, Any]:
    """From the YAML, or with ``weights=pretrained`` from the checkpoint, whose weights need not be there."""
    if spec.weights == "random":
        config = build_config(spec)
        size = config.get_text_config(decoder=True).vocab_size
        return config, build_processor(dict(spec.processor), model_type=config.model_type, vocab_size=size)
    try:
        config = building.read_config(spec)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"'{spec.source}' has no configuration that can be read ({first_line(error)}); "
            "give a folder with config.json and the processor's files, or use model.weights=random"
        ) from error
    return config, _processor_of(spec, config.model_type)

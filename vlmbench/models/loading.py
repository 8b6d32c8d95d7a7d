"""Pretrained or random weights to a :class:`TransformersModel`, on the device from the first byte.

Random parameters are made on the device itself: a 7B takes under a second on a GPU, where building on the CPU and
copying takes minutes. Memory is checked first, against the size of the same model on the ``meta`` device.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbench.errors import DeviceError, ModelError, SampleError, UnreachablePointError
from vlmbench.models import building
from vlmbench.models.building import choose_experts, count_parameters, experts_facts, hub_options, module_on_meta
from vlmbench.models.inputs import Prompter
from vlmbench.models.parallel import tensor_parallel
from vlmbench.models.placement import Placement, resolve_device, resolve_dtype
from vlmbench.models.processors import backend_of, build_processor, load_processor
from vlmbench.models.token_counts import ImageMarks
from vlmbench.models.transformers_library import transformers_library
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.models.weightless import build_ghost
from vlmbench.request import Output, Request, Sample

if TYPE_CHECKING:
    import torch

    from vlmbench.models.parallel.team import Team
    from vlmbench.models.spec import ModelSpec
    from vlmbench.models.transformers_model import TransformersModel


# A trial of a checkpoint's processor: one picture and a question, before anything is measured.

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


__all__ = ["TransformersModel", "build_config", "count_parameters", "load", "module_on_meta"]


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
    transformers = transformers_library()
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
        raise ModelError(f"the configuration of '{spec.name}' is refused: {_one_line(error)}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"the configuration of '{spec.name}' is refused: {_one_line(error)}") from error
    except Exception as error:
        if type(error).__name__.startswith("StrictDataclass"):  # huggingface_hub's checks of configuration classes
            raise ModelError(f"the configuration of '{spec.name}' is refused: {_one_line(error)}") from error
        raise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _plain(value: Any) -> Any:
    """Mappings and sequences as plain dicts and lists: transformers stores them in JSON."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def load(
    spec: ModelSpec,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
    experts_implementation: str | None = None,
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
        ConfigError: ``tp_plan`` without torchrun, torchrun without it, or with what it excludes.
    """
    options: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "experts_implementation": experts_implementation,
        "seed": seed,
        "device_map": device_map,
        "tp_plan": tp_plan,
        "cache_implementation": cache_implementation,
        "compile": compile,
    }
    team = tensor_parallel.team_for(tp_plan, device_map=device_map, device=device, compile=compile)
    here = partial(_load, spec, team, **options)
    return here() if team is None else team.load_together(spec, options, here)


def _load(
    spec: ModelSpec,
    team: Team | None,
    *,
    device: str,
    dtype: str,
    attn_implementation: str | None,
    experts_implementation: str | None,
    seed: int,
    device_map: str | None,
    tp_plan: str | None,
    cache_implementation: str | None,
    compile: bool,
) -> TransformersModel:
    """The model, or this process's share of it."""
    import_plugin(spec.plugin)
    target = resolve_device(device)
    if compile and target.type != "cuda":
        raise DeviceError(f"compile=true needs CUDA (got device {target}); transformers compiles nowhere else")
    number_type = resolve_dtype(dtype, target)
    processes = 1 if team is None else team.size
    where = Placement(device=target, dtype=number_type, device_map=device_map, tp_plan=tp_plan, processes=processes)
    if team is not None:
        tensor_parallel.connect(team, target)
    if spec.weights == "random":
        config = build_config(spec)
        processor = build_processor(
            {key: _plain(value) for key, value in spec.processor.items()},
            model_type=config.model_type,
            vocab_size=config.get_text_config(decoder=True).vocab_size,
        )
        began = time.monotonic()
        module = building.random_module(
            config, where, attn_implementation=attn_implementation, seed=seed, name=spec.name
        )
        build_s = _elapsed_s(began, target)
    else:
        began = time.monotonic()
        module = building.pretrained_module(spec, where, attn_implementation=attn_implementation)
        build_s = _elapsed_s(began, target)
        processor = load_processor(
            str(spec.source),
            model_type=module.config.model_type,
            options=building.hub_options(spec),
        )
    choose_experts(module, experts_implementation, name=spec.name)
    building.set_generation(module, processor.tokenizer, keep_ids=spec.weights == "pretrained")
    model = TransformersModel(
        module=module,
        device=building.input_device(module, target),
        dtype=number_type,
        processor=processor,
        prompter=_prompter(spec, processor),
        marks=_marks(spec, module, processor),
        override=spec.anatomy,
        provenance={**_provenance(spec, module, processor, number_type, seed), "build_s": build_s},
        cache_implementation=cache_implementation or ("static" if compile else None),
        compile=compile,
        team=team,
    )
    if spec.weights == "pretrained":
        try_processor(model, source=str(spec.source))
    return model


def _elapsed_s(began: float, device: torch.device) -> float:
    """Time since ``began`` until the device has made or received all weights, s."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return round(time.monotonic() - began, 3)


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
    facts: dict[str, Any] = {
        "name": spec.name,
        "weights": spec.weights,
        "model_type": module.config.model_type,
        "architecture": type(module).__name__,
        "dtype": str(dtype).removeprefix("torch."),
        "attention": getattr(module.config, "_attn_implementation", None),
        **experts_facts(module),
        "transformers_version": transformers_library().__version__,
        "processor": type(processor).__name__,
        "processor_backend": backend_of(processor),
        "quantization": spec.quantization,
        "processes": 1,  # more with tp_plan: the model's team says so
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
        dtype: of weights and inputs.

    Raises:
        ModelError: the architecture or its processor cannot be built here.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    import_plugin(spec.plugin)
    config, processor = _config_and_processor(spec)
    kind: torch.dtype = getattr(torch, dtype)
    auto: Any = AutoModelForImageTextToText
    token = spec.processor.get("vision_token")
    image_id = None if token is None else processor.tokenizer.convert_tokens_to_ids(token)
    return TransformersModel(
        module=build_ghost(lambda: auto.from_config(config, dtype=kind)),
        device=torch.device("cpu"),
        dtype=kind,
        processor=processor,
        prompter=Prompter.of(
            processor,
            prompt_format=spec.processor.get("prompt_format"),
            image_placeholder=spec.processor.get("image_placeholder"),
        ),
        marks=ImageMarks.from_config(config, image_token_id=image_id),
        override=spec.anatomy,
        provenance={"name": spec.name, "weights": "none", "dtype": dtype},
    )


def _config_and_processor(spec: ModelSpec) -> tuple[Any, Any]:
    """From the YAML, or with ``weights=pretrained`` from the checkpoint, whose weights need not be there."""
    from transformers import AutoConfig

    if spec.weights == "random":
        config = build_config(spec)
        size = config.get_text_config(decoder=True).vocab_size
        return config, build_processor(dict(spec.processor), model_type=config.model_type, vocab_size=size)
    options = hub_options(spec)
    try:
        config = AutoConfig.from_pretrained(str(spec.source), **options)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"'{spec.source}' has no configuration that can be read ({reason}); "
            "give a folder with config.json and the processor's files, or use model.weights=random"
        ) from error
    return config, load_processor(str(spec.source), model_type=config.model_type, options=options)

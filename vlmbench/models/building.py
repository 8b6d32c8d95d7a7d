"""The torch module of a model: random parameters made where they will live, or a checkpoint's."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbench.errors import DeviceError, ModelError, first_line
from vlmbench.machine.randomness import seeded
from vlmbench.models.attention import Attention, as_transformers_takes_it
from vlmbench.models.checkpoint import (
    ReleasedCheckpointError,
    check_folder,
    check_tensors,
    commit_of_folder,
    damaged_files,
    is_released_molmo,
    needs_converter,
    released_molmo_on_hub,
    uneven_stacks,
)
from vlmbench.models.parallel import tensor_parallel
from vlmbench.models.placement import Placement, check_memory
from vlmbench.models.transformers_library import hub_reachable, transformers_library, transformers_module

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vlmbench.models.spec import ModelSpec


def _from_config(config: Any, **options: Any) -> nn.Module:
    try:
        module: nn.Module = _auto_model().from_config(config, **options)
    except (ValueError, ImportError, TypeError) as error:
        if type(config) not in _auto_model()._model_mapping:
            raise ModelError(
                f"'{config.model_type}' is no image-text-to-text architecture of transformers "
                f"{transformers_library().__version__}"
            ) from error
        raise ModelError(f"architecture '{config.model_type}' cannot be built: {error}") from error
    return module


def _auto_model() -> Any:
    return transformers_library().AutoModelForImageTextToText


def module_on_meta(config: Any) -> nn.Module:
    """The model without memory: shapes only. For counting parameters and bytes; a 72B takes a second or two."""
    import torch

    with torch.device("meta"):
        return _from_config(config)


def count_parameters(module: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def random_module(config: Any, where: Placement, *, attn_implementation: Attention, seed: int, name: str) -> Any:
    """A model with seeded random parameters, made on the device itself.

    Raises:
        ModelError: the architecture cannot be built so.
        DeviceError: its parameters do not fit.
    """
    import torch

    _check_fits(config, where, name=name)
    options: dict[str, Any] = {
        "dtype": where.dtype,
        "attn_implementation": as_transformers_takes_it(attn_implementation),
    }
    try:
        with seeded(seed, [where.device]):
            if where.tp_plan is not None:
                return _split_random(config, where, options, name=name)
            if where.device_map is not None:
                _need_package("accelerate", f"device_map={where.device_map}")
                return _empty_checkpoint(config, {**options, "device_map": where.device_map})
            with torch.device(where.device):
                return _from_config(config, **options).eval()
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"'{name}' does not fit on {where.device}: {first_line(error)}") from error


def _check_fits(config: Any, where: Placement, *, name: str) -> None:
    """Refuse a model that does not fit, or that transformers cannot split where it has to."""
    module = module_on_meta(config)
    count = count_parameters(module)
    if where.tp_plan is None:
        check_memory(count, where.dtype, where.device, name=name, devices=where.devices)
        return
    if not getattr(module, "tp_plan", None):
        raise ModelError(
            f"'{name}': transformers has no tensor-parallel plan for {type(module).__name__}; "
            "use runtime.device_map=auto for several GPUs"
        )
    # Each process needs its share and all that is not split, which is known only once it is made.
    share = f"{name}, 1 of {where.processes} shares"
    check_memory(count // where.processes, where.dtype, where.device, name=share)


def _split_random(config: Any, where: Placement, options: dict[str, Any], *, name: str) -> Any:
    """This process's share of random parameters.

    Raises:
        ModelError: its layers cannot be split over so many processes.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="DTensor random operators")  # CPU: each process draws for itself
            module = _empty_checkpoint(config, {**options, **_split_options(where)})
    except (ValueError, RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise ModelError(f"'{name}' cannot be split over {where.processes} processes: {first_line(error)}") from error
    tensor_parallel.equalise(module)
    return module


def _split_options(where: Placement) -> dict[str, Any]:
    """What tells ``from_pretrained`` to split a model over the processes of the default group."""
    _need_package("accelerate", f"tp_plan={where.tp_plan}")
    distributed: Any = importlib.import_module("transformers.distributed")
    plan = distributed.DistributedConfig(tp_plan=where.tp_plan, tp_size=where.processes)
    return {"distributed_config": plan}


def _empty_checkpoint(config: Any, options: dict[str, Any]) -> Any:
    """Random parameters over several devices: an empty checkpoint, so that transformers places and draws each one."""
    model_class: Any = _auto_model()._model_mapping[type(config)]
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    return model_class.from_pretrained(None, config=config, state_dict={}, **options).eval()


def _need_package(package: str, wanted_for: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ModelError(f"{wanted_for} needs the package {package}, which is not installed (pip install {package})")


def _quantization_config(kind: str | None) -> Any:
    if kind is None:
        return None
    package, _, variant = kind.partition("_")
    _need_package(package, f"quantization={kind}")
    transformers = transformers_library()
    if package == "bitsandbytes":
        return transformers.BitsAndBytesConfig(load_in_4bit=variant == "4bit", load_in_8bit=variant == "8bit")
    torchao: Any = importlib.import_module("torchao.quantization")
    weight_only = torchao.Int8WeightOnlyConfig() if variant == "int8" else torchao.Int4WeightOnlyConfig()
    return transformers.TorchAoConfig(weight_only)


def pretrained_module(spec: ModelSpec, where: Placement, *, attn_implementation: Attention) -> Any:
    """A checkpoint from the hub or a local folder; safetensors only, every tensor accounted for.

    Raises:
        ModelError: no such checkpoint, no network, missing, surplus or wrongly shaped tensors, a missing package.
        DeviceError: it does not fit.
    """
    import torch

    if spec.path is not None:
        check_folder(Path(spec.path))
    if as_released(spec) and (spec.quantization is not None or where.tp_plan is not None):
        raise needs_converter(Path(str(spec.path)), "which is neither quantised nor split while it is loaded as it is")
    options: dict[str, Any] = {
        "dtype": where.dtype,
        "attn_implementation": as_transformers_takes_it(attn_implementation),
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # so that all wrongly shaped tensors are named; they are refused below
        "quantization_config": _quantization_config(spec.quantization),
        **hub_options(spec),
        **_placement_options(where),
    }
    if options["quantization_config"] is None:
        del options["quantization_config"]
    try:
        _check_memory(spec, where)
        module, info = _from_pretrained(spec, options)
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"'{spec.source}' does not fit on {where.device}: {first_line(error)}") from error
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(_why_not_loaded(spec, error)) from error
    except Exception as error:
        if type(error).__module__.startswith("safetensors") or type(error).__name__ == "SafetensorError":
            which = damaged_files(_folder(spec)) or first_line(error)
            raise ModelError(
                f"the weights of '{spec.source}' are damaged or cut off: {which}; get them again"
            ) from error
        raise
    check_tensors(str(spec.source), info, _folder(spec))
    if "device_map" not in options and where.tp_plan is None:
        try:
            module = module.to(where.device)
        except torch.OutOfMemoryError as error:
            raise DeviceError(f"'{spec.source}' does not fit on {where.device}: {first_line(error)}") from error
    return module.eval()


def as_released(spec: ModelSpec) -> bool:
    """Tell whether ``path`` is a folder of Molmo 1 as released, which has a layout of its own."""
    return spec.path is not None and is_released_molmo(Path(spec.path))


def read_config(spec: ModelSpec) -> Any:
    """Read the configuration of a checkpoint; that of a released Molmo 1 is translated."""
    if as_released(spec):
        released: Any = importlib.import_module("vlmbench.models.molmo.released")
        return released.read_released(Path(str(spec.path)))[0]
    return transformers_library().AutoConfig.from_pretrained(str(spec.source), **hub_options(spec))


def _from_pretrained(spec: ModelSpec, options: dict[str, Any]) -> Any:
    """(module, what was missing, surplus or wrongly shaped)."""
    if as_released(spec):
        released: Any = importlib.import_module("vlmbench.models.molmo.released")
        return released.load_released(Path(str(spec.path)), **options)
    return _auto_model().from_pretrained(str(spec.source), **options)


def _placement_options(where: Placement) -> dict[str, Any]:
    if where.tp_plan is not None:
        return _split_options(where)
    if where.device_map is not None:
        _need_package("accelerate", f"device_map={where.device_map}")
        return {"device_map": where.device_map}
    if where.device.type == "cpu" or importlib.util.find_spec("accelerate") is None:
        return {}  # read to the host, then moved: transformers places on a device only with accelerate
    return {"device_map": {"": where.device}}


def hub_options(spec: ModelSpec) -> dict[str, Any]:
    """Arguments of every ``from_pretrained`` that say where to look: no network for a folder, nor without one."""
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    if spec.path is None:
        options["revision"] = spec.revision or "main"
    if spec.path is not None or not hub_reachable():
        options["local_files_only"] = True
    return options


def _check_memory(spec: ModelSpec, where: Placement) -> None:
    """Refuse a checkpoint too large for the device before reading it (not when quantised, nor with code of its own)."""
    if spec.quantization is not None or spec.trust_remote_code:
        return
    _check_fits(read_config(spec), where, name=str(spec.source))


def _why_not_loaded(spec: ModelSpec, error: Exception) -> str:
    """Say why a checkpoint was refused: by the error's type and the checkpoint's files, never by the error's words."""
    if spec.path is None and isinstance(error, OSError) and not hub_reachable():
        return (
            f"'{spec.hub_id}' is not in the local cache and the hub cannot be reached: connect, set HF_HOME to a cache "
            f"that holds it, give model.path=DIR, or use model.weights=random"
        )
    if spec.path is None and isinstance(error, ReleasedCheckpointError):
        return released_molmo_on_hub(str(spec.hub_id))
    line = first_line(error)
    if isinstance(error, RuntimeError):  # of tensors that cannot be converted, the details are logged, not raised
        if uneven := uneven_stacks(_folder(spec)):
            line = f"its experts cannot be stacked: {uneven}"
        elif spec.quantization is not None:
            line = f"it cannot be quantised as {spec.quantization} on this device, take another kind ({line})"
    elif isinstance(error, ValueError) and (place := _own_code(spec)):
        line = f"transformers lacks its architecture and it brings Python of its own; read that ({place}), "
        line += "then model.trust_remote_code=true runs it"
    return f"'{spec.source}' cannot be loaded: {line}"


def _own_code(spec: ModelSpec) -> str | None:
    """Where the Python lies that a checkpoint brings because transformers lacks its architecture; None where not."""
    if spec.trust_remote_code:
        return None
    options = {name: value for name, value in hub_options(spec).items() if name != "trust_remote_code"}
    try:
        stored, _ = transformers_library().PretrainedConfig.get_config_dict(str(spec.source), **options)
    except (OSError, ValueError):
        return None
    known = transformers_module("models.auto.modeling_auto").MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if not stored.get("auto_map") or stored.get("model_type") in known:
        return None
    return f"https://hf.co/{spec.hub_id}" if spec.path is None else str(Path(spec.path).absolute())


def _folder(spec: ModelSpec) -> Path | None:
    """Where the files of a checkpoint lie, as far as they are on this machine."""
    if spec.path is not None:
        return Path(spec.path)
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        return Path(hub.snapshot_download(spec.hub_id, revision=spec.revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def commit_of(spec: ModelSpec) -> str | None:
    """The commit of the hub that a checkpoint's files are, which transformers 5.23 no longer tells.

    The hub's cache names its folder so; a folder that ``hf download --local-dir`` made holds a record.
    """
    folder = _folder(spec)
    return None if folder is None else commit_of_folder(folder, from_cache=spec.path is None)


_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def token_ids(tokenizer: Any, given: Any = None) -> dict[str, Any]:
    """Ids of the first, last and padding token: those that ``given`` settings name, else the tokenizer's."""
    ids = {}
    for name in _IDS:
        own = getattr(given, name, None)
        ids[name] = own if own is not None else getattr(tokenizer, name, None)
    eos = ids["eos_token_id"]
    if ids["pad_token_id"] is None and eos is not None:
        ids["pad_token_id"] = eos[0] if isinstance(eos, list) else eos
    return ids


def set_generation(module: Any, tokenizer: Any, *, keep_ids: bool) -> dict[str, Any]:
    """Give ``generate`` settings of our own: greedy search, and token ids.

    Nothing else of a checkpoint's generation settings stays: a static cache, a penalty on repetitions, a time limit or
    chunked prefill would each change what is measured, without a word.

    Args:
        module: whose ``generation_config`` is replaced.
        tokenizer: whose ids are taken where the settings have none.
        keep_ids: whether a checkpoint's own ids stay; random weights get the tokenizer's, not the defaults of a class.

    Returns:
        What the settings held besides ids, for the provenance.
    """
    given = module.generation_config
    ids = token_ids(tokenizer, given if keep_ids else None)
    if keep_ids and getattr(given, "decoder_start_token_id", None) is not None:
        ids["decoder_start_token_id"] = given.decoder_start_token_id
    found = {k: v for k, v in given.to_diff_dict().items() if k not in (*_IDS, "transformers_version")}
    module.generation_config = transformers_library().GenerationConfig(do_sample=False, num_beams=1, **ids)
    module.generation_config.max_length = None  # each request says how long its answer is
    return {name: value for name, value in found.items() if value is not None}


def input_device(module: Any, default: torch.device) -> torch.device:
    """Where inputs go: the device of the token embedding when the model is spread over several."""
    embeddings = module.get_input_embeddings() if hasattr(module, "get_input_embeddings") else None
    parameter = next(embeddings.parameters(), None) if embeddings is not None else None
    device: torch.device = parameter.device if parameter is not None and parameter.device.type != "meta" else default
    return device


# How the experts of a mixture run: in a loop, grouped, or batched. It decides the latency of every such model.


def choose_experts(module: Any, wanted: str | None, *, name: str) -> None:
    """Set the implementation of all experts; None leaves it to transformers.

    Args:
        wanted: ``eager`` (a loop over the experts), ``grouped_mm``, ``batched_mm``, ``deepgemm``, ``sonicmoe``.
        name: what the error calls the model.

    Raises:
        ModelError: it has no experts whose implementation can be chosen, or not this one.
    """
    if wanted is None:
        return
    if not list(_implementations(module)):
        raise ModelError(
            f"'{name}' has no experts whose implementation can be chosen; leave runtime.experts_implementation=null"
        )
    try:
        module.set_experts_implementation(wanted)
    except (ValueError, ImportError, RuntimeError) as error:
        raise ModelError(f"runtime.experts_implementation={wanted} for '{name}': {error}") from error
    if (found := sorted(set(_implementations(module)))) != [wanted]:
        raise ModelError(f"runtime.experts_implementation={wanted}: '{name}' keeps {', '.join(found)}; leave it null")


def experts_facts(module: Any) -> dict[str, str]:
    """What experts run with, in the prefill and in decode steps; empty for a model without such experts."""
    if not (prefill := sorted(set(_implementations(module)))):
        return {}
    # The context in which ``generate`` runs its decode steps; it changes implementations and puts them back.
    decoding: Any = getattr(module, "_optimize_model_for_decode", nullcontext)
    with decoding():
        decode = sorted(set(_implementations(module)))
    return {"experts_implementation": ", ".join(prefill), "experts_implementation_decode": ", ".join(decode)}


def expert_layers(module: Any) -> list[Any]:
    """The modules that hold each layer's experts; called with hidden states, the experts chosen, (tokens, k), weights.

    Transformers' decorator gives a module of experts a layout and its configuration.
    """
    return [
        part
        for part in module.modules()
        if hasattr(part, "is_transposed") and hasattr(getattr(part, "config", None), "_experts_implementation")
    ]


def _implementations(module: Any) -> Iterator[str]:
    """Of each layer's experts."""
    for part in expert_layers(module):
        yield str(part.config._experts_implementation)

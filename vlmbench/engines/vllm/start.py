"""Starts vLLM's engine in this process: which versions, which environment, which arguments."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmbench.errors import ConfigError, DeviceError, ModelError, first_line

TRIED = ("0.26", "0.32")
"""The versions whose calls are wrapped here as they were seen; what lies between was not tried."""

# Set before vLLM is imported, unless the user has set them.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: else nothing of it can be marked
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, where it runs on a CPU
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


@dataclass(frozen=True, kw_only=True)
class VllmSettings:
    """How vLLM runs; the keys of ``conf/runtime/vllm.yaml``.

    Args:
        enforce_eager: no compiling, no CUDA graphs.
        max_model_len: most tokens of a request, prompt and answer; None for the model's positions.
        same_weights: of random weights: those of ``runtime=eager`` at the same seed and device, written as safetensors
            first; otherwise vLLM makes its own dummy weights.
        encoder_stats: vLLM's own time of the encoder beside the marks; it waits for the device before and after.
        untried_version: run a version of vLLM outside :data:`TRIED`.
        engine_options: further arguments of vLLM's ``EngineArgs``.
        under_load: requests come at the same time: as many at once as a server takes; else 8, which need few graphs.
    """

    enforce_eager: bool = False
    max_model_len: int | None = 4096
    same_weights: bool = False
    encoder_stats: bool = False
    untried_version: bool = False
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    under_load: bool = False


def check_installed() -> None:
    """Refuse where vLLM is not installed, without importing it.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "runtime=vllm needs vLLM, which is not installed here\n"
            f"pip install 'vllm>={TRIED[0]},<{_next_minor(TRIED[1])}' into an environment of its own, or "
            "'make test-vllm' for its CPU build"
        )


def _next_minor(version: str) -> str:
    major, minor = version.split(".")
    return f"{major}.{int(minor) + 1}"


def check_version(version: str, *, allowed: bool) -> None:
    """Refuse a version that was not tried, unless that is allowed.

    Raises:
        ConfigError: with the versions that were.
    """
    try:
        number = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        number = (0, 0)
    low, high = (tuple(int(part) for part in one.split(".")) for one in TRIED)
    if not allowed and not low <= number <= high:
        raise ConfigError(
            f"runtime=vllm was tried with vLLM {TRIED[0]} to {TRIED[1]} (got {version})\n"
            "install one of those, or set runtime.untried_version=true and look at T_residual and the stages"
        )


def prepare_environment(*, offline: bool) -> None:
    """Set what vLLM reads when it is imported.

    Raises:
        ConfigError: it was imported before, by somebody who keeps its engine in a process of its own.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] not in ("0", "false", "False"):
        raise ConfigError(
            "runtime=vllm needs the engine in this process "
            f"(got VLLM_ENABLE_V1_MULTIPROCESSING={os.environ['VLLM_ENABLE_V1_MULTIPROCESSING']})\n"
            "unset VLLM_ENABLE_V1_MULTIPROCESSING"
        )


def start_engine(
    folder: str, *, architecture: str, device: str, dtype: str, load_format: str, seed: int, settings: VllmSettings
) -> Any:
    """Load a model's folder into an engine of this process.

    Args:
        folder: with configuration and processor, or a hub id.
        architecture: class of the model, as its configuration names it.
        device: ``cpu`` or ``cuda`` (vLLM takes the one that its build is for).
        load_format: ``dummy`` or ``auto``.

    Returns:
        vLLM's ``LLMEngine``.

    Raises:
        ConfigError: the version was not tried, or an argument is refused.
        ModelError: it has no class for the model, or cannot load it.
        DeviceError: its build is for another device, or memory does not suffice.
    """
    vllm: Any = importlib.import_module("vllm")
    check_version(vllm.__version__, allowed=settings.untried_version)
    platform: Any = importlib.import_module("vllm.platforms").current_platform
    if (platform.device_type or "none") != device:
        raise DeviceError(
            f"this build of vLLM runs on {platform.device_type or 'no device here'} (got runtime.device={device})\n"
            f"set runtime.device={platform.device_type or 'cpu'}, or install the build for {device}"
        )
    registry: Any = importlib.import_module("vllm.model_executor.models").ModelRegistry
    if architecture not in registry.get_supported_archs():
        raise ModelError(
            f"vLLM {vllm.__version__} has no model class '{architecture}' in its registry\n"
            "choose another model, or runtime=eager"
        )
    options = {
        "model": folder,
        "dtype": dtype,
        "load_format": load_format,
        "seed": seed,
        "enforce_eager": settings.enforce_eager,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": None if settings.under_load else 8,
        "enable_prefix_caching": False,
        "mm_processor_cache_gb": 0,
        "enable_mm_processor_stats": settings.encoder_stats,
        "disable_log_stats": False,  # as a server has it; RequestStateStats come with it
        "skip_mm_profiling": device == "cpu",  # the largest image possible takes minutes there
        "limit_mm_per_prompt": {"image": 8, "video": 0},
        **settings.engine_options,
    }
    arguments: Any = importlib.import_module("vllm.engine.arg_utils").EngineArgs
    if unknown := sorted(set(options) - set(arguments.__dataclass_fields__)):
        raise ConfigError(
            f"vLLM {vllm.__version__} has no engine argument {', '.join(unknown)} (runtime.engine_options)\n"
            "see 'vllm serve --help', with underscores for dashes"
        )
    engine_class: Any = importlib.import_module("vllm.v1.engine.llm_engine").LLMEngine
    # a server's defaults, such as the tokens of a step: those of the class behind it fit no deployment
    usage: Any = importlib.import_module("vllm.usage.usage_lib").UsageContext.OPENAI_API_SERVER
    try:
        engine = engine_class.from_engine_args(arguments(**options), usage_context=usage)
    except (ValueError, TypeError, NotImplementedError, KeyError) as error:
        raise ModelError(
            f"vLLM {vllm.__version__} refuses the model or its arguments: {first_line(error)}\n"
            "change runtime.max_model_len or runtime.engine_options, or choose another model"
        ) from error
    except RuntimeError as error:
        raise DeviceError(
            f"vLLM {vllm.__version__} cannot start: {first_line(error)}\n"
            "free memory on the device, or lower runtime.max_model_len or runtime.engine_options.gpu_memory_utilization"
        ) from error
    atexit.register(engine.engine_core.shutdown)
    if settings.encoder_stats and not hasattr(runner_of(engine), "get_encoder_timing_stats"):
        raise ConfigError(
            f"this model runner of vLLM {vllm.__version__} keeps no time of the encoder (got encoder_stats=true)\n"
            "set runtime.encoder_stats=false, or VLLM_USE_V2_MODEL_RUNNER=0 in the environment"
        )
    return engine


def engine_facts(engine: Any) -> dict[str, Any]:
    """What the engine chose, for the provenance: version, graphs, compiling, scheduling, attention, cache."""
    vllm: Any = importlib.import_module("vllm")
    config, runner = engine.vllm_config, runner_of(engine)
    compilation, scheduler, cache = config.compilation_config, config.scheduler_config, config.cache_config
    return {
        "version": vllm.__version__,
        "model_class": type(runner.get_model()).__name__,
        "runner": f"{type(runner).__module__}.{type(runner).__name__}",
        "compilation_mode": getattr(compilation.mode, "name", str(compilation.mode)),
        "cudagraph_mode": getattr(compilation.cudagraph_mode, "name", str(compilation.cudagraph_mode)),
        "cudagraph_mm_encoder": bool(getattr(compilation, "cudagraph_mm_encoder", False)),
        "compile_mm_encoder": bool(getattr(compilation, "compile_mm_encoder", False)),
        "async_scheduling": bool(scheduler.async_scheduling),
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_model_len": config.model_config.max_model_len,
        "attention_backends": _attention_backends(runner),
        "prefix_caching": bool(cache.enable_prefix_caching),
        "kv_cache_blocks": cache.num_gpu_blocks,
        "block_size": cache.block_size,
    }


def runner_of(engine: Any) -> Any:
    """The part of the engine that runs the model, in this process."""
    worker = engine.model_executor.driver_worker
    return getattr(worker, "worker", worker).model_runner


def _attention_backends(runner: Any) -> list[str]:
    """Names of the attention backends of the language model's layers."""
    groups = [group for one in getattr(runner, "attn_groups", None) or [] for group in one]
    return sorted({group.backend.get_name() for group in groups if hasattr(group, "backend")})

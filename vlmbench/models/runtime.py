"""How a model runs: device, number type, kernels, cache, split. Said once, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlmbench.models.attention import SDPA_BACKENDS

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
EXPERTS = ("eager", "grouped_mm", "batched_mm", "deepgemm", "sonicmoe")


_MOST_THREADS = 1024  # where torch cannot start as many, it crashes


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How a model is loaded and run; the keys of ``conf/runtime/*.yaml``.

    Args:
        device: ``auto`` (CUDA, else MPS, else CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto`` (bfloat16 on CUDA, float32 elsewhere), ``float32``, ``bfloat16`` or ``float16``.
        attn_implementation: ``eager``, ``sdpa``, ``flash_attention_2`` …, or one for each part of the configuration, as
            transformers takes it: ``{text_config: sdpa, vision_config: eager}``; None leaves it to transformers.
        sdpa_backends: kernels that torch may choose from for ``sdpa``: ``flash``, ``efficient``, ``math``, ``cudnn``;
            None leaves the choice to torch.
        experts_implementation: of a mixture of experts: ``eager``, ``grouped_mm``, ``batched_mm`` …; None leaves it to
            transformers.
        cache_implementation: ``static`` …; None for transformers' default, a dynamic cache.
        compile: let ``generate`` compile the decode step (CUDA; implies a static cache).
        device_map: ``auto`` spreads the model over all GPUs (needs accelerate).
        tp_plan: ``auto`` splits every layer over the processes of ``torchrun`` (needs accelerate).
        threads: of torch on the host; None leaves torch its choice, and the command line no more of them than
            there are free processors.
        strict_device: refuse a GPU that other processes use.
    """

    device: str = "auto"
    dtype: str = "auto"
    attn_implementation: str | Mapping[str, str] | None = None
    sdpa_backends: tuple[str, ...] | None = None
    experts_implementation: str | None = None
    cache_implementation: str | None = None
    compile: bool = False
    device_map: str | None = None
    tp_plan: str | None = None
    threads: int | None = None
    strict_device: bool = False

    def __post_init__(self) -> None:
        if self.device.partition(":")[0] not in DEVICES:
            raise ValueError(f"'runtime.device' must be one of {', '.join(DEVICES)} or cuda:N (got {self.device!r})")
        _one_of("dtype", self.dtype, DTYPES)
        _check_attention(self.attn_implementation)
        if self.sdpa_backends is not None:
            if not self.sdpa_backends:
                raise ValueError(
                    f"'runtime.sdpa_backends' must name one of {', '.join(SDPA_BACKENDS)} or be null (got [])"
                )
            for name in self.sdpa_backends:
                _one_of("sdpa_backends", name, SDPA_BACKENDS)
        if self.experts_implementation is not None:
            _one_of("experts_implementation", self.experts_implementation, EXPERTS)
        if self.tp_plan not in (None, "auto"):
            raise ValueError(f"'runtime.tp_plan' must be auto or null (got {self.tp_plan!r})")
        if self.tp_plan is not None and self.device_map is not None:
            raise ValueError(
                f"'runtime.tp_plan' must be null with 'runtime.device_map' (got {self.tp_plan} and {self.device_map})"
            )
        if self.threads is not None and not 1 <= self.threads <= _MOST_THREADS:
            raise ValueError(f"'runtime.threads' must be 1 to {_MOST_THREADS} (got {self.threads:,})")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"'runtime.{name}' must be one of {', '.join(allowed)} (got {value!r})")


def _check_attention(wanted: object) -> None:
    if wanted is None or isinstance(wanted, str):
        return
    if not isinstance(wanted, Mapping) or not all(isinstance(x, str) for pair in wanted.items() for x in pair):
        raise ValueError(
            "'runtime.attn_implementation' must be a name, null, or names by part of the configuration, "
            f"{{text_config: sdpa, vision_config: eager}} (got {wanted!r})"
        )

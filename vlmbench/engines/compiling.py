"""Compiling a decode step, or a prefill, before it is captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vlmbench.errors import DeviceError

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]

MODE = "max-autotune-no-cudagraphs"  # the graphs are ours: inductor's own are captured anew in every generate()
_MOST_GRAPHS = 512  # one a window or prompt, and batch size; dynamo's default of 8 is a guard against dynamic shapes


def compiler_for(wanted: bool, device: torch.device, *, name: str) -> Compiler | None:
    """``torch.compile`` for work of fixed shapes; None where it is not wanted.

    Args:
        wanted: whether to compile.

    Raises:
        DeviceError: wanted without CUDA.
    """
    if not wanted:
        return None
    if device.type != "cuda":
        raise DeviceError(f"'runtime.{name}' needs CUDA (got device {device}); set it to false")
    return lambda work: compiled(work, mode=MODE)


def compiled(work: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The work, compiled in one piece at its first call: a break of the graph is an error, and never slower work."""
    compile_one: Any = torch.compile
    inner = compile_one(work, fullgraph=True, dynamic=False, **options)
    dynamo: Any = torch._dynamo.config

    def call(*args: Any) -> Any:
        limits = dynamo.patch(recompile_limit=_MOST_GRAPHS, accumulated_recompile_limit=4 * _MOST_GRAPHS)
        with limits, _causal_without_masks(), _biases_apart():
            return inner(*args)

    return call


@contextmanager
def _causal_without_masks() -> Iterator[None]:
    """Let transformers leave a causal mask out where it does so uncompiled: kernels for causal attention take none.

    It makes one for whatever is traced, as an exported graph may meet longer caches; ours has one shape.
    """
    from transformers import masking_utils

    names = ("is_tracing", "is_torchdynamo_exporting")  # the second in later versions
    asked = {name: getattr(masking_utils, name) for name in names if hasattr(masking_utils, name)}
    for name in asked:
        setattr(masking_utils, name, _not_traced)
    try:
        yield
    finally:
        for name, function in asked.items():
            setattr(masking_utils, name, function)


def _not_traced(tensor: object = None) -> bool:  # noqa: ARG001  # transformers' signature
    return False


_LINEAR = torch.nn.functional.linear


@contextmanager
def _biases_apart() -> Iterator[None]:
    """Let a matrix times one vector be followed by the addition of its bias, which inductor does not do by itself.

    Only without a bias does it read the matrix at the memory's rate: 3584 x 3584 in bfloat16 take 21 us with one
    on an H200, three times what reading them takes (scripts/gpu/cudagraph.py decode --model molmo_7b_d --compile).
    """
    setattr(torch.nn.functional, "linear", _linear)  # noqa: B010  # mypy: as another function
    try:
        yield
    finally:
        torch.nn.functional.linear = _LINEAR


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    if bias is None or x.numel() != x.shape[-1]:
        return _LINEAR(x, weight, bias)
    return _LINEAR(x, weight) + bias

"""Compiling a decode step before it is captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vlmbench.errors import DeviceError

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]

MODE = "max-autotune-no-cudagraphs"  # the graphs are ours: inductor's own are captured anew in every generate()
_MOST_STEPS = 512  # one a window and batch size; dynamo's default of 8 is a guard against dynamic shapes


def compiler_for(wanted: bool, device: torch.device) -> Compiler | None:
    """``torch.compile`` for one step of fixed shapes; None where it is not wanted.

    Raises:
        DeviceError: wanted without CUDA.
    """
    if not wanted:
        return None
    if device.type != "cuda":
        raise DeviceError(f"'runtime.decode_compile' needs CUDA (got device {device}); set it to false")
    return lambda work: compiled(work, mode=MODE)


def compiled(work: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The work, compiled in one piece at its first call: a break of the graph is an error, not a slower step."""
    compile_one: Any = torch.compile
    inner = compile_one(work, fullgraph=True, dynamic=False, **options)
    dynamo: Any = torch._dynamo.config

    def call(*args: Any) -> Any:
        with dynamo.patch(recompile_limit=_MOST_STEPS, accumulated_recompile_limit=4 * _MOST_STEPS):
            return inner(*args)

    return call

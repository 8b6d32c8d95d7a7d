"""Variables of the environment that the libraries cannot take: two lines, no traceback, and no silence."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator

from vlmbench.errors import InputError, first_line

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_LEVELS = ("detail", "debug", "info", "warning", "error", "critical")  # of transformers, which keeps its own otherwise
_COUNTS = re.compile(r"\s*0*[1-9]\d*\s*(,\s*0*[1-9]\d*\s*)*")
_DEVICE = re.compile(r"\s*(-?\d+|(GPU|MIG)-[\w/-]+|NoDevFiles|none|void|)\s*", re.IGNORECASE)
_THEIRS = re.compile(
    r"(?!.*(TOKEN|KEY|SECRET))((PY)?TORCH\w*|TRITON|CUDA|NCCL|OMP|MKL|HF|TRANSFORMERS|ACCELERATE|VLLM)_"
)


def wrong() -> Iterator[InputError]:
    """What the libraries would pass over: numbers of threads, GPUs and levels that are none."""
    for name in _THREADS:
        given = os.environ.get(name, "")
        if given.strip() and not _COUNTS.fullmatch(given):
            yield InputError(
                f"the environment has {name}={given}, which is no number of threads\ngive a number, or unset it"
            )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not all(_DEVICE.fullmatch(one) for one in visible.split(",")):
        yield InputError(
            f"the environment has CUDA_VISIBLE_DEVICES={visible}, which names no GPU: CUDA would hide them all\n"
            "give numbers (0,1) or UUIDs (GPU-…), nothing at all to hide every GPU, or unset it"
        )
    level = os.environ.get("TRANSFORMERS_VERBOSITY", "")
    if level and level not in _LEVELS:
        yield InputError(
            f"the environment has TRANSFORMERS_VERBOSITY={level}, which transformers passes over\n"
            f"give one of {', '.join(_LEVELS)}, or unset it"
        )


def refused(error: BaseException) -> InputError | None:
    """Say which variable a library refused while it was imported, or set up its memory; None for other errors."""
    importing = any(frame.name == "<module>" for frame in traceback.extract_tb(error.__traceback__))
    words = str(error)
    for name, value in sorted(os.environ.items()):
        if not value or not _THEIRS.match(name) or not (importing or name.endswith("ALLOC_CONF")):
            continue
        if name in words or repr(value) in words or f": {value}," in words:
            return InputError(
                f"the environment has {name}={value}, which a library refuses: {first_line(error)}\n"
                "give a value that it takes, or unset the variable"
            )
    return None

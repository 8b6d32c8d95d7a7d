"""Which attention runs: the implementation of each tower, and the kernels that torch may choose from.

Torch picks a kernel for every call of scaled-dot-product attention. Which ones it may pick decides latencies: cuDNN's
attention builds a plan for every new key length, which costs two further decode steps' worth of time on Hopper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmbench.models.protocol import Anatomy

Attention = str | Mapping[str, str] | None
"""An implementation for the whole model, or one for each part of its configuration."""
SDPA_BACKENDS = ("flash", "efficient", "math", "cudnn")
_SWITCH: Mapping[str, tuple[str, str]] = {  # in torch.backends.cuda; the CPU's kernels obey flash and math, too
    "flash": ("enable_flash_sdp", "flash_sdp_enabled"),
    "efficient": ("enable_mem_efficient_sdp", "mem_efficient_sdp_enabled"),
    "math": ("enable_math_sdp", "math_sdp_enabled"),
    "cudnn": ("enable_cudnn_sdp", "cudnn_sdp_enabled"),
}
_before: dict[str, bool] = {}  # what was allowed before :func:`allow_backends` changed it


def allow_backends(names: Sequence[str] | None) -> None:
    """Allow torch these kernels of scaled-dot-product attention, and no others; for the whole process.

    Args:
        names: of :data:`SDPA_BACKENDS`; None leaves the choice to torch, and takes back what was set here before.
    """
    if names is None:
        _switch(_before)
        _before.clear()
        return
    if not _before:
        _before.update(_allowed())
    _switch({name: name in names for name in SDPA_BACKENDS})


def allowed_backends() -> str:
    """The kernels that torch may choose from: ``flash, efficient, math, cudnn``."""
    return ", ".join(name for name, on in _allowed().items() if on)


def _allowed() -> dict[str, bool]:
    import torch

    switches: Any = torch.backends.cuda
    return {name: bool(getattr(switches, asked)()) for name, (_, asked) in _SWITCH.items()}


def _switch(states: Mapping[str, bool]) -> None:
    import torch

    for name, on in states.items():
        getattr(torch.backends.cuda, _SWITCH[name][0])(on)


def as_transformers_takes_it(wanted: Attention) -> str | dict[str, str] | None:
    """An attention implementation as an argument of transformers, which asks for a plain ``dict``."""
    return dict(wanted) if isinstance(wanted, Mapping) else wanted


def attention_by_tower(module: Any, anatomy: Anatomy) -> dict[str, str]:
    """The attention implementation of each tower, from the configuration its own modules read.

    Returns:
        ``vision_encoder`` and ``language_model`` to ``sdpa``, ``eager`` … (several joined by `` + ``); a tower that
        names none is left out.
    """
    towers = {"vision_encoder": anatomy.vision_encoder, "language_model": anatomy.language_model}
    found = {}
    for tower, paths in towers.items():
        names = {
            str(name)
            for path in paths
            for part in module.get_submodule(path).modules()
            if (name := getattr(getattr(part, "config", None), "_attn_implementation", None)) is not None
        }
        if names:
            found[tower] = " + ".join(sorted(names))
    return found

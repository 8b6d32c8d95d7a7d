"""Where a model goes: device, dtype, and whether its parameters fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmbench.errors import DeviceError, ModelError

if TYPE_CHECKING:
    import torch

_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where parameters go, and in what dtype.

    Args:
        device: one device; the kind of device with a device map.
        dtype: of parameters and of floating inputs.
        device_map: ``auto`` spreads over several devices.
        tp_plan: ``auto`` splits over the processes of torchrun.
        processes: how many of them there are.
    """

    device: torch.device
    dtype: torch.dtype
    device_map: str | None = None
    tp_plan: str | None = None
    processes: int = 1

    @property
    def devices(self) -> int:
        """How many devices share the model."""
        import torch

        return torch.cuda.device_count() if self.device_map is not None and self.device.type == "cuda" else 1


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
        index = device.index if device.index is not None else torch.cuda.current_device() if count else 0
        if index >= count:
            raise DeviceError(
                f"device '{name}' is not here: {count} CUDA device(s) visible; "
                "use runtime.device=cpu or runtime.device=auto"
            )
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' is not here; use runtime.device=cpu")
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
        device: where; with ``devices`` of its kind.
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

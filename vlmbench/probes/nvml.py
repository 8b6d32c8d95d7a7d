"""The NVIDIA GPUs of a model through NVML (nvidia-ml-py), opened once a process.

NVML counts GPUs by itself, whatever ``CUDA_VISIBLE_DEVICES`` says, so they are found by their UUIDs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from vlmbench.errors import DeviceError

if TYPE_CHECKING:
    import torch

    from vlmbench.models.protocol import VisionLanguageModel


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU.

    Args:
        nvml: the binding, initialised.
        handle: NVML's handle of the GPU.
        name: as NVML writes it.
    """

    nvml: Any
    handle: Any
    name: str

    def ask(self, call: str, *arguments: Any) -> Any:
        """The answer of an NVML function to this GPU; None where GPU, driver or binding do not know the quantity."""
        function: Callable[..., Any] | None = getattr(self.nvml, call, None)
        if function is None:
            return None
        try:
            return function(self.handle, *arguments)
        except self.nvml.NVMLError:
            return None


def open_gpus(devices: Sequence[torch.device]) -> list[Gpu]:
    """The CUDA devices among ``devices``; none on a CPU.

    Raises:
        DeviceError: there are CUDA devices, but NVML is missing or does not know them.
    """
    return [_open(index) for index in _indices(devices)]


def gpus_of(model: VisionLanguageModel) -> list[Gpu]:
    """All GPUs that hold a part of a model: those of this process, and those of the others that share it.

    Raises:
        DeviceError: NVML is missing, or does not know one of them; that of a process on another host, say.
    """
    return [*open_gpus(model.devices), *(_by_uuid(uuid) for uuid in model.facts.get("other_gpus") or ())]


def _indices(devices: Sequence[torch.device]) -> list[int]:
    import torch

    cuda = [device for device in devices if device.type == "cuda"]
    return list(dict.fromkeys(torch.cuda.current_device() if d.index is None else d.index for d in cuda))


def _open(index: int) -> Gpu:
    import torch

    uuid = f"GPU-{getattr(torch.cuda.get_device_properties(index), 'uuid', '')}".replace("GPU-GPU-", "GPU-")
    return _by_uuid(uuid)


@cache
def _by_uuid(uuid: str) -> Gpu:
    nvml = _binding()
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError as error:
        raise DeviceError(f"NVML of this host does not know the GPU {uuid}: {error}") from error
    gpu = Gpu(nvml=nvml, handle=handle, name=uuid)
    name = gpu.ask("nvmlDeviceGetName")
    return Gpu(nvml=nvml, handle=handle, name=name.decode() if isinstance(name, bytes) else str(name))


@cache
def _binding() -> Any:
    """The initialised binding; it stays open until the process ends."""
    try:
        import pynvml
    except ImportError as error:
        raise DeviceError("nvidia-ml-py is not installed: pip install 'vlmbench-latency[gpu]'") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise DeviceError(f"NVML cannot be opened: {error}") from error
    return pynvml

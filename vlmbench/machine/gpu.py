"""Facts and state of an NVIDIA GPU, from NVML where its Python binding is installed, else from torch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbench.errors import DeviceError

if TYPE_CHECKING:
    import torch


_NO_NVML = "install nvidia-ml-py (pip install vlmbench-latency[gpu]) for clocks, temperature, power and throttling"
# Bits of NVML's clock event reasons (nvml.h, nvmlClocksEventReason*).
_REASONS = {
    0x1: "gpu_idle",
    0x2: "application_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
    0x100: "display_clock_setting",
}


def gpu_facts(device: str) -> dict[str, Any]:
    """``name, uuid, index, memory_bytes, capability, driver, cuda, power_limit_w, visible_gpus`` of a CUDA device."""
    import torch

    index = _index(device)
    properties = torch.cuda.get_device_properties(index)
    facts: dict[str, Any] = {
        "name": properties.name,
        "uuid": gpu_uuid(device),
        "index": index,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "driver": _driver_from_proc(),
        "power_limit_w": None,
        "visible_gpus": torch.cuda.device_count(),
    }
    with _nvml(device) as (nvml, handle):
        if nvml is None:
            facts["note"] = _NO_NVML
            return facts
        facts["driver"] = _text(_ask(nvml, nvml.nvmlSystemGetDriverVersion)) or facts["driver"]
        facts["power_limit_w"] = _scaled(_ask(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, handle), 1e-3)
        facts["max_sm_clock_mhz"] = _ask(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM)
        facts["persistence_mode"] = _ask(nvml, nvml.nvmlDeviceGetPersistenceMode, handle)
        facts["ecc"] = _first(_ask(nvml, nvml.nvmlDeviceGetEccMode, handle))
    return facts


def gpu_state(device: str) -> dict[str, Any]:
    """``sm_clock_mhz, memory_clock_mhz, temperature_c, power_w, throttle_reasons, other_processes, memory_used_bytes``.

    ``other_processes`` counts compute processes on the GPU that are not this one.
    """
    with _nvml(device) as (nvml, handle):
        if nvml is None:
            return {"note": _NO_NVML}
        reasons = _reasons(nvml, handle)
        processes = _ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
        return {
            "sm_clock_mhz": _ask(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": _ask(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": _ask(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            "power_w": _scaled(_ask(nvml, nvml.nvmlDeviceGetPowerUsage, handle), 1e-3),
            "throttle_reasons": reasons,
            "other_processes": None if processes is None else _others([int(p.pid) for p in processes]),
            "memory_used_bytes": None if memory is None else int(memory.used),
        }


def busy_with(device: str) -> str | None:
    """In words, who else uses a CUDA device; None when nobody does, or when NVML is not there to tell.

    Latencies of a shared GPU are somebody else's, too: ask before measuring.
    """
    state = gpu_state(device)
    others = state.get("other_processes")
    if not others:
        return None
    used = state.get("memory_used_bytes")
    memory = f", {used / 2**30:.1f} GiB in use altogether" if used else ""
    return f"{others} other process{'es' if others > 1 else ''} on GPU {gpu_uuid(device) or device}{memory}"


def _others(pids: list[int]) -> int:
    """How many of NVML's processes are not this one; a container may show it under a pid of the host."""
    if os.getpid() in pids:
        return len(pids) - 1
    torch = sys.modules.get("torch")
    mine = 1 if pids and torch is not None and torch.cuda.is_initialized() else 0
    return len(pids) - mine


def gpu_uuid(device: str) -> str | None:
    """The GPU's UUID (``GPU-…``) as NVML and Slurm write it, whatever CUDA_VISIBLE_DEVICES calls it."""
    import torch

    uuid = getattr(torch.cuda.get_device_properties(_index(device)), "uuid", None)
    return None if uuid is None else f"GPU-{uuid}".replace("GPU-GPU-", "GPU-")


def _index(device: str) -> int:
    import torch

    number = device.partition(":")[2]
    return int(number) if number else torch.cuda.current_device()


@contextmanager
def _nvml(device: str) -> Iterator[tuple[Any, Any]]:
    """NVML and the handle of the device; (None, None) where NVML is not to be had."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # the binding is missing, or the library, or the driver: all mean the same here
        yield None, None
        return
    try:
        handle = None
        uuid = gpu_uuid(device)
        if uuid is not None:
            handle = _ask(pynvml, pynvml.nvmlDeviceGetHandleByUUID, uuid)
        if handle is None and not os.environ.get("CUDA_VISIBLE_DEVICES"):
            handle = _ask(pynvml, pynvml.nvmlDeviceGetHandleByIndex, _index(device))
        yield (None, None) if handle is None else (pynvml, handle)
    finally:
        with suppress(Exception):
            pynvml.nvmlShutdown()


def _ask(nvml: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where this GPU does not know the quantity."""
    try:
        return call(*arguments)
    except nvml.NVMLError:
        return None


def _reasons(nvml: Any, handle: Any) -> list[str] | None:
    call = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    call = call or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
    mask = _ask(nvml, call, handle)
    if mask is None:
        return None
    known = [name for bit, name in _REASONS.items() if mask & bit]
    rest = mask & ~sum(_REASONS)
    return [*known, f"unknown_{rest:#x}"] if rest else known


def _scaled(value: Any, factor: float) -> float | None:
    return None if value is None else float(value) * factor


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else value


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _driver_from_proc() -> str | None:
    with suppress(OSError):
        found = re.search(r"Module\s+([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
        return found.group(1) if found else None
    return None


# The NVIDIA GPUs of a model through NVML (nvidia-ml-py), opened once a process.


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


def gpus_of(devices: Sequence[torch.device], others: Sequence[str] = ()) -> list[Gpu]:
    """All GPUs that hold a part of a model.

    Args:
        devices: of this process that hold parameters.
        others: UUIDs of GPUs of other processes that share the model (``other_gpus`` of its facts).

    Raises:
        DeviceError: NVML is missing, or does not know one of them; that of a process on another host, say.
    """
    return [*open_gpus(devices), *map(_by_uuid, others)]


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

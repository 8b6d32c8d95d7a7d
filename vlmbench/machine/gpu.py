"""NVIDIA GPUs: facts, clocks, throttling, load and energy, from NVML where it is there, else what torch knows.

A :class:`Gpu` answers through NVML, which is opened once a process and stays open. Where NVML is missing (no binding,
no driver) a :class:`NoGpu` stands in its place: it answers every question with "unknown" and says what to install.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from vlmbench.errors import DeviceError

if TYPE_CHECKING:
    import torch


_NO_NVML = "install nvidia-ml-py (pip install vlmbench-latency[gpu]) for clocks, temperature, power and throttling"
# Bits of NVML's clock event reasons (nvml.h, nvmlClocksEventReason*).
_REASONS: Mapping[int, str] = {
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
SLOWING = frozenset(_REASONS.values()) - {"gpu_idle", "application_clocks_setting", "display_clock_setting"}
"""Reasons that hold a GPU back; idleness and chosen clocks do not."""


@dataclass(frozen=True, kw_only=True)
class GpuClocks:
    """One reading of a GPU's clocks; None is what the GPU or its driver does not tell.

    Args:
        sm_clock_mhz, memory_clock_mhz, temperature_c: now.
        reasons: names of what sets the clock now, in the order of NVML's bits.
        power_ns, thermal_ns: time spent held back by the power limit and by heat, since the driver was loaded.
    """

    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    reasons: tuple[str, ...] | None = None
    power_ns: int | None = None
    thermal_ns: int | None = None


_LEAST_SAMPLES = 20  # fewer say nothing of an integral
_MOST_LEFT_OUT = 0.1  # share of the time; what happened in it nobody saw
_HOLE = 5.0  # times the usual distance of samples


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, asked through NVML.

    Args:
        nvml: the binding, initialised.
        handle: NVML's handle of the GPU.
        name: as NVML writes it.
    """

    nvml: Any
    handle: Any
    name: str

    def ask(self, call: str, *arguments: Any) -> Any:
        """Call an NVML function for this GPU; None where GPU, driver or binding do not know the quantity."""
        return self._call(call, self.handle, *arguments)

    def _call(self, call: str, *arguments: Any) -> Any:
        function: Callable[..., Any] | None = getattr(self.nvml, call, None)
        if function is None:
            return None
        try:
            return function(*arguments)
        except self.nvml.NVMLError:
            return None

    def facts(self) -> dict[str, Any]:
        """Read what stays: ``driver, power_limit_w, max_sm_clock_mhz, persistence_mode, ecc``."""
        return {
            "driver": _text(self._call("nvmlSystemGetDriverVersion")) or _driver_from_proc(),
            "power_limit_w": _scaled(self.ask("nvmlDeviceGetEnforcedPowerLimit"), 1e-3),
            "max_sm_clock_mhz": self.ask("nvmlDeviceGetMaxClockInfo", self.nvml.NVML_CLOCK_SM),
            "persistence_mode": self.ask("nvmlDeviceGetPersistenceMode"),
            "ecc": _first(self.ask("nvmlDeviceGetEccMode")),
        }

    def clocks(self) -> GpuClocks:
        """Read clocks, temperature and throttling: six calls, a fraction of a millisecond."""
        return GpuClocks(
            sm_clock_mhz=self.ask("nvmlDeviceGetClockInfo", self.nvml.NVML_CLOCK_SM),
            memory_clock_mhz=self.ask("nvmlDeviceGetClockInfo", self.nvml.NVML_CLOCK_MEM),
            temperature_c=self.ask("nvmlDeviceGetTemperature", self.nvml.NVML_TEMPERATURE_GPU),
            reasons=self.reasons(),
            power_ns=self._held_back_ns(self.nvml.NVML_PERF_POLICY_POWER),
            thermal_ns=self._held_back_ns(self.nvml.NVML_PERF_POLICY_THERMAL),
        )

    def reasons(self) -> tuple[str, ...] | None:
        """Name what sets the clock now; a bit without a name is ``unknown_0x…``."""
        mask = self.ask("nvmlDeviceGetCurrentClocksEventReasons")
        if mask is None:  # drivers before 535 know it by its older name
            mask = self.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        if mask is None:
            return None
        known = tuple(name for bit, name in _REASONS.items() if mask & bit)
        rest = mask & ~sum(_REASONS)
        return (*known, f"unknown_{rest:#x}") if rest else known

    def sampled_energy_j(self, seconds: float) -> float | None:
        """Integrate the power that the driver sampled in the last so many seconds, J.

        None without samples, nan where they leave out more than a tenth of the time that they span.
        """
        kind = getattr(self.nvml, "NVML_TOTAL_POWER_SAMPLES", None)
        if kind is None:
            return None
        began_us = int((time.time() - seconds) * 1e6)
        found = self.ask("nvmlDeviceGetSamples", kind, began_us)
        samples = [] if found is None else [(s.timeStamp, s.sampleValue.uiVal) for s in found[1] if s.timeStamp]
        if len(samples) < _LEAST_SAMPLES:
            return None
        (first, _), (last, _) = samples[0], samples[-1]
        if _left_out([when for when, _ in samples]) > _MOST_LEFT_OUT:
            return math.nan
        area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(samples))  # µs × mW
        return area * 1e-9 / ((last - first) * 1e-6) * seconds if last > first else None

    def _held_back_ns(self, policy: int) -> int | None:
        found = self.ask("nvmlDeviceGetViolationStatus", policy)
        return None if found is None else int(found.violationTime)

    def state(self) -> dict[str, Any]:
        """Read clocks, temperature, power and load, as provenance holds them before and after a session."""
        clocks = self.clocks()
        processes = self.ask("nvmlDeviceGetComputeRunningProcesses")
        memory = self.ask("nvmlDeviceGetMemoryInfo")
        return {
            "sm_clock_mhz": clocks.sm_clock_mhz,
            "memory_clock_mhz": clocks.memory_clock_mhz,
            "temperature_c": clocks.temperature_c,
            "power_w": _scaled(self.ask("nvmlDeviceGetPowerUsage"), 1e-3),
            "throttle_reasons": None if clocks.reasons is None else list(clocks.reasons),
            "other_processes": None if processes is None else _others([int(p.pid) for p in processes]),
            "memory_used_bytes": None if memory is None else int(memory.used),
        }

    def energy_j(self) -> float | None:
        """Read the total-energy counter, J since the driver was loaded; None before Volta."""
        return _scaled(self.ask("nvmlDeviceGetTotalEnergyConsumption"), 1e-3)


def _left_out(times: Sequence[int]) -> float:
    """Share of the time from the first to the last sample that lies in holes between samples."""
    distances = [b - a for a, b in pairwise(times)]
    usual = median(distances)
    return sum(one for one in distances if one > _HOLE * usual) / max(times[-1] - times[0], 1)


@dataclass(frozen=True, kw_only=True)
class NoGpu:
    """Stands for a GPU that NVML cannot be asked about.

    Args:
        why: what is missing, and what to do.
    """

    why: str = _NO_NVML

    def facts(self) -> dict[str, Any]:
        """Say why there are no facts; the driver's version is known without NVML."""
        return {"driver": _driver_from_proc(), "power_limit_w": None, "note": self.why}

    def state(self) -> dict[str, Any]:
        """Say why there is no state."""
        return {"note": self.why}


def find_gpu(device: str) -> Gpu | NoGpu:
    """Find a CUDA device (``cuda``, ``cuda:1``) in NVML, also behind ``CUDA_VISIBLE_DEVICES``."""
    try:
        nvml = _binding()
    except DeviceError:
        return NoGpu()
    if (uuid := gpu_uuid(device)) is not None:
        with suppress(DeviceError):
            return _by_uuid(uuid)
    if os.environ.get("CUDA_VISIBLE_DEVICES"):  # NVML counts all GPUs, torch those that are visible
        return NoGpu()
    try:
        return Gpu(nvml=nvml, handle=nvml.nvmlDeviceGetHandleByIndex(_index(device)), name=device)
    except nvml.NVMLError:
        return NoGpu()


def gpu_facts(device: str) -> dict[str, Any]:
    """Read ``name, uuid, index, memory_bytes, capability, driver, cuda, power_limit_w …`` of a CUDA device."""
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
        "driver": None,
        "power_limit_w": None,
        "visible_gpus": torch.cuda.device_count(),
    }
    return facts | find_gpu(device).facts()


def gpu_state(device: str) -> dict[str, Any]:
    """Read :meth:`Gpu.state` of a CUDA device; ``note`` where NVML is not there to tell.

    ``other_processes`` counts compute processes on the GPU that are not this one.
    """
    return find_gpu(device).state()


def busy_with(device: str, known: int = 0) -> str | None:
    """Say who else uses a CUDA device; None when nobody does, or when NVML is not there to tell.

    Latencies of a shared GPU are somebody else's, too: ask before measuring.

    Args:
        known: so many other processes may use it.
    """
    state = gpu_state(device)
    others = (state.get("other_processes") or 0) - known
    if others <= 0:
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
    """Read the GPU's UUID (``GPU-…``) as NVML and Slurm write it, whatever CUDA_VISIBLE_DEVICES calls it."""
    import torch

    uuid = getattr(torch.cuda.get_device_properties(_index(device)), "uuid", None)
    return None if uuid is None else f"GPU-{uuid}".replace("GPU-GPU-", "GPU-")


def _index(device: str) -> int:
    import torch

    number = device.partition(":")[2]
    return int(number) if number else torch.cuda.current_device()


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


# The GPUs of a model, opened once a process.


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
    return _by_uuid(gpu_uuid(f"cuda:{index}") or f"cuda:{index}")


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

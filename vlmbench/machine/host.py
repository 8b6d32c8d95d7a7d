"""The machine and the software a run was measured on. No host name, no user, no environment beyond a short list."""

from __future__ import annotations

import os
import platform
import re
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from vlmbench.machine.gpu import gpu_facts, gpu_state
from vlmbench.machine.wall_clock import unix_s

_PACKAGES = (
    "vlmbench-latency", "torch", "torchvision", "triton", "transformers", "tokenizers", "safetensors", "accelerate",
    "flash-attn", "numpy", "scipy", "pandas", "pillow", "datasets", "hydra-core", "omegaconf", "submitit",
    "hydra-submitit-launcher", "nvidia-ml-py", "seaborn", "matplotlib",
)  # fmt: skip
# Ids and places of a job; nothing else of the environment is stored, for it may hold tokens.
_SLURM = {
    "job_id": "SLURM_JOB_ID", "array_job_id": "SLURM_ARRAY_JOB_ID", "array_task_id": "SLURM_ARRAY_TASK_ID",
    "restart_count": "SLURM_RESTART_COUNT", "partition": "SLURM_JOB_PARTITION", "process": "SLURM_PROCID",
}  # fmt: skip
_SETTINGS = (
    "CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "TOKENIZERS_PARALLELISM", "PYTHONHASHSEED",
)  # fmt: skip
_PLAIN = re.compile(r"[\w.,:+=/-]{1,128}")


def host_hash() -> str:
    """Tells hosts apart without naming them."""
    return sha256(socket.gethostname().encode()).hexdigest()[:12]


def started_by_torchrun() -> bool:
    """Whether this is one of several processes that torchrun started. Reads the environment only."""
    size = os.environ.get("WORLD_SIZE", "")
    return "RANK" in os.environ and size != "" and not (size.isdecimal() and int(size) < 2)


def software() -> dict[str, Any]:
    """Python, operating system, package versions (absent ones left out), settings that change speed."""
    versions = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "os": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "packages": versions,
        "cudnn": _cudnn(),
        "settings": {name: os.environ[name] for name in _SETTINGS if _PLAIN.fullmatch(os.environ.get(name, ""))},
    }


def slurm_ids() -> dict[str, str]:
    """Ids of the Slurm job this process belongs to; empty outside Slurm."""
    found = {key: os.environ.get(name, "") for key, name in _SLURM.items()}
    return {key: value for key, value in found.items() if _PLAIN.fullmatch(value)}


def host_facts() -> dict[str, Any]:
    """CPU model, cores that this process may use, memory in bytes."""
    return {
        "host": host_hash(),
        "cpu": _cpu_model(),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_bytes": psutil.virtual_memory().total,
        "machine": platform.machine(),
    }


def device_facts(device: str) -> dict[str, Any]:
    """What a device is: ``type`` and ``name`` always, and for a CUDA device what :func:`gpu_facts` gives.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    """
    kind = device.partition(":")[0]
    if kind == "cuda":
        return {"type": kind, **gpu_facts(device)}
    return {"type": kind, "name": _cpu_model(), "threads": _torch_threads() if kind == "cpu" else None}


def device_state(device: str) -> dict[str, Any]:
    """A snapshot, to be taken before and after: clocks, temperature, power, throttle reasons, load.

    A quantity that cannot be read here is None or absent; ``note`` says what is missing to read it.
    """
    state: dict[str, Any] = {"unix_s": unix_s(), "load_1m": None, "cpu_mhz": None}
    with suppress(OSError, AttributeError):
        state["load_1m"] = os.getloadavg()[0]
    with suppress(OSError, NotImplementedError, AttributeError):
        frequency = psutil.cpu_freq()
        state["cpu_mhz"] = frequency.current if frequency else None
    if device.partition(":")[0] == "cuda":
        state.update(gpu_state(device))
    return state


@dataclass(frozen=True, kw_only=True)
class OomKills:
    """How many processes of a control group the kernel has killed for memory.

    Args:
        group: tells groups of all hosts and boots apart; counts of different groups are not comparable.
        count: ``oom_kill`` of its ``memory.events`` (version 2) or ``memory.oom_control`` (version 1).
    """

    group: str
    count: int


def oom_kills() -> OomKills | None:
    """Kills for memory so far in this process's control group (version 2 or 1); None where the system does not tell."""
    with suppress(OSError, ValueError):
        groups, root = Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup")
        for pattern, mount, name in (
            (r"^0::/(.*)$", root, "memory.events"),
            (r"^\d+:(?:[^:]*,)?memory(?:,[^:]*)?:/(.*)$", root / "memory", "memory.oom_control"),
        ):
            for own in re.findall(pattern, groups, re.MULTILINE):
                for folder in (mount / own, mount):  # in a container its own group may be mounted as the root
                    if (file := folder / name).is_file():
                        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
                        return OomKills(group=f"{boot}/{folder.stat().st_ino}", count=_count_of_kills(file.read_text()))
    return None


def _count_of_kills(events: str) -> int:
    """The number behind ``oom_kill`` (ValueError where there is none)."""
    found = re.search(r"^oom_kill (\d+)$", events, re.MULTILINE)
    if found is None:
        raise ValueError("no 'oom_kill'")
    return int(found[1])


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def _cudnn() -> str | None:
    """Version of cuDNN that torch runs with; None where it has none, or is not loaded."""
    torch = sys.modules.get("torch")
    version = torch.backends.cudnn.version() if torch is not None and torch.cuda.is_available() else None
    return None if version is None else str(version)


def _torch_threads() -> int | None:
    # Only asked of a torch that is there already: importing it takes seconds.
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else None

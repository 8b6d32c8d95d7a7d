"""What a device can do at most: from a table with sources, or measured on the spot. Never guessed."""

from __future__ import annotations

import difflib
import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class DevicePeaks:
    """Peak rates of one device in one dtype.

    Args:
        device: its name.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        flops_per_s: dense matrix products, 1 multiply-add = 2 FLOPs.
        bytes_per_s: memory traffic, read and written bytes added.
        source: where the figures come from, with what was not checked.
    """

    device: str
    dtype: str
    flops_per_s: float
    bytes_per_s: float
    source: str

    def __post_init__(self) -> None:
        for name in ("flops_per_s", "bytes_per_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"'{name}' must be above 0 (got {getattr(self, name)!r})")


@dataclass(frozen=True, kw_only=True)
class PeaksAnswer:
    """Peaks, or the reason why there are none."""

    peaks: DevicePeaks | None
    reason: str = ""


@cache
def _table() -> list[dict[str, Any]]:
    text = resources.files("vlmbench.machine").joinpath("devices.json").read_text(encoding="utf-8")
    devices: list[dict[str, Any]] = json.loads(text)["devices"]
    return devices


def known_devices() -> tuple[str, ...]:
    """Identifiers of the table, each usable as a device name in :func:`table_peaks`."""
    return tuple(entry["id"] for entry in _table())


def is_known(device_name: str) -> bool:
    """Whether :func:`table_peaks` knows a device of this name, in some dtype."""
    return any(_matches(entry, device_name) for entry in _table())


def nearest_devices(device_name: str, *, most: int = 4) -> list[str]:
    """Names of the table that look like one that is not in it, the nearest first; none where none does."""
    readable = [
        name for entry in _table() for name in (entry["id"], *entry["names"]) if re.escape(name) == _dashed(name)
    ]
    wanted = _plain(device_name)
    near = [name for name in readable if wanted and (wanted in _plain(name) or _plain(name) in wanted)]
    by_plain = {_plain(name): name for name in readable}
    near += [by_plain[found] for found in difflib.get_close_matches(wanted, by_plain, n=most, cutoff=0.4)]
    return list(dict.fromkeys(near))[:most]


def unknown_device(device_name: str) -> str | None:
    """Say that the table has no such device, and which are near it; None for one that it has."""
    if is_known(device_name):
        return None
    near = nearest_devices(device_name)
    names = f"near it: {', '.join(near)}" if near else f"allowed: {', '.join(known_devices())}"
    return f"'target_device' must be a device of the table (got '{device_name}'; {names})"


def _dashed(name: str) -> str:
    """The name as ``re.escape`` would write it if nothing but spaces and dashes in it were special."""
    return name.replace("-", r"\-").replace(" ", r"\ ")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("nvidia", "").replace("geforce", ""))


def _matches(entry: dict[str, Any], device_name: str) -> bool:
    return device_name == entry["id"] or any(re.fullmatch(name, device_name) for name in entry["names"])


def table_peaks(device_name: str, dtype: str) -> PeaksAnswer:
    """Datasheet peaks of a device.

    Args:
        device_name: as the driver reports it (``NVIDIA H200``, ``NVIDIA A100-SXM4-80GB``), or an identifier of
            :func:`known_devices`. A slice of a device (MIG) has another name and is not known.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
    """
    for entry in _table():
        if not _matches(entry, device_name):
            continue
        if dtype not in entry["tflops"]:
            have = ", ".join(entry["tflops"])
            return PeaksAnswer(peaks=None, reason=f"no {dtype} peak of '{device_name}' in the table (it has {have})")
        return PeaksAnswer(
            peaks=DevicePeaks(
                device=device_name,
                dtype=dtype,
                flops_per_s=entry["tflops"][dtype] * 1e12,
                bytes_per_s=entry["memory_gb_per_s"] * 1e9,
                source=_source(entry, dtype),
            )
        )
    reason = f"device '{device_name}' is not in the table ({', '.join(known_devices())}); measure its peaks instead"
    return PeaksAnswer(peaks=None, reason=reason)


def _source(entry: dict[str, Any], dtype: str) -> str:
    parts = []
    for figure in (dtype, "memory_gb_per_s"):
        checked = entry["verified"].get(figure)
        what = "bandwidth" if figure == "memory_gb_per_s" else f"{figure} peak"
        parts.append(f"{what}: {checked}" if checked else f"{what}: recalled from the datasheet, not checked")
    return f"table {entry['id']}; " + "; ".join(parts)


SETTINGS = ("auto", "table", "measured", "none")
"""Where peaks may come from: ``auto`` is the table, and a measurement for a device that is not in it."""


def resolve_peaks(setting: str, device: str | torch.device, dtype: str) -> PeaksAnswer:
    """Peaks of a device of this machine, as the setting says.

    Args:
        setting: one of :data:`SETTINGS`.
        device: ``cuda``, ``cuda:0``, ``cpu`` …
        dtype: ``bfloat16``, ``float16`` or ``float32``.

    Raises:
        ValueError: an unknown setting.
    """
    import torch

    if setting not in SETTINGS:
        raise ValueError(f"'device_peaks' must be one of {', '.join(SETTINGS)} (got {setting!r})")
    if setting == "none":
        return PeaksAnswer(peaks=None, reason="device peaks are switched off (device_peaks=none)")
    place = torch.device(device)
    if setting != "measured":
        name = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
        answer = table_peaks(name, dtype)
        if answer.peaks is not None or setting == "table":
            return answer
    if place.type not in ("cpu", "cuda"):
        return PeaksAnswer(peaks=None, reason=f"peaks of a device of type '{place.type}' cannot be measured")
    return PeaksAnswer(peaks=measure_peaks(place, dtype))


def measure_peaks(device: str | torch.device, dtype: str, *, repeats: int = 15) -> DevicePeaks:
    """Peaks as this device reaches them now: a large matrix product and a large copy, median of the repeats.

    Operands are random: matrices of zeros draw less power, so clocks stay higher than real work sees them. A measured
    peak is below the datasheet's (power and heat limit it), so a share of it is higher.

    Args:
        device: ``cuda``, ``cuda:0``, ``cpu`` …
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        repeats: timed runs of each, after three untimed ones.
    """
    import torch

    place = torch.device(device)
    on_cuda = place.type == "cuda"
    kind = getattr(torch, dtype)
    side = 8192 if on_cuda else 1024
    elements = (1 << 30) // kind.itemsize if on_cuda else (1 << 27) // kind.itemsize
    generator = torch.Generator(device=place).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=place, generator=generator, dtype=torch.float32).to(kind)

    left, right, out = random(side, side), random(side, side), torch.empty(side, side, device=place, dtype=kind)
    product_s = _median_s(lambda: torch.matmul(left, right, out=out), place, repeats)
    source = random(elements)
    target = torch.empty_like(source)
    copy_s = _median_s(lambda: target.copy_(source), place, repeats)
    name = torch.cuda.get_device_name(place) if on_cuda else "cpu"
    return DevicePeaks(
        device=name,
        dtype=dtype,
        flops_per_s=2 * side**3 / product_s,
        bytes_per_s=2 * elements * kind.itemsize / copy_s,
        source=f"measured: product of {side} x {side} matrices, copy of {elements * kind.itemsize >> 20} MiB, "
        f"median of {repeats}",
    )


def _median_s(work: Callable[[], Any], place: torch.device, repeats: int) -> float:
    import torch

    for _ in range(3):
        work()
    if place.type != "cuda":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return statistics.median(times)
    event: Any = torch.cuda.Event
    marks = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(repeats)]
    with torch.cuda.device(place):
        torch.cuda.synchronize()
        for before, after in marks:
            before.record()
            work()
            after.record()
        torch.cuda.synchronize()
    return float(statistics.median(before.elapsed_time(after) for before, after in marks)) / 1e3
